"""A world on the virtual clock: scripted agents, a store that remembers every status, and looks by hand or for real."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import attrs
import trio
from trio.testing import MockClock

from agentd.card.card import Agent, Card
from agentd.inputs.reader import Inputs
from agentd.inputs.secrets import Secrets
from agentd.looks import Looks
from agentd.reconciler import Reconciler
from agentd.resolve import Blocked, EffectiveAgent, Unsupported, resolve
from agentd.run import Run, Surroundings
from agentd.sessions import Attempt, AttemptRequest, RunNote
from agentd.status import AgentStatus, DaemonStatus, StatusStore
from agentd.testing import FakeAttempt, FakeSessions

EPOCH = 1_800_000_000.0
"""The time of day, in Unix seconds, at which every world begins."""

NEVER = 86_400.0
"""Seconds after which a test that still waits has failed."""


def agent_of(name: str = "a", **keys: Any) -> Agent:
    return Agent(**{"name": name, "harness": "custom", "session": name} | keys)


def effective_of(name: str = "a", **keys: Any) -> EffectiveAgent:
    effective = resolved(agent_of(name, **keys))
    assert isinstance(effective, EffectiveAgent)
    return effective


def resolved(agent: Agent) -> EffectiveAgent | Blocked | Unsupported:
    return resolve(
        agent, prompt=agent.prompt, secrets={}, home="/home/agent", card_dir="/etc/stereos", default_workdir="/srv"
    )


class RecordingSessions(FakeSessions):
    """Scripted agents that also keep what was asked for them."""

    def __init__(self, wall: Callable[[], float]) -> None:
        super().__init__(wall)
        self.requests: list[AttemptRequest] = []
        self.noted: list[RunNote] = []

    def remember(self, note: RunNote, attempt: Attempt) -> None:
        """Keep every note."""
        self.noted.append(note)
        super().remember(note, attempt)

    def attempt(self, request: AttemptRequest) -> FakeAttempt:
        """Note the request."""
        self.requests.append(request)
        return super().attempt(request)


class RecordingStore(StatusStore):
    """A store that remembers every status, and when it came."""

    def __init__(self, daemon: DaemonStatus) -> None:
        super().__init__(daemon)
        self.history: list[tuple[float, AgentStatus]] = []
        self.dropped: list[tuple[float, str]] = []

    def put(self, status: AgentStatus) -> None:
        """Note the status."""
        self.history.append((trio.current_time(), status))
        super().put(status)

    def drop(self, name: str) -> None:
        """Note who was there until now."""
        if self.get(name) is not None:
            self.dropped.append((trio.current_time(), name))
        super().drop(name)


class World:
    """Everything that runs share, scripted and recorded."""

    def __init__(
        self, clock: MockClock, *, launches: int = 8, sessions: type[RecordingSessions] = RecordingSessions
    ) -> None:
        def wall() -> float:
            return EPOCH + clock.current_time()

        self.sessions = sessions(wall)
        self.store = RecordingStore(DaemonStatus(started=clock.current_time(), card="/etc/stereos/jcard.toml"))
        self.looks = Looks()
        self.hurry = trio.Event()
        self.around = Surroundings(
            sessions=self.sessions,
            store=self.store,
            wall=wall,
            launches=trio.CapacityLimiter(launches),
            looks=self.looks,
            hurry=self.hurry,
        )

    @asynccontextmanager
    async def living(self, effective: EffectiveAgent) -> AsyncIterator[Run]:
        """A run that begins now; the block ends when the run does, and nothing of it may be alive then."""
        with trio.fail_after(NEVER):
            async with trio.open_nursery() as nursery:
                run = Run(effective, "run-1", self.around)
                nursery.start_soon(run.live)
                yield run
        self.assert_at_rest(effective.agent.name)

    async def live(self, effective: EffectiveAgent) -> Run:
        """Live a run to its end."""
        async with self.living(effective) as run:
            pass
        return run

    def assert_at_rest(self, *names: str) -> None:
        """Nothing of these agents is alive, and never more than one harness of each was."""
        for name in names:
            assert self.sessions.alive[name] == 0
            assert self.most_alive(name) <= 1

    def most_alive(self, name: str) -> int:
        """How many harnesses of an agent were alive at once, at most."""
        most = alive = 0
        for happened in self.sessions.happened:
            if happened.agent == name:
                alive += {"start": 1, "end": -1}.get(happened.what, 0)
                most = max(most, alive)
        return most

    def status(self, name: str = "a") -> AgentStatus:
        """What an observer sees of an agent now."""
        status = self.store.get(name)
        assert status is not None
        return status

    def states(self, name: str = "a") -> list[tuple[float, str]]:
        """When an agent came into which state."""
        states: list[tuple[float, str]] = []
        for at, status in self.store.history:
            if status.name == name and (not states or states[-1][1] != status.state):
                states.append((at, str(status.state)))
        return states

    def seen(self, name: str = "a") -> list[tuple[float, str]]:
        """Everything that an agent's attempts saw, and when."""
        return [(happened.at, happened.what) for happened in self.sessions.happened if happened.agent == name]

    def times(self, what: str, name: str = "a") -> list[float]:
        """When something happened to an agent's attempts."""
        return self.sessions.times(name, what)


@attrs.define
class Desk:
    """What the reconciler reads, as the test puts it there; each read is noted."""

    inputs: Inputs
    read_takes: float = 0.0
    reads: list[float] = attrs.field(factory=list)

    async def read(self) -> Inputs:
        """Look once."""
        self.reads.append(trio.current_time())
        await trio.sleep(self.read_takes)
        return self.inputs

    def want(self, *entries: EffectiveAgent | tuple[Agent, Blocked | Unsupported]) -> None:
        """Put a card with these agents in force."""
        self.inputs = inputs_of(*entries)


def inputs_of(*entries: EffectiveAgent | tuple[Agent, Blocked | Unsupported], **changes: Any) -> Inputs:
    """The inputs of a valid card with these agents."""
    pairs = [(entry.agent, entry) if isinstance(entry, EffectiveAgent) else entry for entry in entries]
    inputs = Inputs(
        card=Card(agents=tuple(agent for agent, _ in pairs)),
        card_error=None,
        card_missing=False,
        secrets=Secrets(),
        wanted=MappingProxyType({agent.name: (agent, what) for agent, what in pairs}),
        warnings=(),
    )
    return attrs.evolve(inputs, **changes)


@attrs.frozen
class Reconciling:
    """A reconciler at work, and what it reads."""

    world: World
    desk: Desk
    reconciler: Reconciler
    scope: trio.CancelScope

    def shut_down(self) -> None:
        """Stop all agents, as the daemon does."""
        self.scope.cancel("shutdown")


@asynccontextmanager
async def reconciling(
    world: World,
    *entries: EffectiveAgent | tuple[Agent, Blocked | Unsupported],
    desk: Desk | None = None,
    rests: bool = True,
) -> AsyncIterator[Reconciling]:
    """A reconciler that has looked once; at the end of the block it is shut down, and if it rests, nothing is left."""
    desk = desk or Desk(inputs_of(*entries))
    reconciler = Reconciler(desk.read, world.around)
    looked = trio.Event()
    with trio.fail_after(NEVER):
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(_work, reconciler, scope, looked)
            await looked.wait()
            yield Reconciling(world, desk, reconciler, scope)
            scope.cancel("end of the test")
        await reconciler.sweep()
    if rests:
        world.assert_at_rest(*{happened.agent for happened in world.sessions.happened})
        assert world.sessions.sessions == set()


async def _work(reconciler: Reconciler, scope: trio.CancelScope, looked: trio.Event) -> None:
    with scope:
        await reconciler.work(looked)


async def until(when: float) -> None:
    """Wait until a time of the virtual clock, and until everything that happens then has happened."""
    await trio.sleep_until(when)
    await trio.testing.wait_all_tasks_blocked()
