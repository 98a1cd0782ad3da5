"""Boot a machine with a real systemd, of this one's own root, run a command in it, and end it without a trace.

    python tests/system/machine.py COMMAND [ARGUMENT...]

The machine is a systemd as the first process of namespaces of its own: nothing is downloaded, what is read is this
machine's own, what is written is gone afterwards (`root.sh` makes its root). In it there are the users `agent`, `alice`
(group admin, sudo for tmux) and `mallory`, and agentd with its units, installed from the environment whose python runs
this. The command runs as root in the repository, with AGENTD_MACHINE in its environment; its exit code is ours. Where
no machine can be had, a line says why, and the exit code is 0.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_REPOSITORY = _HERE.parent.parent
_SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
_PROGRAMS = ("mount", "nsenter", "setpriv", "sudo", "systemctl", "systemd-run", "tmux", "unshare", "useradd")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT_VARIABLES = ("CI", "LANG", "TERM")
_NAMESPACES = ("--pid", "--fork", "--kill-child=SIGKILL", "--mount", "--cgroup", "--ipc", "--uts", "--net")
_PRIVATE = "AGENTD_MACHINE_MOUNTS"
"""In our own environment: our mounts are nobody else's."""

_BOOT_LIMIT = 60.0
_END_LIMIT = 10.0
_POLL = 0.05

_TRIAL = """
mount -t tmpfs machine "$1" && mkdir "$1/upper" "$1/work" "$1/root" &&
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" machine "$1/root" &&
mount -t proc proc "$1/root/proc" && mount -t sysfs -o ro sysfs "$1/root/sys" &&
mount -t cgroup2 cgroup2 "$1/root/sys/fs/cgroup" && mkdir "$1/root/sys/fs/cgroup/trial" &&
rmdir "$1/root/sys/fs/cgroup/trial"
"""


def main(command: list[str]) -> int:
    """Run the command in a machine, and return its exit code."""
    if not command:
        sys.exit("usage: machine.py COMMAND [ARGUMENT...]")
    missing = _missing()
    if missing:
        return _skip(missing)
    if os.environ.pop(_PRIVATE, None) is None:
        _with_own_mounts(command)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _leave)
    with _directory() as work, _cgroup(work) as group:
        missing = group if isinstance(group, str) else _try(work, group)
        if isinstance(group, str) or missing:
            return _skip(missing)
        with _machine(work, group) as (first, begun):
            took = time.monotonic() - begun
            sys.stderr.write(f"machine: up in {took:.1f} s\n")
            return subprocess.run(_inside(first, *_scope(command)), env=_environment(), check=False).returncode


def _skip(why: str) -> int:
    sys.stdout.write(f"system tests: SKIPPED, no machine can be had here: {why}\n")
    return 0


def _missing() -> str:
    """What this machine lacks, as far as that can be told without trying."""
    if os.geteuid() != 0:
        return "it takes root"
    programs = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if not any(map(os.path.exists, _SYSTEMD)):
        programs.append("systemd")
    if programs:
        return f"not installed: {', '.join(programs)}"
    if "cgroup2" not in Path("/proc/filesystems").read_text().split():
        return "the kernel has no cgroup v2"
    return ""


def _with_own_mounts(command: list[str]) -> None:
    """Start over where no mount of ours is seen by others, or outlives us, even if we are killed."""
    again = ["unshare", "--mount", "--propagation", "private", "--", sys.executable, __file__, *command]
    tried = subprocess.run([*again[:4], "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        sys.exit(_skip(tried.stderr.strip()))
    os.execvpe("unshare", again, {**os.environ, _PRIVATE: "1"})


def _leave(number: int, _frame: object) -> None:
    # What ends us ends the machine first; the second signal of a closing terminal does not hinder that.
    for other in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix="agentd-machine-"))
    try:
        subprocess.run(["mount", "-t", "tmpfs", "machine", str(work)], check=True)
        yield work
    finally:
        subprocess.run(["umount", "--lazy", str(work)], check=False)
        work.rmdir()


@contextlib.contextmanager
def _cgroup(work: Path) -> Generator[Path | str]:
    """A cgroup for the machine, or why there is none."""
    top = work / "cgroup"
    top.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "cgroup2", "cgroup2", str(top)], capture_output=True, text=True, check=False
    )
    group = top / f"agentd-machine-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        yield mounted.stderr.strip() or f"a cgroup cannot be made: {error.strerror}"
        return
    try:
        yield group
    finally:
        if (group / "cgroup.kill").exists():
            (group / "cgroup.kill").write_text("1")
        _wait_gone(group)


def _wait_gone(group: Path) -> None:
    deadline = time.monotonic() + _END_LIMIT
    while group.exists() and time.monotonic() < deadline:
        for path, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        time.sleep(_POLL)


def _try(work: Path, group: Path) -> str:
    """Do in small what the boot will do; return why it cannot be done."""
    place = work / "trial"
    place.mkdir()
    tried = subprocess.run(
        [*_first(group), "sh", "-c", _TRIAL, "sh", str(place)], capture_output=True, text=True, check=False
    )
    return tried.stderr.strip() if tried.returncode else ""


def _first(group: Path) -> tuple[str, ...]:
    """How the first process of new namespaces is started: in its cgroup, which becomes the root of all that it sees."""
    enter = f'echo 0 >{shlex.quote(str(group))}/cgroup.procs && exec setpriv --pdeathsig KILL unshare "$@"'
    return ("sh", "-c", enter, "sh", *_NAMESPACES, "--")


@contextlib.contextmanager
def _machine(work: Path, group: Path) -> Iterator[tuple[int, float]]:
    """A machine that is up: its first process, and when its boot began."""
    place, log = work / "machine", work / "log"
    place.mkdir()
    systemd = next(path for path in _SYSTEMD if os.path.exists(path))
    begun = time.monotonic()
    with log.open("wb") as console:
        outer = subprocess.Popen(
            [*_first(group), "sh", _HERE / "root.sh", place, systemd, _REPOSITORY, sys.prefix, *_elsewhere()],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
        )
    first = 0
    try:
        while not _is_up(first):
            first = first or _child(outer.pid)
            if outer.poll() is not None or time.monotonic() > begun + _BOOT_LIMIT:
                jobs = subprocess.run(
                    _inside(first, "systemctl", "list-jobs"), capture_output=True, text=True, check=False
                )
                words = log.read_text(errors="replace")[-4000:]
                sys.exit(f"machine: it did not come up:\n{words}\n{jobs.stdout}")
            time.sleep(_POLL)
        yield first, begun
    finally:
        if first and outer.poll() is None:
            # With the first process the kernel kills all others of its namespace.
            os.kill(first, signal.SIGKILL)
        outer.kill()
        outer.wait()


def _elsewhere() -> list[str]:
    """What the command needs and an overlay of / does not show, since it lies on another mount."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mounts = [re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split()[4]) for line in lines]
    python = Path(sys.executable).resolve()
    wanted = (_REPOSITORY, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), python.parent)
    found: list[str] = []
    for path in map(str, wanted):
        below = max((mount for mount in mounts if f"{path}/".startswith(f"{mount.rstrip('/')}/")), key=len)
        if below != "/" and not any(f"{path}/".startswith(f"{other}/") for other in found):
            found.append(path)
    return found


def _child(pid: int) -> int:
    """The only child of a process, or 0."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(words[0]) if words else 0
    return 0


def _is_up(first: int) -> bool:
    with contextlib.suppress(OSError):
        if first and Path(f"/proc/{first}/comm").read_text() == "systemd\n":
            state = subprocess.run(
                _inside(first, "systemctl", "is-system-running"), capture_output=True, text=True, check=False
            )
            return state.stdout.strip() in {"running", "degraded"}
    return False


def _inside(first: int, *command: str) -> list[str]:
    flags = ("--mount", "--pid", "--cgroup", "--ipc", "--uts", "--net")
    return ["nsenter", "--target", str(first), *flags, "--", *command]


def _scope(command: list[str]) -> list[str]:
    """The command where it belongs to a unit of the machine, as all else in it."""
    run = ["systemd-run", "--scope", "--quiet", "--collect", "--unit=machine-command", "--"]
    return [*run, "env", "--chdir", str(_REPOSITORY), *command]


def _environment() -> Mapping[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    ours = {"AGENTD_MACHINE": "1", "HOME": "/root", "PATH": f"{sys.prefix}/bin:{_PATH}", "PYTHONDONTWRITEBYTECODE": "1"}
    return {"LANG": "C.UTF-8", **kept, **ours}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
