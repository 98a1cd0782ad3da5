"""What must be true of a simulated machine: its history told anew from the outside, and held against what agentd says.

Nothing here is agentd's own: the policy, the backoff, the timeout and what follows from card and world are written
down a second time, from the words of docs/design.md. What agentd did is only read: launches, stops, notes, statuses.
"""

import math
from collections.abc import Mapping

import attrs
import trio

from agentd.card.card import Agent
from agentd.lifecycle import State
from agentd.resolve import Blocked, EffectiveAgent, Unsupported
from agentd.sessions import RunNote
from agentd.status import AgentStatus
from agentd.testing import FakeAttempt, Happened
from tests.unit.simulated import Machine, Told
from tests.unit.world import EPOCH

CLOSE = 1e-4
"""Seconds: months after the epoch, a float has no more than that."""
_WISHES = {"removed", "changed", "shutdown"}


def same(one: float | None, other: float | None) -> bool:
    """Whether two times are the same, as far as floats can tell."""
    return one is other or (one is not None and other is not None and abs(one - other) < CLOSE)


@attrs.define(kw_only=True)
class RunStory:
    """One run, as the world has seen it."""

    run: str
    name: str
    agent: Agent
    digest: str
    number: int = 0
    last: str = "launching"
    """How far its last attempt is: launching, alive, ended, never, blocked, withdrawn, bug."""
    heard: float | None = None
    code: int | None = None
    unseen: bool = False
    """Whether its last attempt has ended, and no agentd has judged that."""
    restarts: int = 0
    doublings: int = 0
    due: float | None = None
    final: str | None = None
    """How it ended for good: completed, failed, timed_out, bug."""
    deadline: float | None = None
    swept: float = -math.inf
    sweeping: bool = False
    wished: str | None = None
    stopping: float | None = None
    """Since when it is being stopped."""
    here: bool = True
    """Whether the agentd that lives has it."""
    since: float = 0.0
    """When that took it over."""
    known: bool = True
    known_at: float = -math.inf
    lasted: float | None = None
    """How long the attempt lasted whose end cannot be judged before the entry can be read."""
    resumed: bool = False
    """Whether its launch was under way when it was taken over."""
    gone: bool = False
    changed: float = -math.inf
    """When anything of this changed last."""
    left: float = -math.inf
    """When the agentd that had it last was gone."""

    def __str__(self) -> str:
        words = f"{self.name} (run {self.run}, attempt {self.number}, {self.last}"
        more = {"final": self.final, "wished": self.wished, "due": self.due, "deadline": self.deadline}
        return words + "".join(f", {key} {value}" for key, value in more.items() if value is not None) + ")"

    @property
    def is_over(self) -> bool:
        """Whether nothing of it may be launched any more, or not by the agentd that lives."""
        return not self.here or self.wished is not None or self.final is not None

    def judge(self, now: float, lasted: float, *, failed: bool) -> None:
        """The restart policy, once more."""
        agent = self.agent
        self.unseen, self.lasted, self.changed = False, None, now
        again = agent.restart == "always" or (agent.restart == "on-failure" and failed)
        exhausted = again and 0 < agent.max_restarts <= self.restarts
        if not again or exhausted:
            self.final = "failed" if failed or exhausted else "completed"
            self.deadline = self.due = None
            return
        if lasted > 10 and lasted > agent.restart_delay_max:
            self.doublings = 0
        self.due = now + min(3.0 * 2**self.doublings, agent.restart_delay_max)
        self.doublings += 1


class Chronicle:
    """The history of a machine, told step by step; `fail` stops it at the first thing that must not be."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.runs: dict[str, RunStory] = {}
        self.counts: dict[str, int] = {}
        self._told = 0
        self._wanted: Mapping[str, tuple[Agent, EffectiveAgent | Blocked | Unsupported]] = {}
        self._looked = -math.inf
        self._hurried = math.inf
        self._revision: tuple[object, int] = (None, 0)

    @property
    def here(self) -> list[RunStory]:
        """The runs that the living agentd has."""
        return [life for life in self.runs.values() if life.here and not life.gone]

    def tell(self, now: float) -> None:
        """Go on with the history until now, then look at what is."""
        fresh = sorted(self.machine.sessions.happened[self._told :], key=lambda happened: happened.at)
        self._told = len(self.machine.sessions.happened)
        for happened in fresh:
            self._time_out(happened.at)
            self.counts[happened.what] = self.counts.get(happened.what, 0) + 1
            getattr(self, "_" + happened.what.replace("-", "_"))(happened)
        self._time_out(now)
        assert not self.machine.faults, self.machine.faults
        self._check_revision()
        life = self.machine.life
        for run in self.here:
            if run.stopping is not None and self._attempt(run).runs:
                self._check_stop_is_in_time(run, now)
            if run.final is None and run.wished is None and run.due is not None and run.known:
                assert now <= max(run.due, run.swept, run.known_at) + CLOSE or run.sweeping, f"late: {run}"
        if life is not None and not life.over and life.recovered:
            self._check_statuses({status.name: status for status in life.store.agents})

    def is_quiet(self) -> bool:
        """Whether nothing is under way that has to come to an end by itself."""
        life = self.machine.life
        if life is None or life.ending or not life.recovered:
            return False
        return all(
            run.wished is None
            and (run.final is not None or (run.last != "launching" and (run.due is None or not run.known)))
            and (run.final != "timed_out" or not self._attempt(run).runs)
            # Whose cause is gone is launched at the next look, or when what defied its sweep has ended.
            and (run.final is not None or run.last != "blocked" or not run.known or self._is_obstructed(run.agent))
            for run in self.here
        )

    def _is_obstructed(self, agent: Agent) -> bool:
        """Whether something is in the way of its launch."""
        return agent.name in self.machine.sessions.causes or agent.session in self.machine.sessions.foreign

    def check_at_rest(self, now: float) -> None:
        """What runs is what the card says."""
        life = self.machine.life
        assert life is not None
        runs = {run.name: run for run in self.here}
        statuses = {status.name: status for status in life.store.agents}
        assert list(statuses) == list(self._wanted), (list(statuses), list(self._wanted))
        assert set(runs) <= set(self._wanted)
        for name, (agent, what) in self._wanted.items():
            run, status = runs.get(name), statuses[name]
            if isinstance(what, EffectiveAgent):
                assert run is not None, f"{name} is wanted, and has no run: {status}"
                assert run.digest == what.digest, f"{run} is not what the card says"
                if run.final is None:
                    cause = self._is_obstructed(agent)
                    assert (run.last, cause) in {("alive", False), ("alive", True), ("blocked", True)}, f"{run} rests"
            elif run is None:
                reason = "unsupported_type" if isinstance(what, Unsupported) else "prompt_file"
                state = State.FAILED if isinstance(what, Unsupported) else State.WAITING
                assert (status.state, status.reason, status.running) == (state, reason, False), status
            else:
                assert isinstance(what, Blocked), f"{run} of an unsupported type"
                assert run.final or run.due is None or (run.due <= now and not run.known), f"{run} rests"
        # Who has ended may still be swept; that none is left of an agentd that has ended is seen at its end.
        active = sum(run.final is None for run in self.here)
        tasks = trio.lowlevel.current_statistics().tasks_living - (self.machine.tasks or 0) - 1
        assert 2 * active <= tasks <= 2 * len(self.here), f"{tasks} tasks live, of {active} runs"
        held = set(self.machine.sessions.holders.values())
        assert held <= {run.run for run in self.here}, "a session belongs to no run"
        assert set(self.machine.sessions.notes) == {run.run for run in self.here}, "the notes are not the runs"

    # What happens.

    def _launch(self, happened: Happened) -> None:
        run, now = self.runs.get(happened.run), happened.at
        if run is None:
            run = self._begin(happened)
        elif happened.number == run.number:
            assert run.resumed, f"launched again: {run}"
            assert not run.is_over, f"launched after its end: {run}"
        else:
            assert happened.number == run.number + 1, f"an attempt is missing: {run}"
            self._check_next(run, now)
        run.resumed = False
        run.number, run.last, run.heard, run.due, run.unseen = happened.number, "launching", None, None, False
        run.code = None
        run.changed = now
        if run.deadline is None and run.agent.timeout is not None:
            run.deadline = now + run.agent.timeout
        assert run.deadline is None or now < run.deadline, f"launched after its time: {run}"

    def _begin(self, happened: Happened) -> RunStory:
        name = happened.agent
        run = self._meet(happened)
        _, what = self._wanted.get(name, (None, None))
        assert isinstance(what, EffectiveAgent), f"{name} is launched, and wanted is {what}"
        assert what.digest == run.digest, f"{name} is launched with another digest than wanted"
        for other in self.runs.values():
            if other is not run and (other.name == name or other.agent.session == run.agent.session):
                assert other.gone, f"{name} has not waited for {other}"
        return run

    def _meet(self, happened: Happened) -> RunStory:
        effective = self.machine.sessions.attempts[happened.run, happened.number].request.effective
        name = happened.agent
        run = RunStory(run=happened.run, name=name, agent=effective.agent, digest=effective.digest, since=happened.at)
        self.runs[run.run] = run
        return run

    def _check_next(self, run: RunStory, now: float) -> None:
        assert not run.is_over, f"launched after its end: {run}"
        assert run.known, f"launched, and nobody knows what it is: {run}"
        match run.last:
            case "ended" | "never":
                assert run.due is not None, f"restarted without a reason: {run}"
                expected = max(run.due, run.swept, run.known_at)
                assert same(now, expected), f"restarted at {now} and not at {expected}: {run}"
                run.restarts += 1
                assert not run.agent.max_restarts or run.restarts <= run.agent.max_restarts, f"once too often: {run}"
            case "blocked":
                assert same(now, self._looked) or same(now, run.swept), f"tried again without a look: {run}"
            case "withdrawn":
                assert same(now, run.known_at) or same(now, run.swept), f"begun anew at {now}: {run}"
            case _:
                message = f"launched twice at once: {run}"
                raise AssertionError(message)

    def _noted(self, happened: Happened) -> None:
        run = self.runs.get(happened.run)
        if run is not None:
            run.changed = happened.at

    def _start(self, happened: Happened) -> None:
        run = self.runs[happened.run]
        assert run.last == "launching", f"came up: {run}"
        run.last = "alive"

    def _heard(self, happened: Happened) -> None:
        run = self.runs[happened.run]
        run.heard = run.changed = happened.at
        run.resumed = False
        if run.unseen:
            self._see(run, happened.at)

    def _end(self, happened: Happened) -> None:
        run = self.runs[happened.run]
        if run.last == "withdrawn":
            return
        run.last, run.code = "ended", happened.code
        if run.final is not None or run.wished is not None:
            if run.here and run.stopping is not None:
                self._check_stop_is_in_time(run, happened.at)
                self._check_grace(run, happened)
            return
        run.unseen = True
        if run.here and run.heard is not None:
            self._see(run, happened.at)

    def _see(self, run: RunStory, now: float) -> None:
        """An agentd hears of the end of the last attempt."""
        assert run.heard is not None
        lasted = now - run.heard
        if run.known:
            run.judge(now, lasted, failed=run.code != 0)
        else:
            run.lasted = lasted

    def _never(self, happened: Happened) -> None:
        run = self.runs[happened.run]
        run.last = "never"
        if run.wished is None and run.final is None:
            run.judge(happened.at, 0.0, failed=True)

    def _blocked(self, happened: Happened) -> None:
        run = self.runs[happened.run]
        run.last, run.changed = "blocked", happened.at
        if run.restarts == 0:
            run.deadline = None

    def _bug(self, happened: Happened) -> None:
        run = self.runs[happened.run]
        if run.final is None or run.wished is None:
            run.final = "bug"
        run.changed = happened.at

    def _C_c(self, happened: Happened) -> None:  # noqa: N802 - what happened
        run = self.runs[happened.run]
        assert run.stopping is not None or run.final == "bug", f"C-c without a stop: {run}"

    def _sweep(self, happened: Happened) -> None:
        run = self.runs[happened.run]
        run.sweeping = True
        if run.here and run.resumed and not run.known and run.wished is None:
            run.last, run.changed = "withdrawn", happened.at

    def _swept(self, happened: Happened) -> None:
        run = self.runs[happened.run]
        run.swept, run.sweeping = happened.at, False

    def _unswept(self, happened: Happened) -> None:
        run = self.runs[happened.run]
        run.swept, run.sweeping = math.inf, False

    def _close(self, happened: Happened) -> None:
        run = self.runs[happened.run]
        assert run.wished is not None, f"its session is ended: {run}"

    def _forget(self, happened: Happened) -> None:
        run = self.runs[happened.run]
        assert run.wished is not None, f"forgotten: {run}"
        run.gone = True

    def _leftover(self, happened: Happened) -> None:
        message = f"no note told of {self.runs[happened.run]}"
        raise AssertionError(message)

    def _look(self, happened: Told) -> None:
        self._wanted, self._looked = happened.data, happened.at
        for run in self.here:
            self._consider(run, happened.at)

    def _consider(self, run: RunStory, now: float) -> None:
        """What a look means to a run."""
        agent, what = self._wanted.get(run.name, (None, None))
        match what:
            case EffectiveAgent(digest=run.digest):
                if not run.known:
                    run.known, run.known_at, run.agent = True, now, what.agent
                    if run.lasted is not None and run.final is None and run.wished is None:
                        run.judge(now, run.lasted, failed=run.code != 0)
                return
            case Blocked():
                if run.final is None or not run.known or agent == run.agent:
                    return
                cause = "changed"
            case None:
                cause = "removed"
            case _:
                cause = "changed"
        self._wish(run, cause, now)

    def _wish(self, run: RunStory, cause: str, now: float) -> None:
        if run.wished is None:
            run.wished, run.changed = cause, now
            if run.final is None:
                run.stopping = now

    def _born(self, _: Happened) -> None:
        self._hurried, self._wanted = math.inf, {}

    def _hurry(self, happened: Happened) -> None:
        self._hurried = happened.at

    def _shutdown(self, happened: Happened) -> None:
        for run in self.here:
            self._wish(run, "shutdown", happened.at)

    def _kept(self, happened: Happened) -> None:
        for run in self.here:
            if run.wished is None and (run.stopping is None or run.final is None):
                self._leave(run, happened.at)

    def _gone(self, happened: Happened) -> None:
        self._death(happened)

    def _death(self, happened: Happened) -> None:
        for run in self.here:
            self._leave(run, happened.at)

    def _leave(self, run: RunStory, now: float) -> None:
        run.left = now
        run.here = run.resumed = run.sweeping = False
        if run.lasted is not None:
            run.unseen, run.lasted = True, None

    def _adopt(self, happened: Told) -> None:  # noqa: C901 - the table of docs/design.md, once more
        note: RunNote = happened.data
        state, now = note.status.state, happened.at
        run = self.runs.get(happened.run)
        if run is None:  # its agentd was killed between writing it down and launching it
            run = self._meet(happened)
            run.number, run.changed = note.status.attempt, run.left
        if same(run.left, run.changed):
            self._believe(run, note)
        else:
            self._check_note(run, note)
        if state in {State.COMPLETED, State.FAILED}:
            run.wished = None  # whose session was being ended has only ended, again
        run.here, run.since, run.known, run.known_at = True, now, False, -math.inf
        if run.stopping is not None:
            run.stopping = now
        self._consider(run, now)
        run.known_at = -math.inf
        if run.final is not None or run.wished is not None:
            return
        late = run.deadline is not None and run.deadline <= now
        if run.last in {"alive", "ended"} and (run.heard is not None or run.code is not None):
            # Who had ended by itself, for good, has not timed out, though nobody heard of it in time.
            if not late or (run.last == "ended" and run.known):
                run.heard = now if note.started is None else note.started
                if run.unseen:
                    self._see(run, now)
        elif state is State.STARTING:
            run.resumed = True
            if run.last == "ended" and not late:
                run.last, run.unseen = "launching", False
        if late:
            self._time_out(now)

    def _believe(self, run: RunStory, note: RunNote) -> None:
        """Where an agentd was killed in the instant of a change, only its note tells on which side of it that was."""
        status = note.status
        if status.attempt != run.number:
            run.last = "launching"
            assert not run.agent.max_restarts or status.restarts <= run.agent.max_restarts, f"once too often: {run}"
        run.number, run.restarts, run.doublings = status.attempt, status.restarts, note.doublings
        run.deadline, run.due, run.final, run.wished, run.stopping = note.deadline, note.next_restart, None, None, None
        run.heard = note.started
        match status.state:
            case State.STOPPING if status.reason in _WISHES:
                run.wished, run.stopping = status.reason, 0.0
            case State.STOPPING:
                run.final, run.stopping = "timed_out", 0.0
            case State.COMPLETED:
                run.final = "completed"
            case State.FAILED:
                run.final = {"timed_out": "timed_out", "bug": "bug"}.get(status.reason or "", "failed")
            case State.WAITING:
                run.last, run.due = "blocked", None
            case State.BACKOFF:
                run.last, run.unseen = "ended", False
            case State.STARTING:
                run.last = run.last if run.last in {"alive", "ended"} else "launching"
                run.unseen, run.heard = run.last == "ended", None
            case State.RUNNING:
                run.unseen = run.last == "ended"

    def _check_note(self, run: RunStory, note: RunNote) -> None:
        """A note is what the run was when its agentd was killed."""
        status = note.status
        facts = (status.attempt, status.restarts, status.digest)
        assert facts == (run.number, run.restarts, run.digest), f"{note} tells of {run}"
        assert status.state in self._states(run, noted=True), f"{status} tells of {run}"
        if run.final is None and run.wished is None:
            assert same(note.deadline, run.deadline), f"{note} tells of {run}"
            assert note.doublings == run.doublings, f"{note} tells of {run}"
        if status.state is State.BACKOFF:
            assert same(note.next_restart, run.due), f"{note} tells of {run}"

    # What is.

    def _states(self, run: RunStory, *, noted: bool = False) -> set[State]:  # noqa: PLR0911 - a table
        if run.final is not None and run.stopping is None:
            ended = {State.COMPLETED} if run.final == "completed" else {State.FAILED}
            if run.final == "bug" and (noted or self._attempt(run).lives):  # its sweep is not over
                return ended | {State.STARTING, State.RUNNING, State.BACKOFF, State.WAITING}
            return ended
        if run.stopping is not None:
            return {State.STOPPING, State.FAILED} if run.final is not None else {State.STOPPING}
        match run.last:
            case "launching":
                return {State.STARTING}
            case "alive":
                return {State.STARTING if run.heard is None else State.RUNNING}
            case "blocked" | "withdrawn":
                return {State.WAITING}
            case "ended" if run.unseen or run.lasted is not None:
                return {State.STARTING, State.RUNNING} if noted else {State.RUNNING}
            case _:
                return {State.BACKOFF}

    def _check_statuses(self, statuses: Mapping[str, AgentStatus]) -> None:
        for run in self.here:
            status, attempt = statuses.get(run.name), self._attempt(run)
            assert status is not None, f"no status of {run}"
            facts = (status.digest, status.attempt, status.restarts)
            assert facts == (run.digest, run.number, run.restarts), f"{status} of {run}"
            assert status.state in self._states(run), f"{status} of {run}"
            running = attempt.runs and run.heard is not None and run.last != "withdrawn"
            if not run.sweeping or run.stopping is None:  # what ends in a stop's sweep is told after that
                assert (status.running, status.pid) == (running, attempt.pid if running else None), f"{status} of {run}"
            if status.state is State.FAILED and run.final in {"timed_out", "bug"} and run.wished is None:
                assert status.reason == run.final, f"{status} of {run}"
            if status.state is State.BACKOFF:
                assert run.due is not None, f"{status} of {run}"
                assert same(status.next_restart_at, EPOCH + run.due), f"{status} of {run}"
            if status.state in {State.STARTING, State.RUNNING, State.BACKOFF} and run.final is None:
                deadline = None if run.deadline is None else EPOCH + run.deadline
                assert same(status.deadline_at, deadline), f"{status} of {run}"

    def _check_revision(self) -> None:
        """The revision only grows, as long as an agentd lives."""
        life = self.machine.life
        if life is not None:
            before = self._revision
            self._revision = life, life.store.revision
            assert before[0] is not life or before[1] <= life.store.revision, "the revision has shrunk"

    def _check_stop_is_in_time(self, run: RunStory, now: float) -> None:
        """A stop takes the grace period at most, and what ending it by force takes."""
        assert run.stopping is not None
        begun = run.stopping
        latest = min(begun + run.agent.grace_period, max(begun, self._hurried))
        latest += self._attempt(run).play.sweep_takes
        assert now <= latest + CLOSE, f"at {now} not ended, and the latest was {latest}: {run}"

    def _check_grace(self, run: RunStory, happened: Happened) -> None:
        """Nobody is killed before the grace period is over, unless somebody is in a hurry."""
        assert run.stopping is not None
        forced = happened.code == 137 and run.heard is not None and run.heard < run.stopping
        if forced and self._attempt(run).play.bug is None:
            over = min(run.stopping + run.agent.grace_period, max(run.stopping, self._hurried))
            assert happened.at >= over - CLOSE, f"killed at {happened.at}, before {over}: {run}"

    def _time_out(self, now: float) -> None:
        """Who has had its time is being stopped since then."""
        for run in self.here:
            active = run.final is None and run.wished is None
            if active and run.deadline is not None and run.deadline <= now + CLOSE / 2:
                run.final, run.stopping = "timed_out", max(run.deadline, run.since)
                run.changed = run.stopping

    def _attempt(self, run: RunStory) -> FakeAttempt:
        return self.machine.sessions.attempts[run.run, run.number]
