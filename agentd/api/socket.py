"""The API's Unix socket: bound by us, with its mode from birth, and owned by one agentd only."""

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from agentd.errors import StartupError

BACKLOG = 100
"""Clients that wait while nobody accepts: while hypercorn is imported, or started again."""

_PATH_BYTES = 107  # What sockaddr_un takes, without the closing NUL.


def bind_api_socket(path: Path, *, mode: int = 0o660, gid: int | None) -> socket.socket:
    """Return a listening socket at `path`, of this mode, and of this group if there is one, from its first moment.

    A socket on which nobody listens any more is replaced. Clients can connect at once: they wait for `serve_api`.

    Raises:
        StartupError: if somebody listens there, if something else is there, or if no socket can be made there.

    """
    length = len(os.fsencode(path))
    if length > _PATH_BYTES:
        message = (
            f"the API socket's path {path} has {length} bytes where the system takes {_PATH_BYTES}: "
            "choose a shorter -api-socket"
        )
        raise StartupError(message)
    try:
        _make_room(path)
        return _bind(path, mode, gid)
    except OSError as error:
        raise StartupError(_why_not_bound(path, error)) from error


def socket_identity(path: Path) -> tuple[int, int]:
    """Return what tells the socket at `path` from any other one for as long as it is open: its device and inode."""
    found = path.lstat()
    return found.st_dev, found.st_ino


def remove_api_socket(path: Path, identity: tuple[int, int]) -> None:
    """Remove the socket at `path` if it still is the one of that identity; to be called before it is closed."""
    with contextlib.suppress(FileNotFoundError):
        if socket_identity(path) == identity:
            path.unlink()


def _make_room(path: Path) -> None:
    """Remove a socket that nobody listens on; raise StartupError at anything else that is there."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        message = f"the API socket's path {path} is taken by something that is no socket: move it away"
        raise StartupError(message)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        answer = probe.connect_ex(os.fspath(path))
    if answer == errno.ECONNREFUSED:
        path.unlink(missing_ok=True)
    elif answer in {0, errno.EAGAIN}:  # EAGAIN: its backlog is full.
        message = f"another agentd or program owns the API socket {path}: stop it or choose another -api-socket"
        raise StartupError(message)
    elif answer != errno.ENOENT:
        message = f"cannot tell who owns the socket {path} ({os.strerror(answer)}): choose another -api-socket"
        raise StartupError(message)


def _bind(path: Path, mode: int, gid: int | None) -> socket.socket:
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        # Linux gives the new file the mode of the socket's own inode, less the umask: it never has more than it shall
        # have, and the umask, which belongs to all threads, stays alone. chmod gives back what the umask took, and
        # nobody can connect before listen().
        os.fchmod(sock.fileno(), mode)
        sock.bind(os.fspath(path))
        undo.callback(path.unlink, missing_ok=True)
        if gid is not None:
            _give_to_group(path, gid)
        path.chmod(mode)
        sock.listen(BACKLOG)
        undo.pop_all()
    return sock


def _give_to_group(path: Path, gid: int) -> None:
    try:
        os.chown(path, -1, gid, follow_symlinks=False)
    except PermissionError as error:
        message = f"cannot give the API socket {path} to group {gid}, of which this user is no member: see -admin-group"
        raise StartupError(message) from error


def _why_not_bound(path: Path, error: OSError) -> str:
    directory = path.parent
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return f"the API socket's directory {directory} is missing: make it or choose another -api-socket"
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"the API socket's directory {directory} cannot be written to: mend that or choose another -api-socket"
    return f"cannot make the API socket {path}: {error.strerror}"
