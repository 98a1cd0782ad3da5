"""The lifeline: the FIFO by which an attempt says `start`, `blocked`, `exit` and, by closing, that it is gone.

What comes through it is the agent's word: bounded, and believed only where the kernel says the same.
"""

import os
import select
from pathlib import Path

import trio

MOST = 4096
"""Bytes that an attempt may say; more is not our script's."""


class LifelineJunkError(Exception):
    """Something was said that the launch script never says: listen no more."""


class Lifeline:
    """The reading end. One task reads at a time; a cancelled read loses nothing."""

    def __init__(self, path: Path) -> None:
        """Open a FIFO that exists.

        Raises:
            OSError: if it cannot be opened.
        """
        self._path = path
        self._said = 0
        self._buffer = b""
        self._deaf = False
        self._launcher: int | None = None
        # One descriptor to wait on for both, the FIFO and the launcher's death: somebody else who holds the FIFO
        # open cannot hide that the launcher is gone.
        self._epoll = select.epoll()
        self._fifo = -1
        self._open()

    def watch(self, pidfd: int) -> None:
        """Take over the launcher's pidfd: its death ends the lifeline, whoever else holds it open."""
        self._launcher = pidfd
        self._epoll.register(pidfd, select.EPOLLIN)

    async def line(self, *, reopen: bool) -> str | None:
        """The next line, or None when nobody is left to say one; with `reopen`, wait for the next who might.

        Raises:
            LifelineJunkError: if more than 4 KB, or something that is not text, was said.
        """
        await trio.lowlevel.checkpoint()
        if self._deaf:
            raise LifelineJunkError
        while (line := self._take_line()) is None:
            if self._said > MOST:
                raise LifelineJunkError
            try:
                data = os.read(self._fifo, MOST)
            except BlockingIOError:  # a writer lives, and says nothing
                if self._launcher in self._ready():
                    return None
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                continue
            self._buffer += data
            self._said += len(data)
            if not data and not await self._next_writer(reopen=reopen):
                return None
        return line

    def _take_line(self) -> str | None:
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            return None
        self._buffer = rest
        try:
            return line.decode()
        except UnicodeDecodeError:
            raise LifelineJunkError from None

    async def _next_writer(self, *, reopen: bool) -> bool:
        """Nobody holds the other end: wait for the first who does, or if one has left, for the next, if so wished."""
        ready = self._ready()
        if self._launcher in ready:
            return False
        if not ready.get(self._fifo, 0) & select.EPOLLHUP:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
        elif reopen:
            self._open()
        else:
            return False
        return True

    async def launcher_gone(self) -> None:
        """Wait for the launcher's death alone, deaf from now on to whatever else is said."""
        self._deaf = True
        if self._launcher is not None and not self._epoll.closed:
            await trio.lowlevel.wait_readable(self._launcher)

    def has_writer(self) -> bool:
        """Whether somebody holds the other end now."""
        try:
            data = os.read(self._fifo, MOST)
        except BlockingIOError:
            return True
        self._buffer += data
        self._said += len(data)
        return bool(data)

    def close(self) -> None:
        """Give all descriptors back; a task that waits on them is woken with an error. May be called twice."""
        if not self._epoll.closed:
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()
            os.close(self._fifo)
            if self._launcher is not None:
                os.close(self._launcher)

    def _open(self) -> None:
        # The new one before the old one is closed: where there is none to open any more, the old one stays ours.
        before, self._fifo = self._fifo, os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._epoll.register(self._fifo, select.EPOLLIN)
        if before >= 0:
            os.close(before)

    def _ready(self) -> dict[int | None, int]:
        return dict(self._epoll.poll(0))
