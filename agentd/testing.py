"""FakeSessions: scripted agents on the virtual clock, for tests of everything above the `Sessions` seam.

Its world lives on whether or not somebody listens, as the real one does when an agentd is killed. It is held to the
truth by the contract tests, which run the same on it and on real tmux.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Literal

import attrs
import trio

from agentd.lifecycle import Exit, How, State, exit_from_code
from agentd.resolve import Blocked, EffectiveAgent
from agentd.sessions import (
    Attempt,
    AttemptRequest,
    LaunchBlockedError,
    NeverStartedError,
    RunNote,
    stand_in_blocked,
)

NEVER_STARTED_AFTER = 30.0


@attrs.frozen(kw_only=True)
class Play:
    """What one attempt of a scripted agent does. Times are seconds on the virtual clock."""

    start_after: float = 0.0
    """Until the harness runs; 30 s and more is a launch that never starts."""
    ends_after: float | None = None
    """From the start to an exit by itself; None runs until it is stopped."""
    code: int = 0
    killed: bool = False
    """Ends without a word: the launcher is gone."""
    leaves: bool = False
    """Something of it lives on after its end, until a sweep; where its launcher is gone, the harness itself."""
    exits_on: int | None = 1
    """The C-c that it exits on; None ignores them all."""
    interrupt_takes: float = 0.0
    """From that C-c to its exit."""
    interrupt_code: int = 130
    raw: bool = False
    """A full-screen UI: C-c is only a byte."""
    sweep_takes: float = 0.0
    """What ending its left-overs takes; a live harness that is swept ends after it, by SIGKILL."""
    defies: int = 0
    """How many sweeps report a process that cannot be ended."""
    blocked: Blocked | None = None
    bug: str | None = None
    """An error that no caller expects, as a bug of agentd would raise it, once."""
    bug_in: Literal["launch", "ended", "interrupt", "sweep", "close"] = "launch"


@attrs.frozen
class Happened:
    """One thing that a fake attempt saw, at a time of trio's clock."""

    at: float
    agent: str
    what: str
    run: str = attrs.field(default="", kw_only=True)
    number: int = attrs.field(default=0, kw_only=True)
    code: int | None = attrs.field(default=None, kw_only=True)
    """Of an end: what the launcher said, or None where it was gone."""


class FakeSessions:
    """A world of scripted agents: `plays[name]` is consumed attempt by attempt, the last play repeats."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self.plays: dict[str, deque[Play]] = defaultdict(deque)
        self.happened: list[Happened] = []
        self.causes: dict[str, Blocked] = {}
        """What is in the way of an agent's launches."""
        self.foreign: set[str] = set()
        """Sessions that somebody else has made."""
        self.holders: dict[str, str] = {}
        """Whose our sessions are, by run."""
        self.notes: dict[str, RunNote] = {}
        """What is remembered of each run, by its id."""
        self.attempts: dict[tuple[str, int], FakeAttempt] = {}
        """All attempts, by run and number: they live on when an agentd is killed."""
        self.recovers = True
        self.shortages: tuple[str, ...] = ()
        self.wall = wall
        self._pid = 1000

    @property
    def sessions(self) -> set[str]:
        """Our sessions, by name."""
        return set(self.holders)

    @property
    def alive(self) -> Counter[str]:
        """Live attempts by agent: never more than one."""
        return Counter(attempt.name for attempt in self.attempts.values() if attempt.lives)

    def script(self, name: str, *plays: Play) -> None:
        """Say what the next attempts of an agent do."""
        self.plays[name] = deque(plays)

    def next_pid(self) -> int:
        """A pid that nothing had before."""
        self._pid += 1
        return self._pid

    async def recover(self) -> tuple[RunNote, ...] | None:
        """What was remembered, unless the test says that nobody knows; what no note tells of is ended."""
        await trio.lowlevel.checkpoint()
        if not self.recovers:
            return None
        notes = tuple(map(self._heard, self.notes.values()))
        noted = {(note.run, note.status.attempt) for note in notes}
        for key, attempt in self.attempts.items():
            if key not in noted:
                attempt.end_leftover()
        self.holders = {session: run for session, run in self.holders.items() if run in self.notes}
        return notes

    def _heard(self, note: RunNote) -> RunNote:
        """The note, but where an attempt came up, and said how it ended, while nobody listened."""
        if note.status.state is State.STARTING and self.attempts[note.run, note.status.attempt].has_said_its_end:
            return attrs.evolve(note, status=attrs.evolve(note.status, state=State.RUNNING))
        return note

    def adopt(self, request: AttemptRequest) -> "FakeAttempt":
        """The attempt that is there."""
        attempt = self.attempts[request.run, request.number]
        attempt.request = request
        attempt.take_over(self.notes[request.run])
        return attempt

    def remember(self, note: RunNote, attempt: Attempt) -> None:
        """Keep the note."""
        del attempt
        self.notes[note.run] = note

    def forget(self, run: str) -> None:
        """Drop the note."""
        self.notes.pop(run, None)

    def catch_up(self) -> tuple[str, ...]:
        """What the test says that there is not enough of."""
        return self.shortages

    def attempt(self, request: AttemptRequest) -> "FakeAttempt":
        """A new scripted attempt."""
        plays = self.plays[request.effective.agent.name]
        play = plays.popleft() if len(plays) > 1 else plays[0] if plays else Play()
        attempt = self.attempts[request.run, request.number] = FakeAttempt(self, request, play, self.next_pid())
        return attempt

    async def still_blocked(self, effective: EffectiveAgent, blocked: Blocked) -> bool:
        """Whether the test has not yet taken the cause away."""
        await trio.lowlevel.checkpoint()
        if blocked.reason == "session_taken" and effective.agent.session in self.foreign:
            return True
        return effective.agent.name in self.causes

    def times(self, name: str, what: str) -> list[float]:
        """When something happened to an agent."""
        return [happened.at for happened in self.happened if (happened.agent, happened.what) == (name, what)]


class FakeAttempt:
    """One scripted attempt."""

    def __init__(self, world: FakeSessions, request: AttemptRequest, play: Play, pid: int) -> None:
        self.name = request.effective.agent.name
        self.play = play
        self.pid = pid
        self._world = world
        self.request = request
        self._starts_at: float | None = None
        self._started: float | None = None
        self._heard = 0.0
        """When the agentd that has it heard of its start."""
        self._ends_at: float | None = None
        self._ends_with: int | None = None
        self._ended: float | None = None
        self._said: int | None = None
        """How it ended, as its launcher has said; None where that was gone without a word."""
        self._left = False
        self._exit: Exit | None = None
        self._moved = trio.Event()
        self._presses = 0
        self._defied = 0
        self._bugged = False
        self._blocked = False

    def __repr__(self) -> str:
        return f"<FakeAttempt {self.request.run}/{self.request.number} of {self.name!r}>"

    @property
    def runs(self) -> bool:
        """Whether its launcher waits for a harness that runs."""
        self.settle()
        return self._started is not None and self._ended is None

    @property
    def lives(self) -> bool:
        """Whether anything of it is there: the harness, or what it left."""
        return self.runs or self._left

    @property
    def may_start(self) -> bool:
        """Whether it was launched and has not come up yet."""
        self.settle()
        return self._starts_at is not None

    @property
    def has_said_its_end(self) -> bool:
        """Whether it came up, and ended, and its launcher has said how."""
        self.settle()
        return self._ended is not None and self._said is not None

    def is_over(self) -> bool:
        """Whether it came up, and has ended."""
        self.settle()
        return self._ended is not None

    def settle(self) -> None:
        """Have everything happen for which the time has come, whether or not somebody listens."""
        now = trio.current_time()
        if self._starts_at is not None and self._starts_at <= now:
            self._started, self._starts_at = self._starts_at, None
            self._note("start", self._started)
            if self.play.ends_after is not None:
                self._end_at(self._started + self.play.ends_after, None if self.play.killed else self.play.code)
        if self._ends_at is not None and self._ends_at <= now:
            self._end(self._ends_at, self._ends_with, left=self.play.leaves)

    def exit(self, code: int) -> None:
        """The harness ends now, with that code."""
        self._end_at(trio.current_time(), code)

    def lose_launcher(self) -> None:
        """Somebody kills the launcher now: its harness, if it leaves something, lives on, and nobody hears of it."""
        self._end_at(trio.current_time(), None)

    def take_over(self, note: RunNote) -> None:
        """Be another agentd's now, which knows what the note says."""
        self._heard = trio.current_time() if note.started is None else note.started
        self._exit = None

    def end_leftover(self) -> None:
        """End what no note tells of."""
        self._starts_at = None
        if self.lives:
            self._note("leftover")
            self._end_by_force()

    async def launch(self) -> int:
        """Play the launch, or go on with it."""
        self.settle()
        if self._started is not None:
            if self._ended is None or self._said is not None:
                await trio.lowlevel.checkpoint()
                self._heard = trio.current_time()
                return self.pid
            await self._begin_anew()
        if not self.request.effective.argv:
            raise LaunchBlockedError(stand_in_blocked())
        self._note("launch")
        self._fail_once_in("launch")
        self._take_session()
        if self.play.blocked is not None and not self._blocked:
            self._blocked = True
            self._world.causes[self.name] = self.play.blocked
        if (cause := self._world.causes.get(self.name)) is not None:
            raise LaunchBlockedError(cause)
        began = trio.current_time()
        if self.play.start_after >= NEVER_STARTED_AFTER:
            await trio.sleep(NEVER_STARTED_AFTER)
            msg = "no sign of life"
            raise NeverStartedError(msg)
        self._starts_at = began + self.play.start_after
        await trio.sleep_until(self._starts_at)
        self.settle()
        self._heard = trio.current_time()
        return self.pid

    async def ended(self) -> Exit:
        """Wait for the scripted end."""
        self._fail_once_in("ended")
        while self.runs:
            moved = self._moved
            with trio.move_on_at(trio.current_time() + 1e9 if self._ends_at is None else self._ends_at):
                await moved.wait()
        await trio.lowlevel.checkpoint()
        assert self._started is not None, "it was launched"
        if self._exit is None:
            at, lasted = self._world.wall(), trio.current_time() - self._heard
            if self._said is None:
                self._exit = Exit(how=How.KILLED, at=at, duration=lasted)
            else:
                self._exit = exit_from_code(self._said, at=at, duration=lasted)
        return self._exit

    async def interrupt(self, *, again: bool) -> bool:
        """Take a C-c."""
        await trio.lowlevel.checkpoint()
        self._fail_once_in("interrupt")
        if again and not self.play.raw:
            return False
        self._presses += 1
        self._note("C-c")
        if self._presses == self.play.exits_on and self.runs:
            self._end_at(trio.current_time() + self.play.interrupt_takes, self.play.interrupt_code)
        return self.play.raw

    async def sweep(self) -> int:
        """End what is left, the harness included; what has not come up never will."""
        self._note("sweep")
        self._fail_once_in("sweep")
        self.settle()
        self._starts_at = None
        await trio.sleep(self.play.sweep_takes)
        if self._defied < self.play.defies:
            self._defied += 1
            self._end_by_force()
            self._left = self._started is not None
            return 1
        self._end_by_force()
        return 0

    async def close(self) -> None:
        """End the session, and what lives in it."""
        await trio.lowlevel.checkpoint()
        self._fail_once_in("close")
        self._note("close")
        self._end_by_force()
        session = self.request.effective.agent.session
        if self._world.holders.get(session) == self.request.run:
            del self._world.holders[session]

    async def _begin_anew(self) -> None:
        """End what came of a launch whose launcher was gone without a word: nobody can hear of its end."""
        await trio.sleep(self.play.sweep_takes)
        self._end_by_force()
        self._started = self._ended = self._ends_at = None
        self.pid = self._world.next_pid()

    def _take_session(self) -> None:
        world, session, run = self._world, self.request.effective.agent.session, self.request.run
        if session in world.foreign:
            raise LaunchBlockedError(Blocked(reason="session_taken", message=f"Somebody has the session {session!r}."))
        holder = world.holders.get(session, run)
        for (other, _), attempt in world.attempts.items():
            if other == holder != run:
                attempt.end_leftover()
        world.holders[session] = run

    def _end_at(self, when: float, code: int | None) -> None:
        if self._ended is None and (self._ends_at is None or when < self._ends_at):
            self._ends_at, self._ends_with = when, code
            self._moved.set()
            self._moved = trio.Event()

    def _end_by_force(self) -> None:
        if self.runs:
            self._end(trio.current_time(), 137, left=False)
        self._left = False

    def _end(self, when: float, code: int | None, *, left: bool) -> None:
        self._ended, self._said, self._left, self._ends_at = when, code, left, None
        self._note("end", when, code)
        self._moved.set()

    def _fail_once_in(self, where: str) -> None:
        if self.play.bug is not None and self.play.bug_in == where and not self._bugged:
            self._bugged = True
            raise RuntimeError(self.play.bug)

    def _note(self, what: str, at: float | None = None, code: int | None = None) -> None:
        when = trio.current_time() if at is None else at
        run, number = self.request.run, self.request.number
        self._world.happened.append(Happened(when, self.name, what, run=run, number=number, code=code))
