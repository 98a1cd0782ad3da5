"""The `Sessions` of the real world: attempts in the sessions of one tmux server, and what is remembered of them."""

import hashlib
import logging
import os
from collections.abc import Callable
from typing import Any

import attrs
import trio

from agentd.attempts import session
from agentd.attempts.attempt import TmuxAttempt
from agentd.attempts.cgroups import Cgroups
from agentd.attempts.leftovers import end_leftovers
from agentd.attempts.memory import Memory
from agentd.attempts.state import World, remembered_place
from agentd.errors import TmuxError, TmuxUnknownError
from agentd.lifecycle import State
from agentd.logs import OncePer
from agentd.processes.ending import Scanner
from agentd.resolve import Blocked, EffectiveAgent
from agentd.sessions import Attempt, AttemptRequest, RunNote
from agentd.settings import Settings
from agentd.tmux.connection import Tmux

_log = logging.getLogger("agentd.attempts.launch")


class TmuxSessions:
    """Attempts in the sessions of one tmux server."""

    def __init__(self, settings: Settings, tmux: Tmux, scanner: Scanner, wall: Callable[[], float]) -> None:
        instance = hashlib.sha256(os.fsencode(settings.tmux_socket)).hexdigest()[:12]
        self.world = World(
            settings=settings,
            tmux=tmux,
            scanner=scanner,
            wall=wall,
            instance=instance,
            cgroups=Cgroups(settings, tmux, instance),
        )
        self._memory = Memory(settings, instance)
        self._recovered = False
        self._say = OncePer()
        self._survivors: dict[str, tuple[RunNote, dict[str, Any], session.Found | None]] = {}

    async def recover(self) -> tuple[RunNote, ...] | None:
        """Find what an earlier agentd has left: its runs are to be taken over, everything else is ended.

        None: nobody knows yet, or it is not all ended; ask again.
        """
        try:
            notes = await self._recover()
        except (TmuxError, TmuxUnknownError, OSError) as error:
            if self._say("recovery", str(error)):
                _log.warning("nobody knows what an earlier agentd left behind, so nothing is launched yet: %s", error)
            return None
        self._recovered = notes is not None
        return notes

    async def _recover(self) -> tuple[RunNote, ...] | None:
        remembered = self._memory.read()
        found = await session.find_all(self.world.tmux, self.world.instance)
        # Of a run that nobody can read, and that has no session any more, nothing is left that could be somebody's.
        untouchable = remembered.unreadable & {one.run for one in found if one.run is not None}
        self.world.untouchable.update(untouchable)
        survivors = {}
        others = [one for one in found if one.run not in untouchable]
        for note, attempt in remembered.runs.values():
            mine = next((one for one in others if _is_of(one, note, attempt)), None)
            if mine is not None:
                others.remove(mine)
            survivors[note.run] = await self._heard(note, mine), attempt, mine
        attempts = {(note.run, note.status.attempt) for note, _, _ in survivors.values()}
        if not await end_leftovers(self.world, others, attempts, untouchable):
            return None
        for run in remembered.unreadable - untouchable:
            self.forget(run)
        self._survivors = survivors
        return tuple(note for note, _, _ in survivors.values())

    def adopt(self, request: AttemptRequest) -> Attempt:
        """The attempt that `recover` told of in the note of this run."""
        note, remembered, found = self._survivors.pop(request.run)
        attempt = TmuxAttempt(self.world, request, taken_over=True)
        attempt.take_over(note, remembered, found)
        return attempt

    def attempt(self, request: AttemptRequest) -> Attempt:
        """A new attempt; nothing happens before its `launch`."""
        return TmuxAttempt(self.world, request)

    def remember(self, note: RunNote, attempt: Attempt) -> None:
        """Have the next agentd know of this run, should this one be killed."""
        assert isinstance(attempt, TmuxAttempt), "attempts come from here"
        self._memory.write(note, attempt.state.to_json())

    def forget(self, run: str) -> None:
        """Nothing of this run is left."""
        self._memory.forget(run)

    def catch_up(self) -> tuple[str, ...]:
        """Do what could not be done for want of something, and tell what there is still not enough of."""
        if self._recovered:
            self._memory.catch_up(self.world.untouchable)
        return self._memory.warnings + self.world.scanner.shortages.warnings

    async def still_blocked(self, effective: EffectiveAgent, blocked: Blocked) -> bool:
        """Whether the cause is still there, as far as `stat`, or one question to tmux, can tell."""
        await trio.lowlevel.checkpoint()
        if blocked.reason == "tmux_unavailable":
            return not self.world.tmux.answers
        if blocked.reason == "session_taken":
            try:
                found = await session.find(self.world.tmux, effective.agent.session, self.world.instance)
            except (TmuxUnknownError, TmuxError):
                return True
            return found is not None and (found.run is None or found.run in self.world.untouchable)
        return bool(blocked.paths) and self.world.obstacles.same(effective.agent.name, blocked)

    async def _heard(self, note: RunNote, found: session.Found | None) -> RunNote:
        """The note, but where an attempt came up and ended while nobody listened: there is an end to hear of then."""
        if note.status.state is not State.STARTING or found is None:
            return note
        tag = f"{self.world.instance}/{note.run}/{note.status.attempt}"
        if await session.exit_said(self.world.tmux, found.place, tag) is None:
            return note
        return attrs.evolve(note, status=attrs.evolve(note.status, state=State.RUNNING))


def _is_of(found: session.Found, note: RunNote, attempt: dict[str, Any]) -> bool:
    """Whether a session is the one of a run; its mark is the agents' word, and where it was is ours."""
    return found.run == note.run and found.place_like(remembered_place(attempt)) is not None
