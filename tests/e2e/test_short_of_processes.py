"""No process can be started: not by agentd, not by the tmux server, not by a shell (root may always)."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.outside import World, lives, processes_with, wait_for


@contextmanager
def no_processes(*pids: int) -> Iterator[None]:
    """Let these start nothing for a while."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NPROC) for pid in pids}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, resource.RLIMIT_NPROC, (0, hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            if lives(pid):
                resource.prlimit(pid, resource.RLIMIT_NPROC, limits)


def server(world: World) -> int:
    """The pid of the tmux server."""
    return int(world.tmux("display-message", "-p", "#{pid}").stdout)


def test_server_cannot_fork(world: World) -> None:
    """While the tmux server can start no shell, new agents and restarts wait and count as nothing; then they come."""
    world.write_card(world.agent("a"), world.agent("b", restart="on-failure", max_restarts=1))
    world.start()
    a, b = world.wait_ready("a"), world.wait_ready("b")
    with no_processes(server(world)):
        os.kill(b.pid, signal.SIGKILL)
        world.write_card(
            world.agent("a"), world.agent("b", restart="on-failure", max_restarts=1), world.agent("c", restart="no")
        )
        world.look()
        for name in "bc":
            assert "can start no process" in world.wait_status(name, state="waiting", reason="shortage")["message"]
        tried = world.status("c")["attempt"]
        world.wait_looks(lambda: world.status("c")["attempt"] > tried + 1, "two tries more")
        assert world.status("a")["pid"] == a.pid
        assert [sum(f"agent={name}" in line and "no process" in line for line in world.log_lines) for name in "bc"] == [
            1,
            1,
        ]
    world.wait_ready("c", seconds=7)
    world.wait_ready("b", 2, seconds=7)
    assert world.status("b")["restarts"] == 1
    assert world.status("a")["pid"] == a.pid


def test_shell_cannot_fork(world: World) -> None:
    """An agent whose shell can start nothing has not failed to start: it waits, and is tried again."""
    world.env["SHELL"] = "/bin/sh"
    (world.home / ".profile").write_text("if [ -e ~/short ]; then ulimit -S -p 0; fi\n")
    (world.home / "short").touch()
    world.write_card(world.agent("a", restart="no"))
    world.start()
    wait_for(lambda: world.sessions() and "fork" in world.screen("a"), "what the shell says of the keys")
    world.type("a", "exit")  # rather than wait for half a minute
    status = world.wait_status("a", state="waiting", reason="shortage")
    assert "fork" in status["message"]
    (world.home / "short").unlink()
    if "fork" in world.screen("a"):
        world.type("a", "exit")
    world.wait_ready("a")


def test_agentd_cannot_fork(world: World) -> None:
    """An agentd that can start no process loses nothing, and gets its connection to tmux back afterwards."""
    world.write_card(world.agent("a"), world.agent("b"))
    world.start()
    a, b = world.wait_ready("a"), world.wait_ready("b")
    assert world.process is not None
    tmux = server(world)
    with no_processes(world.process.pid):
        clients = [pid for pid, line in processes_with(str(world.tmux_socket)).items() if " -C " in line]
        os.kill(next(pid for pid in clients if pid != tmux), signal.SIGKILL)
        wait_for(lambda: any("lost the connection to tmux" in line for line in world.log_lines), "the loss")
        world.write_card(world.agent("a"), world.agent("c"))
        world.wait_log("still no connection to tmux")
        assert world.status("a")["pid"] == a.pid
    world.wait_ready("c")
    wait_for(lambda: not lives(b.pid), "the end of b")
    assert world.status("a")["pid"] == a.pid
