"""A simulated machine: inputs that change, agents that do as they like, one agentd after another that may be killed.

Its world is `FakeSessions`, which an agentd sees through a `Life`: killed, it does nothing to the world any more, at
whatever moment that came; the world goes on, and the next agentd finds it as it is.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from types import MappingProxyType
from typing import Any, TypeVar

import attrs
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from agentd.card.card import Agent, Card
from agentd.inputs.reader import Inputs
from agentd.inputs.secrets import Secrets
from agentd.lifecycle import Exit, How
from agentd.looks import Looks
from agentd.reconciler import Reconciler
from agentd.resolve import Blocked, EffectiveAgent, resolve
from agentd.run import Surroundings
from agentd.sessions import Attempt, AttemptRequest, LaunchBlockedError, NeverStartedError, RunNote
from agentd.status import DaemonStatus, StatusStore
from agentd.testing import FakeAttempt, FakeSessions, Happened
from tests.unit.world import EPOCH

TICK = 3600.0
"""Seconds between two looks when nobody knocks: months pass in them."""
LAST_SWEEP_LIMIT = 40.0

T = TypeVar("T")


class Stage:
    """Runs trio piece by piece, so that Hypothesis's synchronous rules take turns with it: guest mode, and no host."""

    def __init__(self) -> None:
        self._ticks: deque[Callable[[], object]] = deque()
        self._order: Callable[[], Awaitable[None]] | None = None
        self._error: BaseException | None = None
        self._outcome: Any = None
        self._over = False
        self.nursery: trio.Nursery
        trio.lowlevel.start_guest_run(
            self._play,
            run_sync_soon_threadsafe=self._ticks.append,
            done_callback=self._finish,
            host_uses_signal_set_wakeup_fd=True,
            restrict_keyboard_interrupt_to_checkpoints=True,
            clock=MockClock(autojump_threshold=0),
        )

    def perform(self, order: Callable[[], Awaitable[None]]) -> None:
        """Do this to its end; then everything stands still until the next order."""
        self._order = order
        while self._is_at_work():
            self._ticks.popleft()()
        if self._outcome is not None:
            self._outcome.unwrap()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _is_at_work(self) -> bool:
        return self._order is not None and self._outcome is None

    def end(self) -> None:
        """End trio, and whatever still runs in it."""
        self._over = True
        while self._outcome is None:
            self._ticks.popleft()()
        self._outcome.unwrap()

    def _finish(self, outcome: Any) -> None:
        self._outcome = outcome

    async def _play(self) -> None:
        async with trio.open_nursery() as self.nursery:
            while not self._over:
                await trio.lowlevel.checkpoint()
                if self._order is not None:
                    try:
                        await self._order()
                    except Exception as error:  # noqa: BLE001 - whoever gave the order gets it
                        self._error = error
                    self._order = None
            self.nursery.cancel_scope.cancel()


@attrs.frozen(kw_only=True)
class Entry:
    """One entry of the simulated card."""

    name: str
    session: str | None = None
    replicas: int = 1
    type: str = "native"
    restart: str = "no"
    max_restarts: int = 0
    restart_delay_max: float = 3.0
    timeout: float | None = None
    grace_period: float = 7.25
    prompt_file: str | None = None
    run: str = "1"

    def agents(self) -> list[Agent]:
        """Replicas number name and session."""
        keys = attrs.asdict(self)
        replicas, name, session, run = (keys.pop(key) for key in ("replicas", "name", "session", "run"))
        numbers = [f"-{index}" for index in range(replicas)] if replicas > 1 else [""]
        return [
            Agent(
                **keys,
                harness="custom",
                env={"RUN": run},
                name=name + number,
                session=name + number if session is None else session + number,
            )
            for number in numbers
        ]


class Ground:
    """What people write: the card, the secrets, the prompt files."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.removed: list[Entry] = []
        self.secrets: dict[str, str] = {}
        self.prompts: dict[str, str | None] = {"p": "Do it.", "q": "Do that."}
        self.broken = False
        self.version = 0

    def card(self) -> tuple[Agent, ...] | None:
        """The agents of the card; None if it is invalid, also because two share a name or a session."""
        agents = [agent for entry in self.entries.values() for agent in entry.agents()]
        names = {agent.name.casefold() for agent in agents}
        sessions = {agent.session for agent in agents}
        valid = not self.broken and len(names) == len(sessions) == len(agents)
        return tuple(agents) if valid else None

    def resolve(self, agent: Agent) -> Any:
        """What is launched of an agent, or why nothing is."""
        prompt: str | Blocked = agent.prompt
        if agent.prompt_file is not None:
            text = self.prompts[agent.prompt_file]
            prompt = text or Blocked(reason="prompt_file", message=f"The prompt file {agent.prompt_file} is missing.")
        return resolve(agent, prompt=prompt, secrets=self.secrets, home="/h", card_dir="/etc", default_workdir="/srv")


@attrs.frozen
class Told(Happened):
    """What the simulation itself has to tell, with what belongs to it."""

    data: Any = attrs.field(default=None, kw_only=True)


class Life:
    """One agentd, from its start to its end; what it asks of the world when it was killed is not done any more."""

    def __init__(self, machine: "Machine") -> None:
        self.machine = machine
        self.sessions = machine.sessions
        self.store = StatusStore(DaemonStatus(started=trio.current_time(), card="/etc/jcard.toml"))
        self.hurry = trio.Event()
        self.scope = trio.CancelScope()
        self.keeps_agents = False
        self.over = False
        self.recovered = False
        self.ending = False
        self.dies_in: int | None = None
        """So many more touches of the world, and it is killed."""
        self.back_after = 0.0
        self._calls: set[trio.CancelScope] = set()
        self._good: tuple[Agent, ...] | None = None
        self._seen: tuple[int, Inputs] | None = None
        around = Surroundings(
            sessions=_Sessions(self),
            store=self.store,
            wall=machine.wall,
            launches=trio.CapacityLimiter(8),
            looks=Looks(),
            hurry=self.hurry,
            keeps_agents=lambda: self.keeps_agents,
        )
        self.reconciler = Reconciler(self.read, around, tick=TICK)

    async def live(self) -> None:
        """Supervise until the end, as `agentd.daemon` does."""
        self.tell("born")
        try:
            with self.scope:
                await self.reconciler.work(trio.Event())
        finally:
            if not self.over:
                with trio.move_on_after(LAST_SWEEP_LIMIT, shield=True):
                    await self.reconciler.sweep()

    def stop(self, *, keep: bool) -> None:
        """SIGTERM."""
        self.keeps_agents = keep
        self.ending = True
        self.tell("kept" if keep else "shutdown")
        self.scope.cancel()

    def die(self) -> None:
        """SIGKILL: from this moment nothing that it does has an effect."""
        if self.over:
            return
        self.over = self.ending = True
        self.tell("death")
        self.machine.look_at_notes()
        for call in self._calls:
            call.cancel()
        self.scope.cancel()

    async def read(self) -> Inputs:
        """One look."""
        await trio.sleep(self.machine.read_takes)
        ground = self.machine.ground
        if self._seen is None or self._seen[0] != ground.version:
            agents = ground.card()
            if agents is not None:
                self._good = agents
            inputs = Inputs(
                card=None if self._good is None else Card(agents=self._good),
                card_error=None if agents is not None else "invalid",
                card_missing=False,
                secrets=Secrets(),
                wanted=MappingProxyType({agent.name: (agent, ground.resolve(agent)) for agent in self._good or ()}),
                warnings=(),
            )
            self._seen = ground.version, inputs
        if not self.over:
            self.tell("look", data=self._seen[1].wanted)
        return self._seen[1]

    def touch(self) -> bool:
        """Whether it lives to do one more thing to the world, or to hear one more answer."""
        if self.over:
            return False
        if self.dies_in is not None:
            self.dies_in -= 1
            if self.dies_in < 0:
                self.die()
                return False
        return True

    async def ask(self, question: Callable[[], Awaitable[T]], dead: T) -> T:
        """Ask the world, unless dead."""
        if self.touch():
            call = trio.CancelScope()
            self._calls.add(call)
            try:
                with call:
                    answer = await question()
                    if self.touch():
                        return answer
            finally:
                self._calls.discard(call)
        await trio.lowlevel.checkpoint()
        return dead

    def tell(self, what: str, attempt: FakeAttempt | None = None, data: Any = None) -> None:
        """Write down what happened, beside what the attempts write."""
        name, run, number = "", "", 0
        if attempt is not None:
            name, run, number = attempt.name, attempt.request.run, attempt.request.number
        self.sessions.happened.append(Told(trio.current_time(), name, what, run=run, number=number, data=data))


class _Sessions:
    """`Sessions` as one agentd sees them."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._world = life.sessions

    async def recover(self) -> tuple[RunNote, ...] | None:
        notes = await self._life.ask(self._world.recover, None)
        if notes is not None:
            self._life.recovered = True
        return notes

    def adopt(self, request: AttemptRequest) -> Attempt:
        attempt = self._world.attempts[request.run, request.number]
        if self._life.touch():
            self._world.adopt(request)
            self._life.tell("adopt", attempt, self._world.notes[request.run])
        return _Attempt(self._life, attempt)

    def remember(self, note: RunNote, attempt: Attempt) -> None:
        if self._life.touch():
            self._world.remember(note, attempt)
            self._life.tell("noted", self._world.attempts[note.run, note.status.attempt])

    def catch_up(self) -> tuple[str, ...]:
        return self._world.catch_up()

    def forget(self, run: str) -> None:
        if self._life.touch():
            self._world.forget(run)
            attempt = next(attempt for (other, _), attempt in self._world.attempts.items() if other == run)
            self._life.tell("forget", attempt)

    def attempt(self, request: AttemptRequest) -> Attempt:
        return _Attempt(self._life, self._world.attempt(request) if self._life.touch() else None)

    async def still_blocked(self, effective: EffectiveAgent, blocked: Blocked) -> bool:
        return await self._life.ask(lambda: self._world.still_blocked(effective, blocked), True)


class _Attempt:
    """An attempt as one agentd sees it."""

    def __init__(self, life: Life, real: FakeAttempt | None) -> None:
        self._life = life
        self._real = real

    async def launch(self) -> int:
        return await self._life.ask(self._launch, 0)

    async def ended(self) -> Exit:
        nothing = Exit(how=How.KILLED, at=0.0, duration=0.0)
        return await self._life.ask(lambda: self._guard(self._here.ended()), nothing)

    def is_over(self) -> bool:
        return self._life.touch() and self._here.is_over()

    async def interrupt(self, *, again: bool) -> bool:
        return await self._life.ask(lambda: self._guard(self._here.interrupt(again=again)), False)

    async def sweep(self) -> int:
        return await self._life.ask(self._sweep, 0)

    async def close(self) -> None:
        await self._life.ask(lambda: self._guard(self._here.close()), None)

    @property
    def _here(self) -> FakeAttempt:
        assert self._real is not None, "only a dead agentd has no attempt"
        return self._real

    async def _launch(self) -> int:
        self._life.machine.look_for_doubles(self._here)
        try:
            pid = await self._guard(self._here.launch())
        except LaunchBlockedError:
            self._life.tell("blocked", self._real)
            raise
        except NeverStartedError:
            self._life.tell("never", self._real)
            raise
        self._life.tell("heard", self._real)
        return pid

    async def _sweep(self) -> int:
        left = await self._guard(self._here.sweep())
        self._life.tell("unswept" if left else "swept", self._real)
        return left

    async def _guard(self, asked: Awaitable[T]) -> T:
        try:
            return await asked
        except RuntimeError:
            self._life.tell("bug", self._real)
            raise


class Machine:
    """The whole of it: the world, the inputs, and who starts an agentd again when one has ended."""

    def __init__(self, clock_now: Callable[[], float]) -> None:
        self.wall: Callable[[], float] = lambda: EPOCH + clock_now()
        self.sessions = FakeSessions(self.wall)
        self.ground = Ground()
        self.read_takes = 0.0
        self.life: Life | None = None
        self.lives = 0
        self.faults: list[str] = []
        self.tasks: int | None = None
        """How many there are when no agentd is."""

    async def keep_one(self) -> None:
        """Have one agentd after another, for ever."""
        self.tasks = trio.lowlevel.current_statistics().tasks_living
        while True:
            life = self.life = Life(self)
            self.lives += 1
            await life.live()
            self.life = None
            if not life.over:
                life.tell("gone")
                self._look_at_rest(life)
            tasks = trio.lowlevel.current_statistics().tasks_living
            if tasks != self.tasks:
                self.faults.append(f"{tasks - self.tasks} tasks are left of an agentd that has ended")
            await trio.sleep(life.back_after)

    async def settle(self) -> None:
        """Wait until everything that happens now has happened."""
        await wait_all_tasks_blocked()
        for attempt in self.sessions.attempts.values():
            attempt.settle()

    def changed(self) -> None:
        """Somebody has written something: agentd's watch knocks."""
        self.ground.version += 1
        if self.life is not None:
            self.life.reconciler.knock()

    def look_for_doubles(self, launched: FakeAttempt) -> None:
        """Nothing else of an agent, or in its session, lives when an attempt is launched."""
        agent = launched.request.effective.agent
        for attempt in self.sessions.attempts.values():
            other = attempt.request.effective.agent
            near = attempt is not launched and (other.name == agent.name or other.session == agent.session)
            if near and attempt.lives:
                self.faults.append(f"{launched!r} is launched beside {attempt!r}")

    def look_at_notes(self) -> None:
        """What lives, or may come up, when an agentd is killed is in its notes, by the attempt; one for each agent."""
        notes = {(note.run, note.status.attempt) for note in self.sessions.notes.values()}
        for key, attempt in self.sessions.attempts.items():
            if (attempt.lives or attempt.may_start) and key not in notes:
                self.faults.append(f"no note tells of {attempt!r}")
        names = [note.status.name for note in self.sessions.notes.values()]
        if len(set(names)) < len(names):
            self.faults.append(f"two notes tell of one agent: {names}")
        unknown = notes - set(self.sessions.attempts)
        if unknown:
            self.faults.append(f"notes tell of attempts that there never were: {unknown}")

    def _look_at_rest(self, life: Life) -> None:
        """After a clean end nothing is there; what could not be ended, or was kept, is noted."""
        sessions = self.sessions
        kept = life.keeps_agents or not life.recovered
        allowed = set(sessions.notes) if kept else self.troubled()
        live = {attempt.request.run for attempt in sessions.attempts.values() if attempt.lives or attempt.may_start}
        left = live | set(sessions.notes) | set(sessions.holders.values())
        if left - allowed:
            self.faults.append(f"left after a clean end: {left - allowed}")
        if live - set(sessions.notes):
            self.faults.append(f"alive after a clean end, and in no note: {live - set(sessions.notes)}")

    def troubled(self) -> set[str]:
        """Runs that could not be ended at the first try."""
        return {
            attempt.request.run
            for attempt in self.sessions.attempts.values()
            if attempt.play.defies or attempt.play.bug is not None
        }
