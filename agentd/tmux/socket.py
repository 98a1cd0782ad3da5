"""The tmux server's socket. Its directory belongs to the agents, who can swap what is in it: no name is followed."""

import os
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from agentd.errors import StartupError

_MODE = 0o770

Identity = tuple[int, int]
"""What names one socket, and none that was made later."""


def refuse_other_file(path: Path, agents: int | None = None) -> None:
    """Spare what is no socket: tmux would delete it to put its own there. What is the agents' own is theirs to lose."""
    with suppress(OSError):
        found = os.lstat(path)
        if not stat.S_ISSOCK(found.st_mode) and found.st_uid != agents:
            message = f"{path} is not a socket; remove it, or give another -tmux-socket"
            raise StartupError(message)


def share_socket(path: Path, owner: int, group: int | None) -> str:
    """Give a socket that belongs to `owner` our mode and group; return what stands against it, or nothing.

    OSError: if there is none, or it cannot be changed.
    """
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISSOCK(found.st_mode):
            return f"{path} is not a socket"
        if found.st_uid != owner:
            return f"{path} belongs to uid {found.st_uid}, not to uid {owner}"
        same = f"/proc/self/fd/{descriptor}"
        if group is not None:
            os.chown(same, -1, group)
        os.chmod(same, _MODE)
    finally:
        os.close(descriptor)
    return ""


def socket_identity(path: Path, owner: int) -> Identity | None:
    """Name the socket of `owner` that is there now; None when there is none."""
    with suppress(OSError), _directory(path) as directory:
        found = os.lstat(path.name, dir_fd=directory)
        if stat.S_ISSOCK(found.st_mode) and found.st_uid == owner:
            return found.st_dev, found.st_ino
    return None


def remove_socket(path: Path, owner: int, identity: Identity) -> None:
    """Remove the socket of a server that is gone, unless another one took its place: tmux leaves it behind.

    Who swaps it between the look and the removal loses another file of the same directory, which is theirs.
    """
    if socket_identity(path, owner) == identity:
        with suppress(OSError), _directory(path) as directory:
            os.unlink(path.name, dir_fd=directory)


def is_missing(path: Path) -> bool:
    """Whether there is no socket, as far as that can be told without following a link."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return True
    return not stat.S_ISSOCK(mode) and not stat.S_ISLNK(mode)


def make_way(path: Path, owner: int) -> str:
    """Undo what `owner` may have done to keep a server from its socket; return what was done, or nothing.

    Only to directories that are his: that of the socket is opened for him, one in the socket's place gets another name.
    All else in that place tmux itself deletes.
    """
    done = []
    with suppress(OSError), _directory(path) as directory:
        around = os.fstat(directory)
        if around.st_uid == owner and around.st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(f"/proc/self/fd/{directory}", stat.S_IMODE(around.st_mode) | stat.S_IRWXU)
            done.append(f"{path.parent} was closed to its owner, and is open again")
        found = os.lstat(path.name, dir_fd=directory)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == owner:
            aside = f".{path.name}.{token_hex(4)}"
            os.rename(path.name, aside, src_dir_fd=directory, dst_dir_fd=directory)
            done.append(f"{path} was a directory, and is {aside} now")
    return "; ".join(done)


@contextmanager
def _directory(path: Path) -> Generator[int]:
    descriptor = os.open(path.parent, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
