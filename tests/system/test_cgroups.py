"""Each attempt in a cgroup of its own, in the tmux server's unit: what agents can do with it, and what they cannot."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.outside import lives, wait_for, wait_for_none
from tests.system.service import TMUX, Service, run, run_as

SLICE = Path("/sys/fs/cgroup/system.slice")
UNIT_CGROUP = SLICE / TMUX
SUDOERS = Path("/etc/sudoers.d/agent-may-sleep")


def _cgroup(pid: int) -> Path:
    """The cgroup of a process."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    (name,) = (line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
    return Path("/sys/fs/cgroup") / name


def _sleeps(seconds: str) -> list[int]:
    """The pids of `sleep` for so long, of whatever user."""
    found = run("pgrep", "--full", f"^([^ ]*/)?sleep {seconds}$", check=False).stdout.split()
    return [int(pid) for pid in found if lives(int(pid))]


def _shell(service: Service, script: str, **keys: object) -> dict[str, object]:
    """An agent that runs a shell script."""
    return service.agent("a", binary="/bin/sh", args=["-c", script], **keys)


def test_nobody_leaves(service: Service) -> None:
    """An agent can move nothing out of its attempt's cgroup: not to the unit's, not to another attempt's."""
    service.write_card(service.agent("a"), service.agent("b"))
    service.start()
    first, second = service.wait_ready("a"), service.wait_ready("b")
    mine, other = _cgroup(first.pid), _cgroup(second.pid)
    assert (mine.parent, other.parent, mine != other) == (UNIT_CGROUP, UNIT_CGROUP, True)
    for attempt in (
        f"echo {first.pid} >{UNIT_CGROUP}/cgroup.procs",
        f"echo {first.pid} >{other}/cgroup.procs",
        f"echo {first.pid} >{SLICE}/cgroup.procs",
        f"echo 1 >{other}/cgroup.kill",
        f"echo 1 >{other}/cgroup.freeze",
        f"mkdir {UNIT_CGROUP}/evil",
        f"rmdir {mine}",
    ):
        assert run_as("agent", "sh", "-c", attempt).returncode != 0, attempt
    assert (_cgroup(first.pid), _cgroup(second.pid), UNIT_CGROUP.owner()) == (mine, other, "root")


def test_a_divided_cgroup_ends(service: Service) -> None:
    """An agent may divide its cgroup, as container engines do; all of it ends with the attempt, frozen parts, too."""
    script = """
    mine=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)
    for part in one one/two frozen; do mkdir $mine/$part; done
    setsid -f env -i /bin/sh -c "echo 0 >$mine/one/two/cgroup.procs; exec /bin/sleep 7301"
    setsid -f env -i /bin/sh -c "echo 0 >$mine/frozen/cgroup.procs; exec /bin/sleep 7302"
    until grep -q . $mine/frozen/cgroup.procs && pgrep -f '^/bin/sleep 7302'; do sleep 0.05; done
    echo 1 >$mine/frozen/cgroup.freeze
    touch ~/divided
    exec sleep 7300
    """
    marker = service.home / "divided"
    service.write_card(_shell(service, script))
    service.start()
    wait_for(marker.exists, "the division")
    marker.unlink()
    cgroup = _cgroup(service.wait_status("a", state="running")["pid"])
    assert sorted(path.name for path in cgroup.iterdir() if path.is_dir()) == ["frozen", "one"]
    service.write_card()
    wait_for(lambda: not cgroup.exists(), "the end of the cgroup")
    assert run("pgrep", "--full", "sleep 730[12]", check=False).stdout == ""


@pytest.fixture
def sudo() -> Iterator[None]:
    """The agents may run a program as root."""
    SUDOERS.write_text("agent ALL=(root) NOPASSWD: /bin/sleep\n")
    SUDOERS.chmod(0o440)
    yield
    SUDOERS.unlink()


def test_roots_processes_end(sudo: None, service: Service) -> None:
    """What an agent has started as root by sudo ends with its attempt, and nothing else of root's."""
    service.write_card(_shell(service, "sudo -n -b sleep 7303; exec sleep 7304", restart="no", timeout="2s"))
    service.start()
    wait_for(lambda: _sleeps("7303"), "the sleep")
    run("systemd-run", "--unit=bystander", "--quiet", "sleep", "7305")
    service.wait_status("a", state="failed", reason="timed_out")
    assert wait_for_none(lambda: _sleeps("7303")) == []
    assert len(_sleeps("7305")) == 1
    run("systemctl", "stop", "bystander")


def test_a_kept_shell_is_let_out(service: Service) -> None:
    """The shell that stays after an agent's end, and what is started in it, is in no attempt's cgroup any more."""
    service.write_card(_shell(service, "exit 3"))
    service.start()
    service.wait_status("a", state="failed")
    wait_for(lambda: not list(UNIT_CGROUP.glob("agentd-*")), "the end of the cgroup")
    shell = int(service.tmux("display-message", "-p", "-t", "=a:", "#{pane_pid}").stdout)
    assert _cgroup(shell) == UNIT_CGROUP
