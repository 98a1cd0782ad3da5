"""The directories that agentd needs, made and judged before anything runs, and the locks that make it their owner."""

import contextlib
import fcntl
import logging
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from agentd.errors import StartupError, is_shortage, shortage_words
from agentd.settings import AgentUser, Settings

_UNTOUCHED = -1
_ASKING = 2.0
"""Seconds for an answer that takes two milliseconds."""
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_MAY_ANYTHING = stat.S_IRWXG | stat.S_IRWXO

_log = logging.getLogger(__name__)


def prepare_directories(settings: Settings) -> None:
    """Make the sockets' directories and the run directory where they are missing; what exists is never altered.

    StartupError: if one is not what it must be, or cannot be used by whom it is for.
    """
    if os.geteuid() == 0:
        _make_for_root(settings)
    else:
        for directory in (settings.tmux_socket.parent, settings.api_socket.parent):
            _make_private(directory)
    make_run_dir(settings)
    user = settings.agent_user
    switch = settings.switch_user
    _check_usable(settings.tmux_socket.parent, "-tmux-socket", user, "wx", switch=switch)
    _check_usable(settings.api_socket.parent, "-api-socket", user, "wx", switch=False)
    _check_usable(settings.run_dir, "-run-dir", user, "x", switch=switch)


def make_run_dir(settings: Settings) -> None:
    """Make the run directory where it is missing, at the start or since.

    StartupError: if it cannot be made, or what is there is not ours alone.
    """
    if os.geteuid() == 0:
        _make(settings.run_dir, 0o711)
    else:
        _make_private(settings.run_dir)
    _check_ours(settings.run_dir, _OTHERS_MAY_WRITE, "mend it, or choose another -run-dir")


@contextlib.contextmanager
def lock_sockets(settings: Settings) -> Iterator[None]:
    """Be the only agentd of these two sockets for as long as the context lasts.

    StartupError: if another agentd is.
    """
    with contextlib.ExitStack() as held:
        for flag, path in (("-tmux-socket", settings.tmux_socket), ("-api-socket", settings.api_socket)):
            _lock(path, flag, held)
        yield


def _lock(path: Path, flag: str, held: contextlib.ExitStack) -> None:
    """Lock a file beside the socket, where every other agentd of this socket looks, whatever else it was told.

    The agents own the place of the tmux socket. They cannot open a file that is root's alone, so that they cannot hold
    a lock against us; whatever else they put there is no lock. The file stays, and nothing is ever written to it.
    """
    place = path.with_name(f".{path.name}.agentd")
    try:
        lock = os.open(place, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        _log.warning("%s cannot be opened (%s): another agentd of %s would not be noticed", place, error.strerror, path)
        return
    held.callback(os.close, lock)
    found = os.fstat(lock)
    ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1
    if not ours or found.st_mode & _OTHERS_MAY_ANYTHING:
        _log.warning("%s is not ours alone (remove it): another agentd of %s would not be noticed", place, path)
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(found.st_ino)
        msg = f"another agentd (pid {holder}) owns {path}: stop that one, or give this one another {flag}"
        raise StartupError(msg) from None


def _holder(inode: int) -> str:
    """Who holds the lock of a file; only the inode tells, since file systems that have no device say another one."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
                return words[4]
    return "unknown"


def _make_for_root(settings: Settings) -> None:
    user = settings.agent_user
    admin = settings.admin_gid
    tmux_group = user.gid if admin is None else admin
    _make(settings.tmux_socket.parent, 0o750, uid=user.uid, gid=tmux_group)
    if admin is None:
        _make(settings.api_socket.parent, 0o755)
    else:
        _make(settings.api_socket.parent, 0o750, gid=admin)


def _make(directory: Path, mode: int, *, uid: int = _UNTOUCHED, gid: int = _UNTOUCHED) -> None:
    missing = [path for path in directory.parents if not os.path.lexists(path)]
    for path in reversed(missing):
        _make_one(path, 0o755 if os.geteuid() == 0 else 0o700)
    if not os.path.lexists(directory):
        _make_one(directory, mode, uid=uid, gid=gid)


def _make_one(directory: Path, mode: int, *, uid: int = _UNTOUCHED, gid: int = _UNTOUCHED) -> None:
    try:
        directory.mkdir(mode=0o700)
        # By descriptor: where others may write to the parent, the name may be another directory's by now.
        opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(opened).st_uid == os.geteuid():
                os.fchown(opened, uid, gid)
                os.fchmod(opened, mode)
        finally:
            os.close(opened)
    except FileExistsError:
        # Another agentd was faster; what it made is judged like everything that was there before.
        return
    except OSError as error:
        msg = f"{directory} cannot be made ({error.strerror}): make it, or choose another path"
        raise StartupError(msg) from error


def _make_private(directory: Path) -> None:
    _make(directory, 0o700)
    # Somebody else may have made this name in /tmp before us.
    shared = Path(f"/tmp/agentd-{os.geteuid()}")  # noqa: S108 - judged in the next lines
    if shared in (directory, *directory.parents):
        _check_ours(shared, _OTHERS_MAY_ANYTHING, "remove it, or set XDG_RUNTIME_DIR")


def _check_ours(directory: Path, forbidden: int, remedy: str) -> None:
    try:
        found = directory.lstat()
    except OSError as error:
        msg = f"{directory} cannot be read ({error.strerror}): {remedy}"
        raise StartupError(msg) from error
    if not stat.S_ISDIR(found.st_mode):
        problem = "is not a directory"
    elif found.st_uid != os.geteuid():
        problem = f"belongs to uid {found.st_uid} and not to us (uid {os.geteuid()})"
    elif found.st_mode & forbidden:
        problem = f"has mode {stat.S_IMODE(found.st_mode):04o}, which lets others in"
    else:
        return
    msg = f"{directory} {problem}: {remedy}"
    raise StartupError(msg)


def _check_usable(directory: Path, flag: str, user: AgentUser, wanted: str, *, switch: bool) -> None:
    who = user.name if switch else "us"
    if not os.path.isdir(directory):
        problem = "is not a directory"
    elif switch and directory.stat().st_uid == user.uid:
        return  # Theirs to open and to close, while we run as well: no agent shall keep agentd from its start.
    elif not (_user_can(user, directory, wanted) if switch else _we_can(directory, wanted)):
        problem = f"is not {'writable' if 'w' in wanted else 'accessible'} for {who}"
    else:
        return
    msg = f"{directory} {problem}: mend it, or choose another {flag}"
    raise StartupError(msg)


def _we_can(directory: Path, wanted: str) -> bool:
    return os.access(directory, os.X_OK | (os.W_OK if "w" in wanted else 0))


def _user_can(user: AgentUser, directory: Path, wanted: str) -> bool:
    # Asked as that user, since only the kernel knows about every directory on the way, access lists and mounts.
    tests = " && ".join(f'[ -{letter} "$1" ]' for letter in wanted)
    try:
        asked = subprocess.run(
            ["/bin/sh", "-c", tests, "sh", directory],
            user=user.uid,
            group=user.gid,
            extra_groups=user.groups,
            cwd="/",
            env={},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_ASKING,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True  # The process was the agents', who can stop it, and kill it: nothing is known.
    except OSError as error:
        remedy = shortage_words(error) if is_shortage(error) else "allow it to, or give -agent-user root"
        msg = f"root cannot become {user.name} here ({error.strerror}): {remedy}"
        raise StartupError(msg) from error
    return asked.returncode <= 0
