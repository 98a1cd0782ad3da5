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

from agentd.lifecycle import Decision, Event, Exit, How, State, decide, follow
from agentd.plan import CHANGED, REMOVED
from agentd.resolve import Blocked, EffectiveAgent
from agentd.sessions import Attempt, AttemptRequest, LaunchBlockedError, NeverStartedError, Sessions
from agentd.status import AgentStatus, StatusStore

STOP_LIMIT = 30.0
"""Seconds that a stop may take beyond the grace period: the bound of its shield."""
PRESS_GAP = 0.3
"""Seconds between two C-c of a volley: full-screen UIs ask for the second within 0.8 s (measured, see docs)."""
PRESSES = 3
"""C-c in a volley: the first cancels a stream, the next two confirm."""
PRESS_AGAIN = 5.0
"""Seconds between two volleys."""
LAST_WORD = 1.0
"""Seconds that a swept attempt's launcher has to report the exit."""

SHUTDOWN = "shutdown"
TIMEOUT = "timed_out"

_log = logging.getLogger("agentd.run")


class Looks:
    """Tells those who wait that the reconciler has looked at the world again."""

    def __init__(self) -> None:
        self._looked = trio.Event()

    def ring(self) -> None:
        """Wake all who wait now."""
        self._looked.set()
        self._looked = trio.Event()

    async def next(self) -> None:
        """Wait for the next look."""
        await self._looked.wait()


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


class Run:
    """The supervision of one effective agent, across restarts, until its end."""

    def __init__(self, effective: EffectiveAgent, run_id: str, around: Surroundings) -> None:
        self.effective = effective
        self._id = run_id
        self._around = around
        self._scope = trio.CancelScope()
        self._wish: str | None = None
        self._cause: str | None = None
        self._attempt: Attempt | None = None
        self._restarts = 0
        self._blocked: str | None = None
        self._trouble: str | None = None
        agent = effective.agent
        self._status = AgentStatus(
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
        # Here and not in its task: tasks begin in any order, and the agents have the card's.
        around.store.put(self._status)

    def __repr__(self) -> str:
        return f"<Run {self._id} of {self._status.name!r}, {self._status.state}, wish {self._wish}>"

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
                    return True
                trouble = _left_behind(left)
        except Exception as error:  # noqa: BLE001 - the same barrier as around its life: a bug costs one agent
            bug, trouble = error, f"a bug in agentd keeps its session from being ended: {error!r}"
        if trouble != self._trouble:
            self._trouble = trouble
            _log.error("agent=%s: %s", self._status.name, trouble, exc_info=bug)
            message = f"{trouble[0].upper()}{trouble[1:]}; agentd tries again at each look."
            self._publish(message=message, error=message)
        return False

    async def _supervise(self) -> None:
        with trio.move_on_after(math.inf) as time_limit:
            try:
                await self._attempts(time_limit)
            except trio.Cancelled:
                # Noted now: read after the stop, the scopes' flags are wrong when two causes overlap.
                self._cause = self._wish or (TIMEOUT if time_limit.deadline <= trio.current_time() else SHUTDOWN)
                await self._stop(self._cause)
                raise
        if self._cause == TIMEOUT:
            seconds = self.effective.agent.timeout
            message = f"Timed out {seconds:g} s after its first launch. It runs again when its entry changes."
            self._move(Event.TIMED_OUT, reason=TIMEOUT, message=message, error=message)

    async def _attempts(self, time_limit: trio.CancelScope) -> None:
        number = doublings = 0
        typed = True
        while True:
            number += 1
            async with self._around.launches:
                started = trio.current_time()
                if time_limit.deadline == math.inf and self.effective.agent.timeout is not None:
                    self._set_deadline(time_limit, started + self.effective.agent.timeout)
                attempt = self._begin(number, typed=typed, time_limit=time_limit)
                blocked: Blocked | None = None
                ended: Exit | None = None
                try:
                    pid = await attempt.launch()
                except LaunchBlockedError as error:
                    blocked = error.blocked
                except NeverStartedError as error:
                    lasted = trio.current_time() - started
                    ended = Exit(how=How.NEVER_STARTED, at=self._around.wall(), duration=lasted, detail=str(error))
                else:
                    self._move(
                        Event.STARTED, message="", pid=pid, running=True, started_at=self._around.wall(), attempt=number
                    )
            if blocked is not None:
                await self._unblocked(attempt, blocked, time_limit)
                continue
            if ended is None:
                ended = await attempt.ended()
            else:
                typed = False
            decision = decide(self.effective.agent, ended, restarts=self._restarts, doublings=doublings)
            doublings = decision.doublings
            over = trio.current_time()
            self._publish_end(decision, ended)
            if decision.delay is None:
                time_limit.deadline = math.inf  # what ended in time has not timed out, however long its sweep takes
            await self._swept(attempt)
            if decision.delay is None:
                return
            await trio.sleep_until(over + decision.delay)
            self._restarts += 1

    async def _unblocked(self, attempt: Attempt, blocked: Blocked, time_limit: trio.CancelScope) -> None:
        """Return at the first look at which the cause may be gone."""
        if self._restarts == 0:
            self._set_deadline(time_limit, math.inf)  # the timeout counts from the first launch that was one
        self._move(Event.BLOCKED, reason=blocked.reason, message=blocked.message, error=blocked.message)
        await self._swept(attempt)  # where tmux failed in the middle, something may run all the same
        await self._around.looks.next()
        while await self._around.sessions.still_blocked(self.effective, blocked):
            await self._around.looks.next()

    def _begin(self, number: int, *, typed: bool, time_limit: trio.CancelScope) -> Attempt:
        request = AttemptRequest(
            effective=self.effective,
            run=self._id,
            number=number,
            restarts=self._restarts,
            deadline=None if time_limit.deadline == math.inf else time_limit.deadline,
            typed=typed,
            previous=self._attempt,
        )
        self._attempt = self._around.sessions.attempt(request)
        self._move(
            Event.LAUNCHED,
            message="Its harness is being started.",
            attempt=number,
            restarts=self._restarts,
            next_restart_at=None,
        )
        return self._attempt

    def _set_deadline(self, time_limit: trio.CancelScope, deadline: float) -> None:
        time_limit.deadline = deadline
        left = deadline - trio.current_time()
        self._publish(deadline_at=None if deadline == math.inf else self._around.wall() + left)

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
                self._publish(message=message, error=message)
            await self._around.looks.next()
        self._publish(message=before.message, error=before.error)

    async def _stop(self, cause: str) -> None:
        """End the attempt and what it started: C-c, the grace period, then by force. Shielded, bounded."""
        wanted = "running" if cause in {CHANGED, TIMEOUT} else "stopped"
        how = " C-c, then its grace period." if self._status.running else ""
        self._move(Event.STOP, reason=cause, message=_STOPPING[cause] + how, wanted=wanted, next_restart_at=None)
        grace = self.effective.agent.grace_period
        with trio.move_on_after(grace + STOP_LIMIT, shield=True) as limit:
            if self._attempt is not None:
                ended = await self._interrupt(self._attempt, grace) if self._status.running else None
                if ended is not None:
                    self._publish(running=False, pid=None, exit=attrs.evolve(ended, wish=cause))
                await self._attempt.sweep()
                if self._status.running:
                    with trio.move_on_after(LAST_WORD):
                        ended = await self._attempt.ended()
                        self._publish(exit=attrs.evolve(ended, wish=cause))
                    self._publish(running=False, pid=None)
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

    async def _interrupt(self, attempt: Attempt, grace: float) -> Exit | None:
        """Press C-c and wait for the exit as long as the grace period, or until somebody is in a hurry."""
        with trio.move_on_after(grace):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._give_way, nursery.cancel_scope)
                nursery.start_soon(_press, attempt)
                ended = await attempt.ended()
                nursery.cancel_scope.cancel()
                return ended
        return None

    async def _give_way(self, scope: trio.CancelScope) -> None:
        await self._around.hurry.wait()
        scope.cancel("hurry")

    def _move(self, event: Event, **changes: Any) -> None:
        """Publish what an event made of the agent, and say it in the log."""
        state = follow(self._status.state, event)
        fresh: dict[str, Any] = {"reason": None, "error": None, "state": state}
        if state is not self._status.state:
            fresh["since"] = self._around.wall()
        self._publish(**(fresh | changes))
        self._say(event)

    def _say(self, event: Event) -> None:
        """Log an event, but not that a blocked agent was tried again, and is blocked by the same as before."""
        status = self._status
        again = self._blocked is not None and event is Event.LAUNCHED
        same = event is Event.BLOCKED and status.message == self._blocked
        if event is Event.BLOCKED:
            self._blocked = status.message
        elif event is not Event.LAUNCHED:
            self._blocked = None
        if again or same:
            return
        _log.log(
            logging.WARNING if status.error else logging.INFO,
            "agent=%s wanted=%s state=%s reason=%s attempt=%d pid=%s: %s",
            status.name,
            status.wanted,
            status.state,
            status.reason or "-",
            status.attempt,
            status.pid or "-",
            status.message or event,
        )

    def _publish(self, **changes: Any) -> None:
        self._status = attrs.evolve(self._status, **changes)
        self._around.store.put(self._status)


_STOPPING = {
    REMOVED: "It is no longer in the card: it is stopped.",
    CHANGED: "Its entry, prompt or environment changed: it is stopped, and started anew.",
    SHUTDOWN: "agentd stops.",
    TIMEOUT: "Its timeout is over: it is stopped for good.",
}


def _left_behind(count: int) -> str:
    return f"Processes that it left behind ({count}) cannot be ended"


async def _press(attempt: Attempt) -> None:
    """C-c as programs expect it: a cooked terminal gets one, a raw one volleys (a byte that UIs ask for twice)."""
    raw = await attempt.interrupt(again=False)
    while True:
        for _ in range(PRESSES - 1 if raw else 0):
            await trio.sleep(PRESS_GAP)
            raw = await attempt.interrupt(again=True)
        await trio.sleep(PRESS_AGAIN)
        raw = await attempt.interrupt(again=True)
