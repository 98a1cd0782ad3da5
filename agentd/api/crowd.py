"""The connections that the API's server has accepted: nothing public in hypercorn or trio leads to them or bounds them.

One that never speaks costs a descriptor for the idle time, and one that does not read its answers costs it for as long
as it likes: without a bound a few thousand of them would leave none for agents.
"""

import contextlib
import logging
import math
import os
import resource
import socket
from collections.abc import Iterator
from typing import Final, Self

import trio

_log = logging.getLogger(__name__)

_SHARE: Final = 4
"""Connections may take one in so many of the descriptors that this process may have."""
_LULL: Final = 60.0
"""Seconds without a crowd after which the next one is said again."""
_PAUSE: Final = 0.1
"""Seconds between two looks at a crowd."""


async def bound_crowd(listener: socket.socket, most: int) -> None:
    """Cut connections off while there are too many: first those whose clients left, then the oldest."""
    crowd = _Crowd(listener, most)
    # A descriptor of its own, since a second task that waits for one is an error.
    with listener.dup() as own, crowd:
        while True:
            await trio.lowlevel.wait_readable(own)
            await trio.sleep(_PAUSE)
            crowd.thin_out()


def cut_off_all(listener: socket.socket) -> None:
    """Shut down every accepted connection, so that each wait on one ends."""
    for descriptor in _accepted(listener.getsockname()):
        _shut_down(descriptor)


class _Crowd:
    """Who is connected, the oldest first, as far as that was looked at."""

    def __init__(self, listener: socket.socket, most: int) -> None:
        self._listener = listener
        self._most = most
        self._seen: dict[int, int] = {}
        """From the inode to the descriptor."""
        self._spare: int | None = None
        """Given back for the listing, which takes one where there may be no other."""
        self._last_crowded = -math.inf

    def __enter__(self) -> Self:
        self._take_spare()
        return self

    def __exit__(self, *_: object) -> None:
        self._give_spare()

    def thin_out(self) -> None:
        """Cut off who is too many."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = min(self._most, max(1, soft // _SHARE))
        self._give_spare()
        try:
            if len(os.listdir("/proc/self/fd")) <= most:
                return
            accepted = self._look()
        except OSError:
            return  # Descriptors have run out elsewhere; the next look may have one.
        finally:
            self._take_spare()
        surplus = len(accepted) - most
        if surplus <= 0:
            return
        now = trio.current_time()
        began, self._last_crowded = now - self._last_crowded > _LULL, now
        if began:
            _log.warning(
                "the API has more than %d connections: those of clients that left and the oldest ones are closed", most
            )
        for descriptor in sorted(accepted, key=lambda descriptor: not _has_left(descriptor))[:surplus]:
            _shut_down(descriptor)

    def _look(self) -> list[int]:
        found = {os.fstat(descriptor).st_ino: descriptor for descriptor in _accepted(self._listener.getsockname())}
        known = {inode: found[inode] for inode in self._seen if inode in found}
        self._seen = known | found
        return list(self._seen.values())

    def _take_spare(self) -> None:
        with contextlib.suppress(OSError):
            self._spare = os.dup(self._listener.fileno())

    def _give_spare(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None


def _accepted(address: str) -> list[int]:
    """Return the descriptors of the sockets accepted at this address."""
    return [descriptor for descriptor in map(int, os.listdir("/proc/self/fd")) if _is_accepted(descriptor, address)]


def _is_accepted(descriptor: int, address: str) -> bool:
    try:
        if not os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:"):
            return False
        with _borrowed(descriptor) as found:
            return (
                found.family == socket.AF_UNIX
                and found.getsockname() == address
                and not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            )
    except OSError:
        return False  # It was the listing's own.


def _has_left(descriptor: int) -> bool:
    """Tell whether its client closed the connection and everything that it sent was read."""
    with _borrowed(descriptor) as found:
        try:
            return not found.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True


def _shut_down(descriptor: int) -> None:
    with contextlib.suppress(OSError), _borrowed(descriptor) as found:
        found.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Use somebody else's descriptor as a socket: without a duplicate, for which there may be no room."""
    found = socket.socket(fileno=descriptor)
    try:
        yield found
    finally:
        found.detach()
