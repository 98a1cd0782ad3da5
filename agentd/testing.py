"""FakeSessions: scripted agents on the virtual clock, for tests of everything above the `Sessions` seam.

It is held to the truth by the contract tests, which run the same on it and on real tmux.
"""

from collections import defaultdict, deque
from collections.abc import Callable

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
    """An error that no caller expects, as a bug of agentd would raise it at the launch."""


@attrs.frozen
class Happened:
    """One thing that a fake attempt saw, at a time of trio's clock."""

    at: float
    agent: str
    what: str


class FakeSessions:
    """A world of scripted agents: `plays[name]` is consumed attempt by attempt, the last play repeats."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self.plays: dict[str, deque[Play]] = defaultdict(deque)
        self.happened: list[Happened] = []
        self.causes: dict[str, Blocked] = {}
        """Agents whose cause of being blocked is still there."""
        self.alive: dict[str, int] = defaultdict(int)
        """Live harnesses by agent: never more than one."""
        self.sessions: set[str] = set()
        self.notes: dict[str, RunNote] = {}
        """What is remembered of each run, by its id."""
        self.attempts: dict[tuple[str, int], FakeAttempt] = {}
        """All attempts, by run and number: they live on when an agentd is killed."""
        self.recovers = True
        self.wall = wall
        self._pid = 1000

    def script(self, name: str, *plays: Play) -> None:
        """Say what the next attempts of an agent do."""
        self.plays[name] = deque(plays)

    async def recover(self) -> tuple[RunNote, ...] | None:
        """What was remembered, unless the test says that nobody knows."""
        await trio.lowlevel.checkpoint()
        return tuple(map(self._heard, self.notes.values())) if self.recovers else None

    def _heard(self, note: RunNote) -> RunNote:
        """The note, but where an attempt came up and ended while nobody listened."""
        over = self.attempts[note.run, note.status.attempt].is_over()
        if note.status.state is State.STARTING and over:
            return attrs.evolve(note, status=attrs.evolve(note.status, state=State.RUNNING))
        return note

    def adopt(self, request: AttemptRequest) -> "FakeAttempt":
        """The attempt that is there."""
        attempt = self.attempts[request.run, request.number]
        attempt.request = request
        return attempt

    def remember(self, note: RunNote, attempt: Attempt) -> None:
        """Keep the note."""
        del attempt
        self.notes[note.run] = note

    def forget(self, run: str) -> None:
        """Drop the note."""
        self.notes.pop(run, None)

    def attempt(self, request: AttemptRequest) -> "FakeAttempt":
        """A new scripted attempt."""
        name = request.effective.agent.name
        plays = self.plays[name]
        play = plays.popleft() if len(plays) > 1 else plays[0] if plays else Play()
        self._pid += 1
        attempt = self.attempts[request.run, request.number] = FakeAttempt(self, request, play, self._pid)
        return attempt

    async def still_blocked(self, effective: EffectiveAgent, blocked: Blocked) -> bool:
        """Whether the test has not yet taken the cause away."""
        del blocked
        await trio.lowlevel.checkpoint()
        return effective.agent.name in self.causes

    def times(self, name: str, what: str) -> list[float]:
        """When something happened to an agent."""
        return [happened.at for happened in self.happened if (happened.agent, happened.what) == (name, what)]


class FakeAttempt:
    """One scripted attempt."""

    def __init__(self, world: FakeSessions, request: AttemptRequest, play: Play, pid: int) -> None:
        self._world = world
        self.request = request
        self._name = request.effective.agent.name
        self._play = play
        self._pid = pid
        self._started: float | None = None
        self._exit: Exit | None = None
        self._ending = trio.Event()
        self._ends_at: float | None = None
        self._code = play.code
        self._presses = 0
        self._defied = 0

    def is_over(self) -> bool:
        """Whether it has come up, and ended."""
        return self._exit is not None or (self._ends_at is not None and trio.current_time() >= self._ends_at)

    async def launch(self) -> int:
        """Play the launch, or go on with it."""
        if self._started is not None:
            await trio.lowlevel.checkpoint()
            return self._pid
        if not self.request.effective.argv:
            raise LaunchBlockedError(stand_in_blocked())
        self._note("launch")
        play = self._play
        if play.bug is not None:
            raise RuntimeError(play.bug)
        if play.blocked is not None:
            self._world.causes[self._name] = play.blocked
            raise LaunchBlockedError(play.blocked)
        self._world.sessions.add(self.request.effective.agent.session)
        if play.start_after >= NEVER_STARTED_AFTER:
            await trio.sleep(NEVER_STARTED_AFTER)
            msg = "no sign of life"
            raise NeverStartedError(msg)
        await trio.sleep(play.start_after)
        self._started = trio.current_time()
        self._world.alive[self._name] += 1
        self._note("start")
        if play.ends_after is not None:
            self._end_at(self._started + play.ends_after, play.code)
        return self._pid

    async def ended(self) -> Exit:
        """Wait for the scripted end."""
        while self._exit is None:
            if self._ends_at is None:
                await self._ending.wait()
                continue
            moved = self._ending
            with trio.move_on_at(self._ends_at):
                await moved.wait()
            if trio.current_time() >= self._ends_at:
                self._finish()
        await trio.lowlevel.checkpoint()
        assert self._exit is not None
        return self._exit

    async def interrupt(self, *, again: bool) -> bool:
        """Take a C-c."""
        await trio.lowlevel.checkpoint()
        if again and not self._play.raw:
            return False
        self._presses += 1
        self._note("C-c")
        if self._presses == self._play.exits_on:
            self._end_at(trio.current_time() + self._play.interrupt_takes, self._play.interrupt_code)
        return self._play.raw

    async def sweep(self) -> int:
        """End what is left, the harness included."""
        self._note("sweep")
        await trio.sleep(self._play.sweep_takes)
        if self._started is not None and self._exit is None:
            self._code = 137
            self._finish()
        if self._defied < self._play.defies:
            self._defied += 1
            return 1
        return 0

    async def close(self) -> None:
        """End the session."""
        await trio.lowlevel.checkpoint()
        self._note("close")
        self._world.sessions.discard(self.request.effective.agent.session)

    def _end_at(self, when: float, code: int) -> None:
        if self._exit is None and (self._ends_at is None or when < self._ends_at):
            self._ends_at, self._code = when, code
            self._ending.set()
            self._ending = trio.Event()

    def _finish(self) -> None:
        if self._exit is not None:  # swept at the instant of its own end
            return
        assert self._started is not None
        lasted = trio.current_time() - self._started
        at = self._world.wall()
        if self._play.killed:
            self._exit = Exit(how=How.KILLED, at=at, duration=lasted)
        else:
            self._exit = exit_from_code(self._code, at=at, duration=lasted)
        self._world.alive[self._name] -= 1
        self._note("end")
        self._ending.set()

    def _note(self, what: str) -> None:
        self._world.happened.append(Happened(trio.current_time(), self._name, what))
