"""Run the three kinds of tests, visibly apart, and see that they leave no process behind.

As root, what depends on who runs it is run a second time as an ordinary user, in a copy that this user can read.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

_KINDS = {
    "unit": "pure pieces, and the daemon on a virtual clock",
    "tmux": "real tmux",
    "e2e": "the installed agentd as a process",
}
# Most tests wait more than they compute. A file's tests stay together: they share daemons.
# In CI nobody waits for them: fewer at once.
_WORKERS = "2" if os.environ.get("CI") else "3"
_OPTIONS = ("-q", "-p", "no:cacheprovider", "-n", _WORKERS, "--dist", "loadfile")
_NOBODY = 65534
_REPOSITORY = Path(__file__).resolve().parent.parent
_NOT_COPIED = (".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis")


def main() -> int:
    """Run everything, print a summary, and return the exit code."""
    # What a shell starts in the background ignores these, and so would all that the tests start.
    for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(ignored, signal.SIG_DFL)
    # Every process of the tests has this path in its environment, its arguments or its directory; a short one,
    # since sockets lie below it.
    top = Path(tempfile.mkdtemp(prefix="agentd.", dir="/tmp"))
    top.chmod(0o711)
    try:
        results = _run_both(top) if os.geteuid() == 0 else _run_all(_Pass("you", _directory(top, "t")), sys.stdout)
    finally:
        shutil.rmtree(top, ignore_errors=True)
    print("\n" + "\n".join(line for line, _ in results), flush=True)
    return 0 if all(passed for _, passed in results) else 1


class _Pass:
    """All kinds of tests as one user, in a place of its own."""

    def __init__(self, who: str, place: Path) -> None:
        self.who = who
        self.place = place
        self.user: int | None = None
        self.repository = _REPOSITORY
        self.venv = Path(sys.prefix)
        self.environ = {**os.environ, "TMPDIR": _scratch(place, "t")}

    def as_ordinary_user(self) -> None:
        """Run as nobody, in a copy."""
        self.user = _NOBODY
        self.repository, self.venv = _make_copy(self.place)
        self.environ = _ordinary_environ(self.place)


def _run_both(top: Path) -> list[tuple[str, bool]]:
    """Run as root and as an ordinary user: at the same time, or where nobody waits for it (CI), one after the other."""
    results = []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output, ThreadPoolExecutor(1) as beside:
        ordinary = _Pass("ordinary user", _directory(top, "o"))
        ordinary.as_ordinary_user()
        if not os.environ.get("CI"):
            pending = beside.submit(_run_all, ordinary, output)
        results += _run_all(_Pass("root", _directory(top, "t")), sys.stdout)
        results += _run_all(ordinary, sys.stdout) if os.environ.get("CI") else pending.result()
        output.seek(0)
        shutil.copyfileobj(output, sys.stdout)
    return results


def _run_all(run: _Pass, output: TextIO) -> list[tuple[str, bool]]:
    results = []
    environ = {**run.environ, "PATH": f"{run.venv / 'bin'}:{run.environ['PATH']}"}
    environ["PYTEST_DEBUG_TEMPROOT"] = environ["TMPDIR"]
    for kind, what in _KINDS.items():
        print(f"\n===== {kind} tests ({what}), as {run.who} =====\n", file=output, flush=True)
        begun = time.monotonic()
        done = subprocess.run(
            [run.venv / "bin" / "python", "-m", "pytest", *_OPTIONS, *_paths(kind, run.repository, run.user)],
            cwd=run.repository,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            user=run.user,
            group=run.user,
            extra_groups=None if run.user is None else [],
            check=False,
        )
        left = _end_leftovers(run.place)
        for line in left:
            print(f"left behind: {line}", file=output, flush=True)
        passed = done.returncode == 0 and not left
        verdict = "passed" if passed else "FAILED"
        results.append((f"{kind:<5} as {run.who:<14} {verdict} in {time.monotonic() - begun:.0f} s", passed))
    return results


def _directory(top: Path, name: str) -> Path:
    path = top / name
    path.mkdir()
    path.chmod(0o711)
    return path


def _paths(kind: str, repository: Path, user: int | None) -> list[str]:
    if kind != "unit" or user is None:
        return [f"tests/{kind}"]
    # The other pure pieces do not ask who they run as.
    files = sorted((repository / "tests" / kind).glob("test_*.py"))
    return [str(path) for path in files if "uid()" in path.read_text()]


def _end_leftovers(top: Path) -> list[str]:
    """Kill what the tests left behind, after a moment in which it may end by itself, and tell what it was."""
    deadline = time.monotonic() + 3
    while (left := _processes_of(top)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return [f"{pid} {words}" for pid, words in left.items()]


def _processes_of(top: Path) -> dict[int, str]:
    mark = os.fsencode(top)
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes()
            facts = words + (entry / "environ").read_bytes() + os.fsencode(os.readlink(entry / "cwd"))
        except OSError:
            # It has ended, or is another user's.
            continue
        if mark in facts:
            found[int(entry.name)] = words.replace(b"\0", b" ").decode(errors="replace")
    return found


def _scratch(top: Path, name: str) -> str:
    directory = top / name
    directory.mkdir()
    directory.chmod(0o1777)
    return str(directory)


def _ordinary_environ(top: Path) -> dict[str, str]:
    return {
        "HOME": _scratch(top, "home"),
        "LANG": "C.UTF-8",
        "PATH": os.environ["PATH"],
        "SHELL": shutil.which("bash") or "/bin/sh",
        "TMPDIR": _scratch(top, "u"),
    }


def _make_copy(top: Path) -> tuple[Path, Path]:
    """Copy the repository and its environment to where an ordinary user can read them: root's own places often are not.

    The interpreter is copied too, if need be.
    """
    repository, venv = top / "r", top / "r" / ".venv"
    shutil.copytree(_REPOSITORY, repository, symlinks=True, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    shutil.copytree(sys.prefix, venv, symlinks=True)
    moved = {sys.prefix: str(venv), str(_REPOSITORY): str(repository)}
    python = (venv / "bin" / "python").resolve()
    if not _ordinary_user_can_run(python):
        moved |= {sys.base_prefix: str(top / "p")}
        _copy_interpreter(python, top / "p")
        link = next(path for path in venv.glob("bin/python*") if os.path.isabs(os.readlink(path)))
        link.unlink()
        link.symlink_to(top / "p" / "bin" / python.name)
    # Where an environment lies is written in its scripts, its configuration and the path to what is editable.
    for path in [*venv.glob("bin/*"), venv / "pyvenv.cfg", *venv.glob("lib/python*/site-packages/*.pth")]:
        _replace(path, moved)
    for path in (repository, *repository.rglob("*")):
        os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)
    if not _ordinary_user_can_run(venv / "bin" / "python"):
        sys.exit(f"{python} runs for root only: take another, with  make test PYTHON=/path/to/python")
    return repository, venv


def _copy_interpreter(python: Path, target: Path) -> None:
    ignored = shutil.ignore_patterns("site-packages", "test", "config-*", "*.a")
    base = Path(sys.base_prefix)
    for part in ("bin", "lib"):
        shutil.copytree(base / part, target / part, symlinks=True, ignore=ignored)
    # An interpreter built with a shared library finds it by an absolute path in its binary.
    old, new = os.fsencode(base / "lib") + b"\0", os.fsencode(target / "lib")
    if len(new) < len(old):
        program = target / "bin" / python.name
        program.write_bytes(program.read_bytes().replace(old, new.ljust(len(old), b"\0")))


def _replace(path: Path, moved: Mapping[str, str]) -> None:
    if path.is_symlink():
        return
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        # A binary, which names no such path.
        return
    for old, new in moved.items():
        text = text.replace(old, new)
    path.write_text(text)


def _ordinary_user_can_run(python: Path) -> bool:
    try:
        tried = subprocess.run(
            [python, "-c", ""],
            cwd="/",
            user=_NOBODY,
            group=_NOBODY,
            extra_groups=[],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except PermissionError:
        return False
    return tried.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
