"""Makes what runs match what the card says: owns the runs, wakes, looks, plans, applies.

An ended run stays, as its digest and its end, until its digest changes or its name goes: nobody is relaunched for ever.
"""

import contextlib
import logging
import secrets as randomness
from collections.abc import Awaitable, Callable

import attrs
import trio

from agentd.card.card import Agent
from agentd.inputs.reader import Inputs
from agentd.lifecycle import State
from agentd.logs import OncePer
from agentd.plan import CHANGED, REMOVED, Action, Hold, Phase, Refuse, RunView, Start, Stop, not_in_force, plan
from agentd.resolve import Blocked, EffectiveAgent
from agentd.run import SHUTDOWN, Run, Surroundings
from agentd.status import AgentStatus

TICK = 5.0
"""Seconds between two looks when nobody knocks."""

_WISHES = {CHANGED, REMOVED, SHUTDOWN}

_log = logging.getLogger("agentd.reconciler")


@attrs.define
class _Entry:
    run: Run
    phase: Phase = Phase.ACTIVE


class Reconciler:
    """Runs every agent of the card in the nursery that it is given."""

    def __init__(
        self,
        read: Callable[[], Awaitable[Inputs]],
        around: Surroundings,
        *,
        tick: float = TICK,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`beat` is called at every stage of a look: as long as it is, the loop lives."""
        self._read = read
        self._beat = beat
        self._around = around
        self._tick = tick
        self._runs: dict[str, _Entry] = {}
        self._placeholders: set[str] = set()
        self._recovered = False
        self._say = OncePer()
        # A channel of one place: however many knock, there is one more look.
        self._knocks, self._knocked = trio.open_memory_channel[None](1)

    def knock(self) -> None:
        """Ask for another look soon; never waits."""
        with contextlib.suppress(trio.WouldBlock):
            self._knocks.send_nowait(None)

    async def work(self, looked: trio.Event) -> None:
        """Look, plan, apply, for ever; `looked` is set after the first look. Cancel it to stop all agents."""
        async with trio.open_nursery() as agents:
            self.knock()
            agents.start_soon(self._knock_by_the_clock)
            async for _ in self._knocked:
                self._beat()
                inputs = await self._read()
                self._beat()
                self._tell(inputs)
                # Until a first valid card, nothing that is found is stopped; until it is known, nothing is launched.
                if not self._recovered and inputs.card is not None:
                    await self._recover(inputs, agents)
                    self._beat()
                self._recognise(inputs)
                for action in plan(inputs.wanted, self._views()) if self._recovered else _hold_all(inputs):
                    self._apply(action, agents)
                self._forget_placeholders(inputs)
                self._around.store.order(inputs.wanted)
                self._around.looks.ring()
                looked.set()

    async def _recover(self, inputs: Inputs, agents: trio.Nursery) -> None:
        """Take over the runs of an agentd that was killed; what the card says of them now, the plan then sees to."""
        notes = await self._around.sessions.recover()
        if notes is None:
            return
        self._recovered = True
        for note in notes:
            name = note.status.name
            _, what = inputs.wanted.get(name, (None, None))
            known = isinstance(what, EffectiveAgent) and what.digest == note.status.digest
            effective = what if isinstance(what, EffectiveAgent) and known else note.stand_in()
            entry = self._runs[name] = _Entry(Run(effective, note.run, self._around, note, known=known))
            if note.status.state is State.STOPPING and note.status.reason in _WISHES:
                # A stop on wish is brought to its end: what ended meanwhile did so because of it.
                entry.phase = Phase.STOPPING
                entry.run.stop(note.status.reason)
            agents.start_soon(self._supervise, name, entry)

    def _recognise(self, inputs: Inputs) -> None:
        """Tell runs that were taken over unknown what they are, now that it can be read."""
        for name, entry in self._runs.items():
            _, what = inputs.wanted.get(name, (None, None))
            if not entry.run.known and isinstance(what, EffectiveAgent) and what.digest == entry.run.effective.digest:
                entry.run.recognise(what)

    async def sweep(self) -> None:
        """End once more whatever any run still holds, in case one of the stops was itself broken. Bounded.

        Where agents are kept, that is what a run holds that was to be stopped all the same.
        """
        async with trio.open_nursery() as nursery:
            for entry in self._runs.values():
                if entry.phase is Phase.STOPPING or not self._around.keeps_agents():
                    nursery.start_soon(entry.run.end_session)

    async def _knock_by_the_clock(self) -> None:
        while True:
            await trio.sleep(self._tick)
            self.knock()

    def _views(self) -> dict[str, RunView]:
        return {
            name: RunView(entry.run.effective, entry.phase, known=entry.run.known) for name, entry in self._runs.items()
        }

    def _apply(self, action: Action, agents: trio.Nursery) -> None:
        match action:
            case Start(effective):
                name = effective.agent.name
                entry = self._runs[name] = _Entry(Run(effective, randomness.token_hex(4), self._around))
                self._placeholders.discard(name)
                self._say.forget(f"agent {name}")
                agents.start_soon(self._supervise, name, entry)
            case Stop(name, cause):
                entry = self._runs[name]
                ended, entry.phase = entry.phase is Phase.ENDED, Phase.STOPPING
                if ended:
                    agents.start_soon(self._retire, name, entry)
                else:
                    entry.run.stop(cause)
            case Hold(agent, blocked):
                self._put_placeholder(agent, State.WAITING, blocked.reason, blocked.message)
            case Refuse(agent, unsupported):
                self._put_placeholder(agent, State.FAILED, "unsupported_type", unsupported.message)

    async def _supervise(self, name: str, entry: _Entry) -> None:
        await entry.run.live()
        if entry.phase is Phase.STOPPING:
            await self._retire(name, entry)
        else:
            entry.phase = Phase.ENDED
            self.knock()

    async def _retire(self, name: str, entry: _Entry) -> None:
        while not await entry.run.end_session():
            await self._around.looks.next()
        del self._runs[name]
        # The next look puts its successor in its place or drops it: who is relaunched is never out of sight.
        self._placeholders.add(name)
        self.knock()

    def _put_placeholder(self, agent: Agent, state: State, reason: str, message: str) -> None:
        """Publish an agent that has no run, and say why once."""
        before = self._around.store.get(agent.name)
        same = before is not None and before.state is state and before.reason == reason
        self._around.store.put(
            AgentStatus(
                name=agent.name,
                session=agent.session,
                type=agent.type,
                harness=agent.harness,
                wanted="running",
                state=state,
                reason=reason,
                message=message,
                error=message,
                since=before.since if same and before is not None else self._around.wall(),
            )
        )
        self._placeholders.add(agent.name)
        if self._say(f"agent {agent.name}", message):
            _log.warning("agent=%s wanted=running state=%s reason=%s: %s", agent.name, state, reason, message)

    def _forget_placeholders(self, inputs: Inputs) -> None:
        for name in self._placeholders - set(inputs.wanted):
            self._placeholders.discard(name)
            self._say.forget(f"agent {name}")
            self._around.store.drop(name)

    def _tell(self, inputs: Inputs) -> None:
        """Publish what is to be said about the inputs themselves, each thing once while it lasts."""
        daemon = self._around.store.daemon
        warnings = inputs.warnings + not_in_force(inputs.wanted, self._views())
        shortages = self._around.sessions.catch_up()
        self._around.store.put_daemon(attrs.evolve(daemon, card_error=inputs.card_error, warnings=warnings + shortages))
        # Before the first card that is all there is to say; after it, what is missing is a card error like any other.
        waiting = inputs.card_missing and inputs.card is None
        if self._say("waiting", str(waiting)) and waiting:
            _log.info("waiting for a card at %s", daemon.card)
        error = "" if waiting else inputs.card_error or ""
        if self._say("card", error) and error:
            if inputs.card_missing:
                _log.warning("%s, the last good one stays in force: %s", error, daemon.card)
            else:
                kept = "the last good one stays in force" if inputs.card else "nothing is started"
                _log.error("card %s cannot be used, %s:", daemon.card, kept)
                for line in error.splitlines():
                    _log.error("card: %s", line)
        for warning in warnings:
            if warning not in daemon.warnings:
                _log.warning("%s", warning)


def _hold_all(inputs: Inputs) -> tuple[Action, ...]:
    message = (
        "Waits until tmux answers and what an earlier agentd left behind is gone; the log says what is in the way."
    )
    return tuple(Hold(agent, Blocked(reason="recovering", message=message)) for agent, _ in inputs.wanted.values())
