import os
import pwd
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agentd.processes.cgroup import own_cgroup
from agentd.settings import AgentUser, Settings
from agentd.tmux.connection import Tmux, open_tmux
from tests.settings import agent_user as user_of
from tests.settings import settings_below

_CGROUP = own_cgroup()
collect_ignore = [] if _CGROUP is not None and os.access(_CGROUP, os.W_OK) else ["test_cgroups.py"]


@pytest.fixture
def agent_user() -> AgentUser:
    """Describe who runs the tests."""
    return user_of(pwd.getpwuid(os.getuid()), groups=tuple(os.getgroups()))


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """Make a directory with a short name: a socket's path has 107 bytes at most."""
    path = Path(tempfile.mkdtemp(prefix="agentd-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def settings(tmp_path: Path, socket_dir: Path, agent_user: AgentUser) -> Iterator[Settings]:
    """Make settings of a server of its own, which ends with the test and may leave no process."""
    tmux = shutil.which("tmux")
    assert tmux is not None
    yield settings_below(
        tmp_path,
        tmux_socket=socket_dir / "tmux",
        api_socket=socket_dir / "api",
        agent_user=agent_user,
        tmux=tmux,
        sudo=shutil.which("sudo"),
    )
    kill_server(tmux, socket_dir / "tmux")


@pytest.fixture
async def tmux(settings: Settings) -> AsyncIterator[Tmux]:
    """Connect to that server."""
    async with open_tmux(settings) as tmux:
        yield tmux


@pytest.fixture
def wait_gone() -> Callable[[int], None]:
    """Wait until a process is gone, and fail if it does not go."""
    return _wait_gone


def kill_server(tmux: str, socket: Path) -> None:
    command = [tmux, "-f", "/dev/null", "-S", str(socket), "kill-server"]
    subprocess.run(command, check=False, timeout=10, capture_output=True)
    left = _processes_with(bytes(socket))
    try:
        for pid in left:
            _wait_gone(pid)
    finally:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _processes_with(word: bytes) -> list[int]:
    """Find the processes whose command line or environment has a word: the server, its clients, what its panes run."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            about = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            if word in about:
                found.append(int(pid))
    return found


def _wait_gone(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], 10)[0], f"process {pid} is still there: {_about(pid)}"
    finally:
        os.close(descriptor)


def _about(pid: int) -> str:
    with suppress(OSError):
        return f"{Path(f'/proc/{pid}/cmdline').read_bytes()!r}, stat {Path(f'/proc/{pid}/stat').read_text()!r}"
    return "it went just now"
