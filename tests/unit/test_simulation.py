"""Simulated time: random lives of agents, cards and agentds for months, and what must be true of each of their moments.

Every run of the tests has the same lives. Other ones, or more of them:

    AGENTD_SIMULATION_SEED=700 AGENTD_SIMULATION_EVENTS=200000 python -m pytest tests/unit/test_simulation.py

A life that fails is shrunk for some minutes, and printed as the calls of the rules below.
"""

import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import trio
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from agentd.resolve import Blocked
from agentd.testing import Play
from tests.unit.chronicle import Chronicle
from tests.unit.simulated import TICK, Entry, Machine, Stage

SEED = int(os.environ.get("AGENTD_SIMULATION_SEED", "1"))
EVENTS = int(os.environ.get("AGENTD_SIMULATION_EVENTS", "20000"))
"""So many at least: there are rounds of examples, each with the next seed, until they have happened."""
EXAMPLES = 100
STEPS = 60

PLAYS = {
    "steady": Play(),
    "done": Play(ends_after=2),
    "long": Play(ends_after=4000),
    "crash": Play(ends_after=1, code=1),
    "crash at once": Play(ends_after=0, code=3),
    "crash later": Play(ends_after=60, code=1),
    "signal": Play(ends_after=20, code=143),
    "orphan": Play(ends_after=5, killed=True, leaves=True, sweep_takes=1),
    "litter": Play(ends_after=5, code=1, leaves=True, sweep_takes=2),
    "slow to come": Play(start_after=9),
    "never comes": Play(start_after=30),
    "deaf": Play(exits_on=None, sweep_takes=2, leaves=True),
    "slow to go": Play(interrupt_takes=5),
    "slower than that": Play(interrupt_takes=100),
    "asks twice": Play(exits_on=2, raw=True),
    "defiant": Play(ends_after=50, code=1, leaves=True, defies=3),
    "deaf and defiant": Play(exits_on=None, defies=2, sweep_takes=1),
    "no workdir": Play(blocked=Blocked(reason="workdir_missing", message="There is no workdir.")),
    "no binary": Play(blocked=Blocked(reason="binary_missing", message="There is no binary.")),
    "bug in launch": Play(bug="scripted"),
    "bug in ended": Play(bug="scripted", bug_in="ended"),
    "bug in interrupt": Play(bug="scripted", bug_in="interrupt"),
    "bug in sweep": Play(bug="scripted", bug_in="sweep", ends_after=9, code=1, leaves=True),
    "bug in close": Play(bug="scripted", bug_in="close"),
}

NAMES = ("a", "b", "c", "A", "d")
KEYS = (
    *(("restart", policy) for policy in ("no", "on-failure", "always", "always")),
    *(("max_restarts", most) for most in (0, 1, 2, 3)),
    *(("restart_delay_max", delay) for delay in (2.0, 3.0, 11.0, 50.0, 100.0)),
    *(("timeout", seconds) for seconds in (None, 5.0137, 100.0137, 4000.0137)),
    *(("grace_period", seconds) for seconds in (0.0, 2.25, 7.25, 30.25)),
    *(("session", session) for session in (None, "s", "t")),
    *(("type", kind) for kind in ("native", "native", "sandboxed")),
    *(("prompt_file", path) for path in (None, "p", "q")),
    *(("run", number) for number in "123"),
    *(("replicas", replicas) for replicas in (1, 2)),
)

AFTER = st.sampled_from((0.0, 0.0, 0.0, 0.1, 1.0, 3.0, 7.0, 31.0, 120.0, 1000.0, 5000.0))
"""Seconds that pass before an event."""
ANY = st.integers(0, 11)
"""Which one of those that there are, modulo how many."""
BACK = st.sampled_from((0.0, 0.5, 5.0, 400.0))
"""Seconds from the end of an agentd until the next."""
ENTRIES = st.builds(
    Entry,
    name=st.sampled_from(NAMES),
    restart=st.sampled_from(("always", "on-failure", "no")),
    max_restarts=st.sampled_from((0, 1, 3)),
    restart_delay_max=st.sampled_from((3.0, 2.0, 11.0, 100.0)),
    timeout=st.sampled_from((None, None, 5.0137, 100.0137, 4000.0137)),
    grace_period=st.sampled_from((7.25, 0.0, 2.25, 30.25)),
    prompt_file=st.sampled_from((None, None, "p", "q")),
    replicas=st.sampled_from((1, 1, 2)),
)

TOTAL = Counter[str]()


class Simulation(RuleBasedStateMachine):
    """One machine, from the first agentd to the clean end of the last."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage()
        self.machine: Machine
        self.chronicle: Chronicle
        self.up = False
        self.usual: Play
        self.whole = True
        self.since_rest = 0

    @initialize(
        entries=st.lists(ENTRIES, min_size=1, max_size=3),
        plays=st.lists(st.sampled_from(sorted(PLAYS)), max_size=3),
        usual=st.sampled_from(("steady", "steady", "slow to go", "slower than that", "deaf", "asks twice")),
        read_takes=st.sampled_from((0.0, 0.4)),
    )
    def boot(self, entries: list[Entry], plays: list[str], usual: str, read_takes: float) -> None:
        """Write the first card, and start the first agentd."""
        self.usual = PLAYS[usual]

        async def boot() -> None:
            self.machine = Machine(trio.current_time)
            self.machine.read_takes = read_takes
            self.chronicle = Chronicle(self.machine)
            self.machine.ground.entries = {entry.name: entry for entry in entries}
            for name in sorted({agent.name for entry in entries for agent in entry.agents()}):
                self._script(name, plays)
            self.stage.nursery.start_soon(self.machine.keep_one)
            await self._look()

        self._perform("_boot", boot)

    # What people do.

    @rule(after=AFTER, which=ANY, key=st.sampled_from(KEYS))
    def edit(self, after: float, which: int, key: tuple[str, Any]) -> None:
        """Change one key of an entry."""

        def edit() -> None:
            ground = self.machine.ground
            if ground.entries:
                entry = list(ground.entries.values())[which % len(ground.entries)]
                ground.entries[entry.name] = attrs.evolve(entry, **{key[0]: key[1]})
            self.machine.changed()

        self._event("edit", after, edit)

    @rule(after=AFTER, entry=ENTRIES)
    def add(self, after: float, entry: Entry) -> None:
        """Write a new entry, or an old one anew."""

        def add() -> None:
            self.machine.ground.entries[entry.name] = entry
            self.machine.changed()

        self._event("add", after, add)

    @rule(after=AFTER, which=ANY)
    def remove(self, after: float, which: int) -> None:
        """Take an entry out of the card."""

        def remove() -> None:
            ground = self.machine.ground
            if ground.entries:
                name = list(ground.entries)[which % len(ground.entries)]
                ground.removed.append(ground.entries.pop(name))
            self.machine.changed()

        self._event("remove", after, remove)

    @precondition(lambda self: self.machine.ground.removed)
    @rule(after=AFTER, which=ANY)
    def put_back(self, after: float, which: int) -> None:
        """Put an entry back that was taken out, as it was."""

        def put_back() -> None:
            ground = self.machine.ground
            entry = ground.removed.pop(which % len(ground.removed))
            ground.entries.setdefault(entry.name, entry)
            self.machine.changed()

        self._event("put back", after, put_back)

    @rule(after=AFTER, value=st.sampled_from("12"))
    def change_secret(self, after: float, value: str) -> None:
        """Change a secret: every agent has it in its environment."""

        def change() -> None:
            self.machine.ground.secrets["KEY"] = value
            self.machine.changed()

        self._event("secret", after, change)

    @rule(after=AFTER, path=st.sampled_from("pq"), text=st.sampled_from((None, None, "Do it.", "Do more.")))
    def write_prompt(self, after: float, path: str, text: str | None) -> None:
        """Change a prompt file, or make it unreadable."""

        def write() -> None:
            self.machine.ground.prompts[path] = text
            self.machine.changed()

        self._event("prompt", after, write)

    @rule(after=AFTER, broken=st.booleans())
    def break_card(self, after: float, broken: bool) -> None:
        """Make the card invalid, or mend it."""

        def break_() -> None:
            self.machine.ground.broken = broken
            self.machine.changed()

        self._event("invalid card" if broken else "valid card", after, break_)

    @rule(after=AFTER)
    def hang_up(self, after: float) -> None:
        """Ask for a look (SIGHUP)."""
        self._event("look", after, self.machine.changed)

    # What agents do.

    @rule(after=AFTER, which=ANY, code=st.sampled_from((0, 1, 1, 130, None)))
    def end(self, after: float, which: int, code: int | None) -> None:
        """Have a harness end with a code, or kill its launcher."""

        def end() -> None:
            if running := [attempt for attempt in self.machine.sessions.attempts.values() if attempt.runs]:
                attempt = running[which % len(running)]
                attempt.lose_launcher() if code is None else attempt.exit(code)

        self._event("launcher killed" if code is None else "exit", after, end)

    @rule(after=AFTER, which=ANY, plays=st.lists(st.sampled_from(sorted(PLAYS)), min_size=1, max_size=4))
    def script(self, after: float, which: int, plays: list[str]) -> None:
        """Say what the next attempts of an agent do, before they are as usual again."""
        self._event("script", after, lambda: self._script(self._name(which), plays))

    @rule(after=AFTER, which=ANY, there=st.booleans())
    def obstruct(self, after: float, which: int, there: bool) -> None:
        """Put something in the way of an agent's launches, or take it away."""

        def obstruct() -> None:
            causes = self.machine.sessions.causes
            if there:
                causes[self._name(which)] = Blocked(reason="workdir_missing", message="There is no workdir.")
            elif causes:
                del causes[list(causes)[which % len(causes)]]

        self._event("obstacle" if there else "obstacle gone", after, obstruct)

    @rule(after=AFTER, session=st.sampled_from(("a", "b", "s", "t")), there=st.booleans())
    def take_session(self, after: float, session: str, there: bool) -> None:
        """Make a session that agentd did not make, or end it."""

        def take() -> None:
            sessions = self.machine.sessions
            if there and session not in sessions.holders:
                sessions.foreign.add(session)
            else:
                sessions.foreign.discard(session)

        self._event("session taken", after, take)

    # What becomes of agentd.

    @precondition(lambda self: self.up)
    @rule(after=AFTER, touches=st.sampled_from((0, 0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 25)), back=BACK)
    def kill(self, after: float, touches: int, back: float) -> None:
        """Kill agentd, now or at one of the next things that it does to the world."""

        def kill() -> None:
            if (life := self.machine.life) is not None:
                life.back_after = back
                if touches:
                    life.dies_in = touches
                else:
                    life.die()

        self._event("kill", after, kill)

    @precondition(lambda self: self.up)
    @rule(after=AFTER, keep=st.booleans(), again=st.sampled_from((None, 0.0, 1.0)), back=BACK)
    def shut_down(self, after: float, keep: bool, again: float | None, back: float) -> None:
        """Stop agentd by a signal, with or without its agents; perhaps by a second one soon after."""

        async def shut_down() -> None:
            life = self.machine.life
            if life is not None and not life.ending:
                life.back_after = back
                life.stop(keep=keep)
            if again is not None:
                await trio.sleep(again)
                await self._look()
                if self.machine.life is life and life is not None and not life.hurry.is_set():
                    life.tell("hurry")
                    life.hurry.set()

        self._event("shutdown, agents kept" if keep else "shutdown", after, shut_down)

    @rule(after=AFTER, known=st.booleans())
    def lose_tmux(self, after: float, known: bool) -> None:
        """Let nobody know what an earlier agentd has left, or let it be known again."""

        def lose() -> None:
            self.machine.sessions.recovers = known

        self._event("recovers" if known else "does not recover", after, lose)

    @precondition(lambda self: self.since_rest > 12)
    @rule()
    def rest(self) -> None:
        """Let all be mended and quiet, and compare what runs with the card."""
        self._perform("_rest", self._rest)

    def teardown(self) -> None:
        """Come to rest, shut down cleanly, and see that nothing is left."""
        try:
            if self.whole and hasattr(self, "machine"):
                self._perform("_rest", self._rest)
                self._perform("_end", self._end)
                self._count()
        finally:
            if hasattr(self, "machine") and self.machine.life is not None:
                self.stage.perform(self._abandon)
            self.stage.end()

    def _event(self, kind: str, after: float, act: Callable[[], Awaitable[None] | None]) -> None:
        async def event() -> None:
            if after:
                await trio.sleep(after)
                await self._look()
            if (more := act()) is not None:
                await more
            await self._look()

        self._perform(kind, event)
        self.since_rest += 1

    def _perform(self, kind: str, what: Callable[[], object]) -> None:
        self.whole = False
        self.stage.perform(what)  # type: ignore[arg-type]
        self.whole = True
        TOTAL[kind] += 1

    async def _look(self) -> None:
        """Have everything happen that happens now, and look whether it is as it must be."""
        await self.machine.settle()
        self.chronicle.tell(trio.current_time())
        self.up = self.machine.life is not None

    async def _rest(self) -> None:
        self.since_rest = 0
        self.machine.sessions.recovers = True
        if self.machine.ground.broken:
            self.machine.ground.broken = False
            self.machine.changed()
        for _ in range(40):
            await trio.sleep(TICK + 1)
            await self._look()
            if self.machine.life is not None:
                self.machine.life.dies_in = None
            if self.machine.ground.card() is None:
                self.machine.ground.entries.clear()
                self.machine.changed()
            elif self.chronicle.is_quiet():
                self.chronicle.check_at_rest(trio.current_time())
                return
        message = f"never comes to rest: {[str(run) for run in self.chronicle.here]}"
        raise AssertionError(message)

    async def _end(self) -> None:
        life = self.machine.life
        assert life is not None
        life.back_after = 1e9
        life.stop(keep=False)
        await trio.sleep(2 * TICK)
        await self._look()
        assert self.machine.life is None, "does not end"

    async def _abandon(self) -> None:
        assert self.machine.life is not None
        self.machine.life.die()

    def _name(self, which: int) -> str:
        agents = [agent for entry in self.machine.ground.entries.values() for agent in entry.agents()]
        return agents[which % len(agents)].name if agents else "a"

    def _script(self, name: str, plays: list[str]) -> None:
        self.machine.sessions.script(name, *(PLAYS[play] for play in plays), self.usual)

    def _count(self) -> None:
        TOTAL.update({f"_{what}": count for what, count in self.chronicle.counts.items()})
        TOTAL["_lives"] += self.machine.lives
        TOTAL["_seconds"] += int(self.machine.wall() - 1_800_000_000)
        TOTAL["_restarts"] += sum(run.restarts for run in self.chronicle.runs.values())


@contextmanager
def silence() -> Iterator[None]:
    """Nobody reads the log of months."""
    logger = logging.getLogger("agentd")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def events() -> int:
    """How many events there were: what a rule did, but not the coming to rest, the first start and the last end."""
    return sum(count for kind, count in TOTAL.items() if not kind.startswith("_"))


def told(seconds: float, cpu: float) -> str:
    """What the simulation has gone through, for people."""
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(TOTAL.items()) if not kind.startswith("_"))
    return (
        f"{events()} events in {TOTAL['_seconds'] / 86_400:.0f} simulated days, {seconds:.1f} s,"
        f" of which {cpu:.1f} s of CPU: {kinds}.\nThis made {TOTAL['_launch']} launches, {TOTAL['_start']} starts,"
        f" {TOTAL['_end']} ends, {TOTAL['_restarts']} restarts, {TOTAL['_C-c']} C-c, {TOTAL['_forget']} runs stopped"
        f" and forgotten, {TOTAL['_adopt']} runs taken over, {TOTAL['_look']} looks; {TOTAL['_lives']} agentds,"
        f" of which {TOTAL['_death']} were killed; {TOTAL['_rest']} times at rest."
    )


def test_simulation(record_property: Callable[[str, object], None]) -> None:
    """Through months, and whenever agentd is killed: one attempt of each agent, by its policy, as the card says."""
    how = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate, Phase.shrink],  # to explain takes a trace of every line
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    TOTAL.clear()
    began, cpu = time.monotonic(), time.process_time()
    with silence():
        for number in itertools.count(SEED):
            run_state_machine_as_test(seed(number)(Simulation), settings=how)
            if events() >= EVENTS:
                break
    record_property("simulation", told(time.monotonic() - began, time.process_time() - cpu))
