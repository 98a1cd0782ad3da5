"""What the machine has run out of: waited for, and said once while it lasts."""

import logging
from collections.abc import Callable
from typing import TypeVar

import trio

from agentd.errors import is_shortage, shortage_words

PAUSE = 0.05
"""Seconds until what could not be looked at is looked at again."""
_OVER = 6.0
"""Seconds without a failure after which a shortage is over: what has given up tries again at the next look."""

_T = TypeVar("_T")

_log = logging.getLogger("agentd.shortages")


class Shortages:
    """The shortages that keep agentd from looking at what it has to know."""

    def __init__(self) -> None:
        self._noted: dict[str, float] = {}

    def note(self, error: OSError) -> None:
        """Say it, unless it has been said and is not over yet; any other error is raised."""
        if not is_shortage(error):
            raise error
        words = shortage_words(error)
        self._forget()
        if words not in self._noted:
            _log.warning("%s; agentd goes on, and waits where it cannot look", words)
        self._noted[words] = trio.current_time()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What there is not enough of just now."""
        self._forget()
        return tuple(self._noted)

    async def outlast(self, look: Callable[[], _T]) -> _T:
        """Do something at once, or as soon as there is enough for it: what cannot be looked at is not gone."""
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return look()
            except OSError as error:
                self.note(error)
            await trio.sleep(PAUSE)

    def _forget(self) -> None:
        now = trio.current_time()
        for words in [words for words, noted in self._noted.items() if now - noted > _OVER]:
            del self._noted[words]
            _log.info("over: %s", words)
