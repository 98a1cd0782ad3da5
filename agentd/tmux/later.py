"""What tmux is still to do, and could not be asked for just then: done as soon as it answers again."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from agentd.errors import TmuxError, TmuxUnknownError

_PAUSE: Final = 1.0
"""Seconds until what had no answer is asked again."""

_log = logging.getLogger(__name__)

Job = Callable[[], Awaitable[object]]


class Later:
    """Jobs by what they are about; of two about the same, the later one has it all to do."""

    def __init__(self, is_halted: Callable[[], bool]) -> None:
        """`is_halted` tells whether the server stands still, so that nothing need be asked."""
        self._is_halted = is_halted
        self._jobs: dict[str, Job] = {}
        self._more = trio.Event()

    def add(self, about: str, job: Job) -> None:
        """Have it done: at once, or later, or at the end of the server; twice perhaps, and until it is known to be."""
        self._jobs[about] = job
        more, self._more = self._more, trio.Event()
        more.set()

    async def work(self) -> None:
        """Do what there is, and wait for more of that, for ever."""
        while True:
            for about, job in tuple(self._jobs.items()):
                if self._is_halted() or not await _try(job):
                    continue
                if self._jobs.get(about) is job:
                    del self._jobs[about]
            if self._jobs:
                await trio.sleep(_PAUSE)
            else:
                await self._more.wait()

    async def finish(self) -> None:
        """Try each once more, since there is no later any more."""
        for job in tuple(self._jobs.values()):
            await _try(job)


async def _try(job: Job) -> bool:
    """Whether it is over: done, or refused by tmux, which is an answer, too."""
    try:
        await job()
    except TmuxUnknownError:
        return False
    except TmuxError as error:
        _log.warning("what tmux was still to do failed: %s", error)
    return True
