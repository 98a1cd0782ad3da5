"""Reading files that others put there: regular ones only, bounded, and without ever waiting."""

import errno
import os
import stat
from pathlib import Path
from typing import Final

_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Stat = tuple[int, ...]


def read_regular(path: str | Path, limit: int, *, folder: int | None = None) -> tuple[bytes, os.stat_result]:
    """Read a whole regular file through symlinks, never waiting for anything.

    OSError: it cannot be read, is not a regular file, or is larger than `limit`; `strerror` says what was found.
    """
    # Looked at before it is opened, since opening a device can act on it, and again after, since it may have changed.
    _require_regular(os.stat(path, dir_fd=folder))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=folder)
    try:
        found = os.fstat(descriptor)
        _require_regular(found)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit} bytes")
    return data, found


def stat_key(found: os.stat_result) -> Stat:
    """Return what changes when a file does."""
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_mode, found.st_uid)


def _require_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something unknown")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file")
