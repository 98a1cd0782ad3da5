"""Parsing the card where nobody has to wait for it: what is not quick for sure in a thread, and not for ever."""

import ctypes
import sys
import threading
from typing import Final

import trio

from agentd.card.card import Card, parse_card
from agentd.errors import CardError, Problem

_QUICK_BYTES: Final = 2048
_QUICK_DOTS: Final = 20
_QUICK_DOTS_IN_LINE: Final = 3
"""tomlkit's time doubles with each part of a dotted key that comes twice: a card of 200 bytes can take for ever."""
_LONGEST: Final = 60.0
"""Seconds after which a card is refused instead; a thousand agents take one."""
_PAUSE: Final = 1.0
"""Seconds between two interruptions, should the first one get lost."""
_SWITCH: Final = 0.005
"""Python's own seconds between two switches of threads."""
_SHORT_SWITCH: Final = 0.0002
"""The same while a card is parsed in a thread: a stop, which reads much of /proc, took seconds longer."""


async def parse(data: bytes) -> Card | CardError:
    """Parse the card; no other task waits for longer than a fraction of a second meanwhile."""
    if _is_quick(data):
        return _parse(data)
    return await trio.to_thread.run_sync(_Bounded(data).parse, abandon_on_cancel=True)


def _is_quick(data: bytes) -> bool:
    """Tell what is parsed within a tenth of a second, whatever is wrong with it; most of what is not is, too."""
    return (
        len(data) <= _QUICK_BYTES
        and data.count(b".") <= _QUICK_DOTS
        and all(line.count(b".") <= _QUICK_DOTS_IN_LINE for line in data.split(b"\n"))
    )


class _TooLongError(BaseException):
    """Raised in the thread from outside; not an Exception, of which a parser may catch some."""


class _Bounded:
    """One parse in a thread of its own, which it interrupts when it takes too long."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._raised = False
        self._over = threading.Event()

    def parse(self) -> Card | CardError:
        """Parse, hindering other threads little: after each system call they wait for this one to be switched."""
        interrupter = threading.Thread(target=self._interrupt, daemon=True)
        interrupter.start()
        sys.setswitchinterval(_SHORT_SWITCH)
        try:
            try:
                self._thread = threading.get_ident()
                return _parse(self._data)
            finally:
                self._leave()
        except _TooLongError:
            text = f"it takes longer than {_LONGEST:g} s to be read; write fewer dotted keys and tables"
            return CardError((Problem("card", text),))
        finally:
            self._leave()  # again, for the interruption that has come in the midst of it
            sys.setswitchinterval(_SWITCH)
            self._over.set()
            interrupter.join()

    def _leave(self) -> None:
        """From here on this thread is somebody else's, and an interruption on its way is taken back."""
        with self._lock:
            self._thread = None
            if self._raised:
                self._raised = False
                _take_back(threading.get_ident())

    def _interrupt(self) -> None:
        """Again and again: what is raised while the garbage collector has something finalised is lost."""
        pause = _LONGEST
        while not self._over.wait(pause):
            pause = _PAUSE
            with self._lock:
                if self._thread is not None:
                    self._raised = True
                    _raise_in(self._thread, _TooLongError)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise this in a thread, at its next step in Python; None takes back what was not raised yet."""
    what = ctypes.py_object() if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)


def _take_back(thread: int) -> None:
    """Take back what was raised in this thread, our own, and has perhaps not come yet.

    CPython looks for it at each step from then on, and 3.11 for ever in one that is traced, until another one has come.
    """
    _raise_in(thread, None)
    try:
        _raise_in(thread, _TooLongError)
        for _ in range(1000):
            pass
    except _TooLongError:
        pass


def _parse(data: bytes) -> Card | CardError:
    try:
        return parse_card(data)
    except CardError as error:
        return error
