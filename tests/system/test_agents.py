"""What agents of the system's agentd are: the user agent, as if it had logged in."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.service import TMUX, UNIT, Service, Start, run, show

SECRETS = Path("/run/stereos/secrets")
SYSTEMD = {
    "CREDENTIALS_DIRECTORY",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LISTEN_FDS",
    "LISTEN_PID",
    "MAINPID",
    "MANAGERPID",
    "MEMORY_PRESSURE_WATCH",
    "NOTIFY_SOCKET",
    "RUNTIME_DIRECTORY",
    "SYSTEMD_EXEC_PID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
}


@pytest.fixture(scope="module")
def started(at_boot: object) -> Iterator[tuple[Service, Start]]:
    service = Service()
    service.prepare()
    service.change("Environment=OF_ROOT=1 LD_LIBRARY_PATH=/nowhere")
    SECRETS.mkdir(mode=0o700, exist_ok=True)
    (SECRETS / "TOKEN").write_text("secret\n")
    service.write_card(service.agent("a"))
    service.start()
    yield service, service.wait_ready("a")
    service.close()
    (SECRETS / "TOKEN").unlink()


def test_user(started: tuple[Service, Start]) -> None:
    """An agent is the user agent, with its groups and nobody else's, in its workdir, with umask 022."""
    service, start = started
    assert start.read("user") == "agent"
    assert set(start.read("groups").split()) == {"agent", "watchers"}
    assert start.read("cwd") == str(service.home)
    assert start.read("umask") == "0022"


def test_environment(started: tuple[Service, Start]) -> None:
    """An agent has its user's own environment and the secrets, and nothing of root's, sudo's or systemd's."""
    _, start = started
    env = start.env
    names = ("HOME", "USER", "LOGNAME", "SHELL", "TOKEN")
    assert [env[name] for name in names] == ["/home/agent", "agent", "agent", "/bin/bash", "secret"]
    assert "UTF-8" in env["LANG"]
    assert not {name for name in env if name.startswith("SUDO_")}
    assert not SYSTEMD & env.keys()
    assert not {"OF_ROOT", "LD_LIBRARY_PATH"} & env.keys()
    assert "/usr/local/bin" in env["PATH"].split(":")
    assert not [place for place in env["PATH"].split(":") if place.startswith("/root")]


def test_login_shell(started: tuple[Service, Start]) -> None:
    """An agent is started by its user's login shell, which is there to look around afterwards."""
    service, _ = started
    pid = service.tmux("list-panes", "-t", "=a:", "-F", "#{pane_pid}").stdout.strip()
    assert Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] == b"-bash"


def test_limits(started: tuple[Service, Start]) -> None:
    """An agent's limits and its place in the out-of-memory order are the system's for services, not agentd's."""
    _, start = started
    run_unit = ("systemd-run", "--wait", "--pipe", "--quiet", "--uid=agent", "cat")
    assert start.read("limits") == run(*run_unit, "/proc/self/limits").stdout.strip("\n")
    assert start.read("oom_score_adj") == run(*run_unit, "/proc/self/oom_score_adj").stdout.strip("\n")


def test_freedom(started: tuple[Service, Start]) -> None:
    """Nothing keeps an agent from what its user may do: no lost capability, no filter, no ignored signal."""
    _, start = started
    status = dict(line.split(":\t", 1) for line in start.read("status").splitlines() if ":\t" in line)
    first = dict(line.split(":\t", 1) for line in Path("/proc/1/status").read_text().splitlines() if ":\t" in line)
    ignored = int(status["SigIgn"], 16) & (1 << 31) - 1  # those above are the C library's own
    assert (status["NoNewPrivs"], status["Seccomp"], ignored) == ("0", "0", 0)
    assert status["CapBnd"] == first["CapBnd"]
    for namespace in ("mnt", "net", "pid", "user", "ipc", "uts"):
        assert os.readlink(f"/proc/{start.pid}/ns/{namespace}") == os.readlink(f"/proc/1/ns/{namespace}")


def test_unit(started: tuple[Service, Start]) -> None:
    """An agent is in the tmux server's unit, where no end of agentd reaches it, in a cgroup of its own."""
    service, start = started
    assert f"/system.slice/{TMUX}/agentd-" in start.read("cgroup").split("\n")[-1]
    inside = Path(f"/proc/{service.pid}/cgroup").read_text().splitlines()[-1]
    assert inside.endswith(f"/system.slice/{UNIT}")


def test_agentd_is_confined(started: tuple[Service, Start]) -> None:
    """agentd itself has no more capabilities than it needs, and agents are killed before it."""
    service, _ = started
    status = Path(f"/proc/{service.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    # As far as the machine's own systemd may: a container's may not.
    allowed = run(
        "systemd-run", "--wait", "--pipe", "--quiet", "-pOOMScoreAdjust=-500", "cat", "/proc/self/oom_score_adj"
    )
    assert Path(f"/proc/{service.pid}/oom_score_adj").read_text() == allowed.stdout
    assert "cap_sys_admin" not in show(UNIT, "CapabilityBoundingSet")["CapabilityBoundingSet"].split()


@pytest.mark.parametrize(
    ("path", "kind", "mode", "owner"),
    [
        ("/run/agentd", stat.S_IFDIR, 0o750, "agent admin"),
        ("/run/agentd/tmux.sock", stat.S_IFSOCK, 0o770, "agent admin"),
        ("/run/stereos", stat.S_IFDIR, 0o750, "root admin"),
        ("/run/stereos/agentd.sock", stat.S_IFSOCK, 0o660, "root admin"),
        ("/run/agentd-run", stat.S_IFDIR, 0o711, "root root"),
    ],
)
def test_modes(started: tuple[Service, Start], path: str, kind: int, mode: int, owner: str) -> None:
    """Admins reach both sockets, nobody else does, and what is agentd's own is root's."""
    found = Path(path).lstat()
    assert stat.S_IFMT(found.st_mode) == kind
    # tmux itself takes and gives the x of its socket, as clients come and go.
    flips = 0o110 if path.endswith("tmux.sock") else 0
    assert stat.S_IMODE(found.st_mode) | flips == mode
    assert run("stat", "-c", "%U %G", path).stdout.strip() == owner
