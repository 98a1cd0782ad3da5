"""What agents are started with when the server is born of our client: not agentd's limits, priority and score."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.process_context import agents_environment, agents_limits, agents_path
from agentd.settings import Settings

_ROOT = os.geteuid() == 0
_SYS_RESOURCE = 1 << 24
_REPOSITORY = Path(__file__).parents[2]

# agentd's own start, as far as it matters here, and then a session that writes down what it has.
_PROGRAM = """
import pwd, shutil, sys
from pathlib import Path
import trio
from agentd.process_context import agents_limits, raise_open_files
from agentd.tmux.connection import open_tmux
from tests.settings import agent_user, settings_below

place, user = Path(sys.argv[1]), pwd.getpwnam(sys.argv[2]) if sys.argv[2] else None
changes = {} if user is None else {"agent_user": agent_user(user), "sudo": shutil.which("sudo")}
settings = settings_below(
    place,
    tmux_socket=place / "tmux",  # where the fixture ends what is left
    tmux=shutil.which("tmux"),
    switch_user=user is not None,
    limits=agents_limits(switch_user=user is not None),
    **changes,
)
raise_open_files()
print("ours", *__import__("resource").getrlimit(__import__("resource").RLIMIT_NOFILE))

async def main():
    async with open_tmux(settings) as tmux:
        script = 'cat /proc/self/limits; echo score $(cat /proc/self/oom_score_adj); echo nice $(nice); umask'
        words = ["sh", "-c", f'({script}) >"$0"; tmux wait-for -S written', str(place / "context")]
        await tmux.command("new-session", "-d", *words)
        await tmux.command("wait-for", "written")
        while not await tmux.end_server():
            pass  # its session is about to end

trio.run(main)
"""
_LINES = {
    resource.RLIMIT_CPU: "Max cpu time",
    resource.RLIMIT_FSIZE: "Max file size",
    resource.RLIMIT_MEMLOCK: "Max locked memory",
    resource.RLIMIT_NOFILE: "Max open files",
    resource.RLIMIT_NPROC: "Max processes",
    resource.RLIMIT_STACK: "Max stack size",
}


def _context(place: Path, user: str, before: str, *limits: str) -> tuple[str, list[str]]:
    """Return what agentd had after its start, and what its agents have, when it was started like that."""
    script = f'umask 077; {before} exec prlimit "$@"'
    program = [sys.executable, "-c", _PROGRAM, str(place), user]
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *limits, *program],
        cwd=_REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), (place / "context").read_text().splitlines()


def _limits(lines: list[str]) -> dict[int, list[str]]:
    found = {}
    for kind, name in _LINES.items():
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        found[kind] = line.removeprefix(name).split()[:2]
    return found


def _may_raise() -> bool:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:")]
    return int(line.split()[1], 16) & _SYS_RESOURCE != 0


def _shown(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


@pytest.mark.skipif(not _ROOT, reason="only root can switch to another user")
@pytest.mark.parametrize("score", [0, 500, -500])
def test_context_of_another_user(settings: Settings, socket_dir: Path, score: int) -> None:
    """Agents of another user have the machine's limits, umask 022, no priority and score, whatever agentd has."""
    if score < 0 and not _may_raise():
        pytest.skip("root without CAP_SYS_RESOURCE cannot have a lower score to begin with")
    os.chmod(socket_dir, 0o777)  # noqa: S103 nobody's socket is in it
    hard = "" if _may_raise() else ":"
    # What sudo has to say about core files it says itself.
    limits = [f"--nofile=300{hard}", f"--nproc=90{hard}", f"--fsize=9999999{hard}", f"--cpu=999{hard}"]
    before = f"echo {score} >/proc/self/oom_score_adj; renice -n 5 $$ >/dev/null;"
    ours, lines = _context(socket_dir, "nobody", before, *limits)
    most = 300 if _may_raise() else resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert ours == f"ours {most} {most}"
    found = _limits(lines)
    for kind, (soft, wanted) in agents_limits(switch_user=True).items():
        if kind in found:
            top = resource.getrlimit(kind)[1]
            if not _may_raise() and top != resource.RLIM_INFINITY:
                wanted = top if wanted == resource.RLIM_INFINITY else min(top, wanted)  # noqa: PLW2901 as far as it goes
                soft = wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)  # noqa: PLW2901
            assert found[kind] == [_shown(soft), _shown(wanted)], _LINES[kind]
    assert lines[-3:] == ["score 0", "nice 0", "0022"]


def test_context_of_our_own_user(settings: Settings, socket_dir: Path) -> None:
    """As the same user agentd raises its own limit of open files, and agents have what it was; all else is shared."""
    ours, lines = _context(socket_dir, "", "renice -n 5 $$ >/dev/null;", "--nofile=300:400", "--nproc=9999")
    assert ours == "ours 400 400"
    found = _limits(lines)
    assert found[resource.RLIMIT_NOFILE] == ["300", "400"]
    assert found[resource.RLIMIT_NPROC] == ["9999", "9999"]
    assert lines[-2:] == ["nice 5", "0022"]


def test_environment_of_another_user() -> None:
    """Another user has our locale where it can show all text, and of our PATH what is not in our home."""
    path = "/usr/bin:/root/bin:/rooted:/root:relative::/root/.local/bin:/bin"
    ours = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "LC_ALL": "de_DE.utf8", "LC_CTYPE": "C", "KEY": "x"}
    expected = {"PATH": "/usr/bin:/rooted:/bin", "LANG": "C.UTF-8", "LC_ALL": "de_DE.utf8"}
    assert agents_environment(ours, switch_user=True) == expected


def test_environment_of_our_own_user() -> None:
    """As the same user agents have our environment without what is agentd's alone."""
    alone = ["NOTIFY_SOCKET", "INVOCATION_ID", "STATE_DIRECTORY", "MEMORY_PRESSURE_WATCH", "SUDO_HOME", "TMUX_PANE"]
    ours = {"PATH": "/a", "KEY": "x", "HOME": "/home/me", **dict.fromkeys(alone, "x")}
    assert agents_environment(ours, switch_user=False) == {"PATH": "/a", "KEY": "x", "HOME": "/home/me"}


@pytest.mark.parametrize("path", ["", "relative", "/root/bin"])
def test_no_path_is_left(path: str) -> None:
    """Where nothing of our PATH is for another user, it is the system's."""
    assert agents_path({"PATH": path, "HOME": "/root"}) == os.defpath
