"""The lifeline: the FIFO by which an attempt says `start`, `blocked`, `exit` and, by closing, that it is gone.

What comes through it is the agent's word: bounded, and believed only where the kernel says the same.
"""

import contextlib
import os
import select
from pathlib import Path

import trio

MOST = 4096
"""Bytes that an attempt may say; more is not our script's."""
_PIPE = 1 << 16
"""Bytes that a FIFO holds."""
_DEAF_PAUSE = 0.1
"""Seconds after each of them: who never stops to speak is not worth a processor."""


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
        self._speaker: int | None = None
        # One descriptor to wait on for both, the FIFO and the launcher's death: somebody else who holds the FIFO
        # open cannot hide that the launcher is gone.
        self._epoll = select.epoll()
        self._fifo = -1
        try:
            self._open()
        except OSError:
            self._epoll.close()
            raise

    def watch(self, pidfd: int) -> None:
        """Take over the pidfd of the one whose death ends the lifeline, whoever else holds it open; the last counts.

        First the shell, which must live to start the launcher, then the launcher.

        Raises:
            OSError: if it cannot be watched; it is closed then, and who was watched before still is.
        """
        try:
            self._epoll.register(pidfd, select.EPOLLIN)
        except OSError:
            os.close(pidfd)
            raise
        self._forget_speaker()
        self._speaker = pidfd

    async def line(self, *, reopen: bool) -> str | None:
        """The next line, or None when nobody is left to say one; with `reopen`, wait for the next who might.

        Raises:
            LifelineJunkError: if more than 4 KB, or something that is not text, or has a NUL, was said.
            OSError: if it cannot be opened for the next who might; asked again, it is tried again.
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
                if self._speaker in self._ready():
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
        if b"\0" in line:  # which no path can have
            raise LifelineJunkError
        try:
            return line.decode()
        except UnicodeDecodeError:
            raise LifelineJunkError from None

    async def _next_writer(self, *, reopen: bool) -> bool:
        """Nobody holds the other end: wait for the first who does, or if one has left, for the next, if so wished."""
        ready = self._ready()
        if self._speaker in ready:
            return False
        if not ready.get(self._fifo, 0) & select.EPOLLHUP:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
        elif reopen:
            self._open()
        else:
            return False
        return True

    async def speaker_gone(self) -> None:
        """Wait for that death alone, deaf from now on: what is said is read away, or saying it would block."""
        self._deaf = True
        while not self._epoll.closed:
            ready = self._ready()
            if self._speaker in ready or (self._speaker is None and ready.get(self._fifo, 0) & select.EPOLLHUP):
                return
            if ready.get(self._fifo, 0) & select.EPOLLIN:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._fifo, _PIPE)
                await self._pause()
            elif self._speaker is not None and self._fifo in ready:
                await trio.lowlevel.wait_readable(self._speaker)  # nobody holds the other end: nothing to read away
            else:
                await trio.lowlevel.wait_readable(self._epoll.fileno())

    async def _pause(self) -> None:
        """Let others have their turn for a moment, unless that death comes first."""
        with trio.move_on_after(_DEAF_PAUSE):
            if self._speaker is None:
                await trio.sleep_forever()
            else:
                await trio.lowlevel.wait_readable(self._speaker)

    def has_writer(self) -> bool:
        """Whether somebody holds the other end now."""
        try:
            data = os.read(self._fifo, MOST)
        except BlockingIOError:
            return True
        self._buffer += data
        self._said += len(data)
        return bool(data)

    def has_word(self) -> bool:
        """Whether something was said that nobody has taken yet, as far as it has been read."""
        return bool(self._buffer)

    def close(self) -> None:
        """Give all descriptors back; a task that waits on them is woken with an error. May be called twice."""
        if not self._epoll.closed:
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()
            os.close(self._fifo)
            self._forget_speaker()

    def _open(self) -> None:
        # The new one before the old one is closed: where there is none to open any more, the old one stays ours.
        fresh = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self._epoll.register(fresh, select.EPOLLIN)
        except OSError:
            os.close(fresh)
            raise
        before, self._fifo = self._fifo, fresh
        if before >= 0:
            os.close(before)

    def _forget_speaker(self) -> None:
        if self._speaker is not None:
            if not self._epoll.closed:
                self._epoll.unregister(self._speaker)
            trio.lowlevel.notify_closing(self._speaker)
            os.close(self._speaker)
            self._speaker = None

    def _ready(self) -> dict[int | None, int]:
        return dict(self._epoll.poll(0))


def is_pid(word: str) -> bool:
    """Whether a word of the lifeline can be a pid."""
    return word.isdecimal() and len(word) < 10 and int(word) > 0  # noqa: PLR2004 - what the kernel counts up to


def exit_code(line: str) -> int:
    """What an `exit CODE` line says; LifelineJunkError for any other."""
    code = line.removeprefix("exit ")
    if code == line or not code.isdecimal() or len(code) > 3 or int(code) > 255:  # noqa: PLR2004 - of a byte
        raise LifelineJunkError
    return int(code)
