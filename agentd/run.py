"""One agent's life: attempts, backoff, timeout, stop. One nursery, one cancel scope, for one effective agent.

Only the cancellation of a run's scope stops an agent, whatever the cause: a changed card, a removal, a shutdown,
a timeout. The run then awaits its stop, which owns a shield with a bound.
"""

import logging
import math
from collections.abc import Callable
from typing import Any

import attrs
import trio

from agentd.announcer import Announcer
from agentd.interrupt import interrupt
from agentd.lifecycle import Decision, Event, Exit, How, State, decide
from agentd.looks import Looks
from agentd.plan import CHANGED, REMOVED
from agentd.resolve import Blocked, EffectiveAgent
from agentd.sessions import Attempt, AttemptRequest, LaunchBlockedError, NeverStartedError, RunNote, Sessions
from agentd.status import AgentStatus, StatusStore

STOP_LIMIT = 30.0
"""Seconds that a stop may take beyond the grace period: the bound of its shield."""
LAST_WORD = 1.0
"""Seconds that a swept attempt's launcher has to report the exit."""

SHUTDOWN = "shutdown"
TIMEOUT = "timed_out"

_log = logging.getLogger("agentd.run")


@attrs.frozen(kw_only=True)
class Surroundings:
    """What every run shares with the others."""

    sessions: Sessions
    store: StatusStore
    wall: Callable[[], float]
    """The time of day in Unix seconds, for people; never used to measure."""
    launches: trio.CapacityLimiter
    """Places for launches under way at once."""
    looks: Looks
    hurry: trio.Event
    """Set when stops shall not wait for grace periods any longer."""
    keeps_agents: Callable[[], bool] = lambda: False
    """Whether a shutdown leaves the agents to the next agentd."""


class Run:
    """The supervision of one effective agent, across restarts, until its end."""

    def __init__(
        self,
        effective: EffectiveAgent,
        run_id: str,
        around: Surroundings,
        note: RunNote | None = None,
        *,
        known: bool = True,
    ) -> None:
        """Begin a run, or with a note, go on with one of an agentd that was killed.

        Of the effective agent, then, no more may be `known` than what the note says.
        """
        self.effective = effective
        self.known = known
        self._id = run_id
        self._around = around
        self._note = note
        self._scope = trio.CancelScope()
        self._wish: str | None = None
        self._cause: str | None = None
        self._attempt: Attempt | None = None
        self._number = self._restarts = self._doublings = 0
        self._typed = True
        self._next_restart: float | None = None
        self._started: float | None = None
        self._time_limit = trio.CancelScope()
        self._trouble: str | None = None
        agent = effective.agent
        status = AgentStatus(
            name=agent.name,
            session=agent.session,
            type=agent.type,
            harness=agent.harness,
            wanted="running",
            state=State.WAITING,
            reason="queued",
            message="Waits for a place among the launches under way.",
            since=around.wall(),
            digest=effective.digest,
        )
        if note is not None:
            status = attrs.evolve(note.status, wanted="running")
            self._take_over(note)
        # Here and not in its task: tasks begin in any order, and the agents have the card's.
        self._announcer = Announcer(status, around.store)

    def __repr__(self) -> str:
        return f"<Run {self._id} of {self._status.name!r}, {self._status.state}, wish {self._wish}>"

    @property
    def _status(self) -> AgentStatus:
        return self._announcer.status

    def stop(self, cause: str) -> None:
        """Begin to end the run on somebody's wish; the first wish is the one that is remembered."""
        if self._wish is None:
            self._wish = cause
            self._scope.cancel(cause)

    async def live(self) -> None:
        """Live until the policy is content or exhausted, or the run is stopped. A bug ends this run only."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._supervise)
        except* Exception:  # noqa: BLE001 - the reason is below
            # The one barrier against our own bugs: loud, and it costs one agent. The stop is part of the cost.
            _log.exception("agent=%s: a bug in agentd ended its run", self._status.name)
            await self._stop_after_bug()

    async def end_session(self) -> bool:
        """End what an ended run has kept: its session, and whatever an earlier stop could not finish. Bounded.

        Return whether nothing of it is left; until then nothing may take its place.
        """
        if self._attempt is None:
            return True
        bug: Exception | None = None
        trouble = f"its session could not be ended within {STOP_LIMIT:g} s"
        try:
            with trio.move_on_after(STOP_LIMIT, shield=True):
                left = await self._attempt.sweep()
                await self._attempt.close()
                if not left:
                    self._around.sessions.forget(self._id)
                    return True
                trouble = _left_behind(left)
        except Exception as error:  # noqa: BLE001 - the same barrier as around its life: a bug costs one agent
            bug, trouble = error, f"a bug in agentd keeps its session from being ended: {error!r}"
        if trouble != self._trouble:
            self._trouble = trouble
            _log.error("agent=%s: %s", self._status.name, trouble, exc_info=bug)
            message = f"{trouble[0].upper()}{trouble[1:]}; agentd tries again at each look."
            self._announcer.publish(message=message, error=message)
        return False

    def recognise(self, effective: EffectiveAgent) -> None:
        """Learn what the effective agent of this run is, of which only the digest was known."""
        self.effective, self.known = effective, True

    async def _supervise(self) -> None:
        with self._time_limit:
            try:
                await self._attempts()
            except trio.Cancelled:
                # Noted now: read after the stop, the scopes' flags are wrong when two causes overlap.
                timed_out = self._time_limit.deadline <= trio.current_time()
                self._cause = self._wish or (TIMEOUT if timed_out else SHUTDOWN)
                if self._cause == SHUTDOWN and self._around.keeps_agents():
                    self._leave()
                elif self._cause == TIMEOUT and await self._ended_unheard():
                    self._cause = None
                else:
                    await self._stop(self._cause)
                raise
        if self._cause == TIMEOUT:
            seconds = self.effective.agent.timeout
            message = f"Timed out {seconds:g} s after its first launch. It runs again when its entry changes."
            self._move(Event.TIMED_OUT, reason=TIMEOUT, message=message, error=message)
            self._time_limit.deadline = math.inf  # it is over, for the next agentd, too
            self._remember()

    async def _attempts(self) -> None:
        again = True
        ended: Exit | None = None
        if self._note is not None:
            again, ended = await self._go_on(self._note)
        while again:
            if ended is None:
                ended = await self._launch(None)
            again = ended is None or await self._follow(ended)
            ended = None

    def _take_over(self, note: RunNote) -> None:
        """Be where the run was when its agentd was killed."""
        self._number, self._restarts, self._doublings = note.status.attempt, note.status.restarts, note.doublings
        self._typed, self._next_restart, self._started = note.typed, note.next_restart, note.started
        if note.deadline is not None:
            self._time_limit.deadline = note.deadline
        self._attempt = self._around.sessions.adopt(self._request())
        facts = note.status.name, note.status.state, note.status.attempt, note.status.pid or "-"
        _log.info("agent=%s state=%s attempt=%d pid=%s: taken over from an earlier agentd", *facts)

    async def _go_on(self, note: RunNote) -> tuple[bool, Exit | None]:
        """Go on with the attempt that was the last one: whether there is more to come, and its end if it has one."""
        attempt, state = self._attempt, note.status.state
        assert attempt is not None, "it was taken over"
        if state in {State.STARTING, State.RUNNING, State.STOPPING}:
            ended = await (self._launch(attempt) if state is State.STARTING else attempt.ended())
            await self._known(ended)
            return True, ended
        await self._swept(attempt)
        if state in {State.COMPLETED, State.FAILED}:
            return False, None
        if self._next_restart is not None:
            await trio.sleep_until(self._next_restart)
            self._restarts += 1
        await self._known(None)
        return True, None

    async def _known(self, ended: Exit | None) -> None:
        """Wait until it is known what to do after an end, or what to launch."""
        if not self.known and ended is not None:
            message = f"{ended}; what follows waits until its entry, prompt and secrets can be read again."
            self._announcer.publish(running=False, pid=None, exit=ended, message=f"{message[0].upper()}{message[1:]}")
        while not self.known:
            await self._around.looks.next()

    async def _launch(self, attempt: Attempt | None) -> Exit | None:
        """Launch an attempt, or a new one, and await its end; None where something was in the way, and may be gone."""
        blocked: Blocked | None = None
        async with self._around.launches:
            began = trio.current_time()
            if self._time_limit.deadline == math.inf and self.effective.agent.timeout is not None:
                self._set_deadline(began + self.effective.agent.timeout)
            attempt = attempt or self._begin()
            self._remember()  # before anything is launched: a launch of which nobody knows could be doubled
            try:
                pid = await attempt.launch()
            except LaunchBlockedError as error:
                blocked = error.blocked
            except NeverStartedError as error:
                self._typed = False
                lasted = trio.current_time() - began
                return Exit(how=How.NEVER_STARTED, at=self._around.wall(), duration=lasted, detail=str(error))
            else:
                self._started = trio.current_time()
                wall = self._around.wall()
                self._move(Event.STARTED, message="", pid=pid, running=True, started_at=wall, attempt=self._number)
                self._remember()
        if blocked is not None:
            await self._unblocked(attempt, blocked)
            return None
        return await attempt.ended()

    async def _ended_unheard(self) -> bool:
        """Whether it had ended by itself, for good, when nobody had heard of that yet: it has not timed out then."""
        attempt = self._attempt
        if attempt is None or self._status.state is not State.RUNNING or not self.known or not attempt.is_over():
            return False
        with trio.move_on_after(STOP_LIMIT, shield=True):
            self._judge(await attempt.ended())
            if self._next_restart is None:
                await self._swept(attempt)
        return not self._status.running and self._next_restart is None

    async def _follow(self, ended: Exit) -> bool:
        """Do what the policy says after an end; return whether there is another attempt."""
        assert self._attempt is not None, "something has ended"
        self._judge(ended)
        await self._swept(self._attempt)
        if self._next_restart is None:
            return False
        await trio.sleep_until(self._next_restart)
        self._restarts += 1
        return True

    def _judge(self, ended: Exit) -> None:
        """Have the policy say what follows an end, and say it."""
        decision = decide(self.effective.agent, ended, restarts=self._restarts, doublings=self._doublings)
        self._doublings = decision.doublings
        over = trio.current_time()
        self._next_restart = None if decision.delay is None else over + decision.delay
        if decision.delay is None:
            self._time_limit.deadline = math.inf  # what ended in time has not timed out, however long its sweep takes
        self._publish_end(decision, ended)
        self._remember()

    async def _unblocked(self, attempt: Attempt, blocked: Blocked) -> None:
        """Return at the first look at which the cause may be gone."""
        if self._restarts == 0:
            self._set_deadline(math.inf)  # the timeout counts from the first launch that was one
        self._next_restart = None
        self._move(Event.BLOCKED, reason=blocked.reason, message=blocked.message, error=blocked.message)
        self._remember()
        await self._swept(attempt)  # where tmux failed in the middle, something may run all the same
        await self._around.looks.next()
        while await self._around.sessions.still_blocked(self.effective, blocked):
            await self._around.looks.next()

    def _begin(self) -> Attempt:
        self._number += 1
        self._next_restart = self._started = None
        self._attempt = self._around.sessions.attempt(self._request())
        self._move(
            Event.LAUNCHED,
            message="Its harness is being started.",
            attempt=self._number,
            restarts=self._restarts,
            next_restart_at=None,
        )
        return self._attempt

    def _request(self) -> AttemptRequest:
        return AttemptRequest(
            effective=self.effective, run=self._id, number=self._number, typed=self._typed, previous=self._attempt
        )

    def _remember(self) -> None:
        """Have the next agentd know where this run is, should this one be killed now."""
        if self._attempt is None:
            return
        deadline = self._time_limit.deadline
        note = RunNote(
            run=self._id,
            status=self._status,
            timeout=self.effective.agent.timeout,
            grace_period=self.effective.agent.grace_period,
            doublings=self._doublings,
            typed=self._typed,
            deadline=None if deadline == math.inf else deadline,
            next_restart=self._next_restart,
            started=self._started,
        )
        self._around.sessions.remember(note, self._attempt)

    def _set_deadline(self, deadline: float) -> None:
        self._time_limit.deadline = deadline
        left = deadline - trio.current_time()
        self._announcer.publish(deadline_at=None if deadline == math.inf else self._around.wall() + left)

    def _publish_end(self, decision: Decision, ended: Exit) -> None:
        self._move(
            decision.event,
            reason=decision.reason,
            message=decision.message,
            error=decision.message if ended.failure or decision.event is Event.GAVE_UP else None,
            running=False,
            pid=None,
            exit=ended,
            next_restart_at=None if decision.delay is None else self._around.wall() + decision.delay,
        )

    async def _swept(self, attempt: Attempt) -> None:
        """Return when nothing of the attempt is left: no attempt begins, and no run ends, before that."""
        before = self._status
        while left := await attempt.sweep():
            message = f"{_left_behind(left)}; agentd tries again at each look."
            if message != self._status.message:
                _log.error("agent=%s: %s", self._status.name, message)
                self._announcer.publish(message=message, error=message)
            await self._around.looks.next()
        self._announcer.publish(message=before.message, error=before.error)
        self._remember()  # who takes it over need not look for anything any more

    def _leave(self) -> None:
        """Leave everything to the next agentd, as a crash would: the note has it already."""
        status = self._status
        _log.info("agent=%s state=%s pid=%s: left to the next agentd", status.name, status.state, status.pid or "-")

    async def _stop(self, cause: str) -> None:
        """End the attempt and what it started: C-c, the grace period, then by force. Shielded, bounded."""
        wanted = "running" if cause in {CHANGED, TIMEOUT} else "stopped"
        how = " C-c, then its grace period." if self._status.running else ""
        self._move(Event.STOP, reason=cause, message=_STOPPING[cause] + how, wanted=wanted, next_restart_at=None)
        self._remember()  # or its end, if agentd is killed meanwhile, would be taken for the agent's own
        grace = self.effective.agent.grace_period
        with trio.move_on_after(grace + STOP_LIMIT, shield=True) as limit:
            if self._attempt is not None:
                ended = await interrupt(self._attempt, grace, self._around.hurry) if self._status.running else None
                if ended is not None:
                    self._announcer.publish(running=False, pid=None, exit=attrs.evolve(ended, wish=cause))
                await self._attempt.sweep()
                if self._status.running:
                    with trio.move_on_after(LAST_WORD):
                        ended = await self._attempt.ended()
                        self._announcer.publish(exit=attrs.evolve(ended, wish=cause))
                    self._announcer.publish(running=False, pid=None)
                if cause != TIMEOUT or self._wish is not None:
                    await self._attempt.close()
        if limit.cancelled_caught:
            _log.error("agent=%s: its stop did not end within %g s", self._status.name, grace + STOP_LIMIT)

    async def _stop_after_bug(self) -> None:
        message = "A bug in agentd ended its supervision, see the log for it. It runs again when its entry changes."
        try:
            with trio.CancelScope() as scope:
                scope.shield = True
                scope.deadline = trio.current_time() + STOP_LIMIT
                if self._attempt is not None:
                    await self._attempt.sweep()
        except Exception:  # noqa: BLE001 - the same barrier
            _log.exception("agent=%s: the same for its stop", self._status.name)
        self._move(Event.BROKE, reason="bug", message=message, error=message, running=False, pid=None)
        self._time_limit.deadline = math.inf  # it is over, for the next agentd, too
        self._remember()

    def _move(self, event: Event, **changes: Any) -> None:
        self._announcer.move(event, self._around.wall(), **changes)


_STOPPING = {
    REMOVED: "It is no longer in the card: it is stopped.",
    CHANGED: "Its entry, prompt or environment changed: it is stopped, and started anew.",
    SHUTDOWN: "agentd stops.",
    TIMEOUT: "Its timeout is over: it is stopped for good.",
}


def _left_behind(count: int) -> str:
    return f"Processes that it left behind ({count}) cannot be ended"
