"""Terminals and inotify, of which only root can leave few without taking them from anybody else."""

import subprocess

from tests.e2e.outside import World, wait_for


def test_no_terminals(world: World) -> None:
    """Without a terminal for its shell an agent waits, said once, and comes when there is one."""
    script = (
        "mount -t devpts -o newinstance,ptmxmode=0666,mode=620,max=3 devpts /dev/pts && "
        'mount --bind /dev/pts/ptmx /dev/ptmx && exec "$@"'
    )
    world.within = ("unshare", "--mount", "--", "sh", "-c", script, "sh")
    world.write_card(world.agent("a"), world.agent("b"))  # the third is the control client's own
    world.start()
    a, b = world.wait_ready("a"), world.wait_ready("b")
    world.write_card(world.agent("a"), world.agent("b"), world.agent("c"))
    status = world.wait_status("c", state="waiting", reason="shortage")
    assert "kernel.pty.max" in status["message"]
    world.wait_looks(lambda: world.status("c")["attempt"] > status["attempt"] + 1, "two tries more")
    assert sum("agent=c" in line and "kernel.pty.max" in line for line in world.log_lines) == 1
    assert (world.status("a")["pid"], world.status("b")["pid"]) == (a.pid, b.pid)
    world.write_card(world.agent("a"), world.agent("c"))
    world.wait_ready("c", seconds=7)
    assert world.status("a")["pid"] == a.pid


def test_no_inotify(world: World) -> None:
    """Without inotify the tick finds each change, a warning says so once, and it ends when there is some again."""
    limit = "/proc/sys/user/max_inotify_instances"  # of a user namespace: the machine keeps what it has
    world.within = ("unshare", "--user", "--map-root-user", "--", "sh", "-c", f'echo 0 >{limit}; exec "$@"', "sh")
    world.write_card(world.agent("a"))
    world.start()
    world.wait_ready("a")
    assert ["inotify fails" in warning for warning in world.warnings()] == [True]
    world.write_card(world.agent("a"), world.agent("b"))
    world.wait_ready("b", seconds=7)
    assert sum("inotify fails" in line for line in world.log_lines) == 1
    assert world.process is not None
    there = ("nsenter", f"--user=/proc/{world.process.pid}/ns/user", "--", "sh", "-c", f"echo 8 >{limit}")
    subprocess.run(there, check=True)
    wait_for(lambda: not world.warnings(), "the end of the warning", seconds=7)
