"""What agents can do while there is no agentd, between a kill -9 and the next start."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.outside import lives, wait_for
from tests.system.hostile_ground import HELPERS, SECRET, SOCKETS, Ground, hostile, instance
from tests.system.service import API_SOCKET

PLANTS = {
    "file": 'echo x >"$1"',
    "fifo": 'mkfifo "$1"',
    "directory": 'mkdir -p "$1/x"',
    "socket": 'python3 -c "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])" "$1"',
    "secret": f'ln -s {SECRET} "$1"',
    "endless": 'ln -s /dev/zero "$1"',
    "api": f'ln -s {API_SOCKET} "$1"',
    "dangling": 'ln -s /etc/cron.d/evil "$1"',
    "loop": 'ln -s "$1" "$1"',
}


@pytest.fixture(scope="module")
def ground(at_boot: object) -> Iterator[Ground]:
    with hostile("RestartSec=100ms") as ground:
        yield ground


@contextmanager
def crash(ground: Ground) -> Iterator[None]:
    """What happens between a kill -9 of agentd and its next start."""
    service = ground.service
    ground.observe()
    restarts = int(service.show("NRestarts")["NRestarts"])
    os.kill(service.pid, signal.SIGKILL)
    yield
    service.wait_restarted(restarts + 1)


@pytest.mark.parametrize("kind", PLANTS)
def test_planted(ground: Ground, kind: str) -> None:
    """Whatever agents put in the place of the tmux socket, or of its lock, the next agentd takes the agents over."""
    pid = ground.service.status("bystander")["pid"]
    with crash(ground):
        for name in ("tmux.sock", ".tmux.sock.agentd"):
            ground.as_agent('rm -rf "$1"; ' + PLANTS[kind], str(SOCKETS / name))
    ground.service.wait_status("bystander", pid=pid, state="running")
    ground.prove(restarted=True)
    ground.as_agent(f'rm -rf "$1" {SOCKETS}/.tmux.sock.*', str(SOCKETS / ".tmux.sock.agentd"))


@pytest.mark.parametrize("mode", ["000", "500", "777"])
def test_closed_directory(ground: Ground, mode: str) -> None:
    """An agent that closes the directory of the tmux socket keeps no agentd from its start, or from its agents."""
    with crash(ground):
        ground.as_agent(f"chmod {mode} {SOCKETS}")
    ground.prove(restarted=True)


@pytest.mark.parametrize("number", ["STOP", "KILL"])
def test_questions(ground: Ground, number: str) -> None:
    """Agents that stop or kill what root asks in their name keep no agentd from its start."""
    with ground.running("python3", str(HELPERS / "hostile_stopper.py"), f"SIG{number}"):
        with crash(ground):
            pass
        ground.prove(restarted=True)


def test_forged_processes(ground: Ground) -> None:
    """Processes with the tag of an attempt that come again and again hinder nobody; those of other users live on."""
    tag = f"{instance(ground.service)}/feedbeef/1"
    others = [ground.daemon(user, AGENTD_ATTEMPT=tag) for user in ("root", "mallory")]
    pid = ground.service.status("bystander")["pid"]
    with ground.running("sh", str(HELPERS / "hostile_spawner.sh"), tag):
        with crash(ground):
            pass
        ground.service.wait_status("bystander", pid=pid, state="running")
        ground.prove(restarted=True)
    assert all(map(lives, others))


def test_vast_tags(ground: Ground) -> None:
    """Processes with vast tags take none of agentd's memory, and no place in its log."""
    ready = ground.evil / "herd"
    herd = ("python3", str(HELPERS / "hostile_herd.py"), "300", "120000", str(ready))
    with ground.running("env", f"HERD_TAG={instance(ground.service)}/feedbeef/1", *herd):
        wait_for(ready.exists, "the herd")
        with crash(ground):
            pass
        ground.prove(restarted=True)
    peak = Path(f"/proc/{ground.service.pid}/status").read_text().partition("VmHWM:")[2].split()[0]
    assert int(peak) < 80_000
    assert max(map(len, ground.service.log)) < 2000


def test_forged_sessions(ground: Ground) -> None:
    """Sessions that claim to be another's run, or what no run is called, cost that agent nothing and the log little."""
    service = ground.service
    pid = service.status("bystander")["pid"]
    mark = service.tmux("show-environment", "-t", "=bystander:", "AGENTD_SESSION").stdout.strip().partition("=")[2]
    own = instance(service)
    forged = [mark, f"{own}/", f"{own}/../../root", f"{own}/{'x' * 8_000}", f"{own}/\x1b[2J\x07", f"{own}/{mark}"]
    for number, one in enumerate(forged):
        made = ground.tmux("new-session", "-d", "-s", f"evil{number}", "-e", f"AGENTD_SESSION={one}", "sleep", "7300")
        assert made.returncode == 0, made.stderr
        ground.tmux("set-option", "-t", f"evil{number}", "@agentd_exit", f"{mark}/1 0")
    with crash(ground):
        pass
    service.wait_status("bystander", pid=pid, state="running")
    assert max(map(len, service.log)) < 2000
    ground.prove(restarted=True)


def test_forged_exit_option(ground: Ground) -> None:
    """An exit that is forged in the session of an agent that lives is not believed by the next agentd."""
    service = ground.service
    status = service.status("bystander")
    run = service.tmux("show-environment", "-t", "=bystander:", "AGENTD_SESSION").stdout.strip().partition("=")[2]
    ground.tmux("set-option", "-t", "bystander", "@agentd_exit", f"{run}/{status['attempt']} 0")
    with crash(ground):
        pass
    service.wait_status("bystander", pid=status["pid"], state="running", restarts=status["restarts"])
    ground.prove(restarted=True)


def test_mark_of_another_taken_away(ground: Ground) -> None:
    """A session whose mark an agent took away is supervised all the same by the next agentd."""
    service = ground.service
    pid = service.status("bystander")["pid"]
    ground.tmux("set-environment", "-t", "bystander", "-u", "AGENTD_SESSION")
    with crash(ground):
        pass
    service.wait_status("bystander", pid=pid, state="running")
    ground.tmux("kill-session", "-t", "bystander")
    ground.prove(restarted=True)
