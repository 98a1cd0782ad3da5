"""Control groups, version 2 (cgroups(7)): what was started in one stays in it, whatever it clears, closes or leaves."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_OURS = Path("/proc/self/cgroup")
_DIVISION = ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control")
"""The files that belong to whoever may divide a cgroup."""
_LIMITS = {"cgroup.max.depth": 8, "cgroup.max.descendants": 256}
"""How far its owner may divide one: each part of it is looked into at each look."""


class Cgroup:
    """One cgroup; what is done to one that is not there (any more) does nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"<Cgroup {self.path}>"

    def make(self, owner: tuple[int, int] | None) -> None:
        """Make it below its parent, with a new owner (uid and gid) who may divide it, but not leave it.

        Raises:
            OSError: if that cannot be done.
        """
        self.path.mkdir(mode=0o755, exist_ok=True)
        try:
            for name, limit in _LIMITS.items():
                _write(self.path / name, str(limit))
            if owner is not None:
                for place in (self.path, *(self.path / name for name in _DIVISION)):
                    os.chown(place, *owner)
        except OSError:
            self.remove()
            raise

    def own(self) -> None:
        """Take back what systemd has given to the user of a service: who may write there could leave what is below.

        Raises:
            OSError: if that cannot be done.
        """
        uid = os.geteuid()
        if self.path.stat().st_uid != uid:
            for place in (*self.path.iterdir(), self.path):
                if place.is_file() or place == self.path:
                    os.chown(place, uid, os.getegid())

    def admit(self, pid: int) -> None:
        """Move a process into it; what it starts from now on is born there.

        Raises:
            OSError: if that cannot be done, ProcessLookupError if there is no such process.
        """
        _write(self.path / "cgroup.procs", str(pid))

    def release(self, pid: int) -> bool:
        """Move a process out of it, into the one above; return whether it is not in it any more."""
        try:
            Cgroup(self.path.parent).admit(pid)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return True

    def members(self) -> frozenset[int]:
        """The pids of all that lives in it, and in all of its parts.

        Raises:
            OSError: if it is there and cannot be looked into, for want of a descriptor say.
        """
        return frozenset(pid for part in self._parts() for pid in _pids(part))

    def is_populated(self) -> bool:
        """Whether anything lives in it or in its parts, by the kernel's count: what moves between these, too.

        Raises:
            OSError: if it is there and cannot be looked into.
        """
        try:
            return "populated 1" in (self.path / "cgroup.events").read_text()
        except OSError as error:
            _raise_unless_gone(error)
            return False

    def kill(self) -> None:
        """SIGKILL to all of it at once: nothing in it can fork faster. Before Linux 5.14 this does nothing."""
        with contextlib.suppress(OSError):
            _write(self.path / "cgroup.kill", "1")

    def remove(self) -> bool:
        """Take it away with all its parts, if nothing lives in it; return whether it is gone."""
        with contextlib.suppress(OSError):
            for part in reversed(list(self._parts())):
                part.rmdir()
        return not self.path.exists()

    def _parts(self) -> Iterator[Path]:
        """It, and what its owner has made of it, parents first."""
        _open_up(self.path)
        for place, folders, _ in os.walk(self.path, onerror=_raise_unless_gone):
            yield Path(place)
            folders.sort()
            for folder in folders:
                _open_up(Path(place, folder))


def _write(path: Path, text: str) -> None:
    """Write to a file of the kernel's: where cgroups are not mounted any more, none is made that looks like it."""
    with open(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "w") as file:
        file.write(text)


def _pids(part: Path) -> Iterator[int]:
    try:
        text = (part / "cgroup.procs").read_text()
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # threaded: the cgroup above has all of its processes
            _raise_unless_gone(error)
        return
    yield from (int(word) for word in text.split() if word != "0")  # 0: of no pid namespace that we see


def _open_up(part: Path) -> None:
    """Open again what its owner has closed to himself, who is us where agents are our own user's."""
    for path, needed, mode in (
        (part, os.R_OK | os.W_OK | os.X_OK, 0o755),
        (part / "cgroup.procs", os.R_OK, 0o644),
        (part / "cgroup.events", os.R_OK, 0o444),
    ):
        if not os.access(path, needed):
            with contextlib.suppress(OSError):
                path.chmod(mode)


def _raise_unless_gone(error: OSError) -> None:
    if isinstance(error, PermissionError):  # closed again since it was opened: that is no bug, and not for ever
        raise BlockingIOError(errno.EAGAIN, error.strerror, error.filename) from error
    if error.errno not in {errno.ENOENT, errno.ENODEV}:
        raise error


def own_cgroup() -> Path | None:
    """Our own cgroup as a path in the file system, or None where there is no version 2 of it."""
    for line in _lines(_OURS):
        if line.startswith("0::/"):
            return cgroup_path(line.removeprefix("0::"))
    return None


def cgroup_path(name: str) -> Path | None:
    """The path of a cgroup that is called like that in /proc or by systemd, or None where its tree is not mounted."""
    for line in _lines(_MOUNTS):
        fields, _, kind = line.partition(" - ")
        if kind.split(" ", 1)[0] != "cgroup2":
            continue
        root, place = (_unescape(field) for field in fields.split(" ")[3:5])
        below = name.removeprefix(root.rstrip("/"))
        # Who was moved out of its own cgroup namespace is at `/../there`, which is not below any `/`.
        if name.startswith(root.rstrip("/")) and below[:1] in {"", "/"} and below.split("/")[1:2] != [".."]:
            return Path(place, below.lstrip("/"))
    return None


def _lines(path: Path) -> list[str]:
    """The lines of a file of the kernel's; none where it cannot be read, so that nobody knows of a cgroup."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
