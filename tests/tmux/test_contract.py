"""What a run may expect of `Sessions`: the same tests on the fake and on real tmux hold the fake to the truth."""

import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import attrs
import pytest
import trio

from agentd.attempts.attempt import TmuxAttempt
from agentd.attempts.tmux_sessions import TmuxSessions
from agentd.card.card import Agent
from agentd.lifecycle import Exit, How, State
from agentd.processes.ending import Scanner
from agentd.processes.scan import is_alive
from agentd.resolve import Blocked, EffectiveAgent
from agentd.sessions import Attempt, AttemptRequest, LaunchBlockedError, RunNote, Sessions
from agentd.settings import Settings
from agentd.testing import FakeAttempt, FakeSessions, Play
from agentd.tmux.connection import open_tmux
from tests.notes import note_of, status_of

BOUND = 20.0


class World(Protocol):
    """Where attempts come from, and a way to say what they do."""

    @property
    def sessions(self) -> Sessions:
        """Give the seam itself."""

    def attempt(self, play: Play, *, number: int = 1, previous: Attempt | None = None) -> Attempt:
        """Make an attempt that does this."""

    async def ready(self) -> None:
        """Wait until the harness of the last attempt listens to signals as its play says."""

    def unblock(self) -> None:
        """Take the cause away for which a blocked attempt was blocked."""

    async def over(self) -> None:
        """Wait until the harness of the last attempt, and its launcher, have ended."""

    @property
    def effective(self) -> EffectiveAgent:
        """What the last attempt launches."""

    def succeed(self, attempt: Attempt) -> None:
        """Kill the agentd that has this attempt: what is asked from now on, the next one asks."""

    def kill_launcher(self, attempt: Attempt) -> None:
        """Kill an attempt's launcher, and not its harness."""

    def lives(self, pid: int) -> bool:
        """Whether that harness lives."""

    async def take_session(self) -> None:
        """Make a session of the name that attempts want, as somebody else."""

    async def give_session_back(self) -> None:
        """End that session."""


def _request(effective: EffectiveAgent, number: int, previous: Attempt | None) -> AttemptRequest:
    return AttemptRequest(effective=effective, run="abc", number=number, previous=previous)


def _effective(workdir: str, *argv: str) -> EffectiveAgent:
    agent = Agent(name="a", harness="custom", session="a")
    return EffectiveAgent(agent=agent, argv=argv or ("true",), env={}, workdir=workdir, digest="d")


class FakeWorld:
    """Plays as they are."""

    def __init__(self) -> None:
        self.sessions = FakeSessions(time.time)
        self.effective = _effective("/")

    def attempt(self, play: Play, *, number: int = 1, previous: Attempt | None = None) -> Attempt:
        """Make an attempt that does this."""
        self.sessions.script("a", play)
        return self.sessions.attempt(_request(self.effective, number, previous))

    async def ready(self) -> None:
        """Wait for nothing: a play is there from its start."""
        await trio.lowlevel.checkpoint()

    def unblock(self) -> None:
        """Take the cause away."""
        self.sessions.causes.clear()

    async def over(self) -> None:
        """Wait as long as the plays of these tests take."""
        await trio.sleep(0.2)

    def succeed(self, attempt: Attempt) -> None:
        """Change nothing: what is remembered is here already."""

    def kill_launcher(self, attempt: Attempt) -> None:
        """Kill it."""
        assert isinstance(attempt, FakeAttempt)
        attempt.lose_launcher()

    def lives(self, pid: int) -> bool:
        """Look for its attempt."""
        return any(attempt.lives for attempt in self.sessions.attempts.values() if attempt.pid == pid)

    async def take_session(self) -> None:
        """Have the name taken."""
        self.sessions.foreign.add("a")

    async def give_session_back(self) -> None:
        """Have the name free again."""
        self.sessions.foreign.clear()


class TmuxWorld:
    """Plays are shell scripts here."""

    def __init__(self, sessions: TmuxSessions, tmp_path: Path) -> None:
        self.sessions = sessions
        self._missing = tmp_path / "missing"
        self._ready = tmp_path / "ready"
        self._workdir = str(tmp_path)
        self.effective = _effective(self._workdir)

    def attempt(self, play: Play, *, number: int = 1, previous: Attempt | None = None) -> Attempt:
        """Make an attempt of a shell script that does this."""
        on_interrupt = "''" if play.exits_on is None else f"'exit {play.interrupt_code}'"
        sleep = "while :; do sleep 0.1; done" if play.ends_after is None else f"sleep {play.ends_after}"
        self._ready.unlink(missing_ok=True)
        script = f"trap {on_interrupt} INT; trap '' TERM HUP; : >{self._ready}; {sleep}; exit {play.code}"
        workdir = self._workdir if play.blocked is None else str(self._missing)
        self.effective = _effective(workdir, "sh", "-c", script)
        return self.sessions.attempt(_request(self.effective, number, previous))

    async def ready(self) -> None:
        """Wait until the script has set its traps: it is launched a moment before that."""
        while not self._ready.exists():  # noqa: ASYNC110 - what is waited for is a file
            await trio.sleep(0.01)

    def unblock(self) -> None:
        """Take the cause away."""
        self._missing.mkdir()

    async def over(self) -> None:
        """Wait for what the launcher prints last."""
        tmux = self.sessions.world.tmux
        while not any(  # noqa: ASYNC110 - what is waited for is on a screen
            "agentd: exit code" in line for line in await tmux.command("capture-pane", "-p", "-t", "=a:")
        ):
            await trio.sleep(0.01)

    def succeed(self, attempt: Attempt) -> None:
        """Close what the kernel would have closed."""
        assert isinstance(attempt, TmuxAttempt)
        if attempt.state.lifeline is not None:
            attempt.state.lifeline.close()
        before = self.sessions.world
        self.sessions = TmuxSessions(before.settings, before.tmux, before.scanner, time.time)

    def kill_launcher(self, attempt: Attempt) -> None:
        """Kill it."""
        assert isinstance(attempt, TmuxAttempt)
        assert attempt.state.launcher is not None
        os.kill(attempt.state.launcher, signal.SIGKILL)

    def lives(self, pid: int) -> bool:
        """Ask the kernel."""
        return is_alive(pid)

    async def take_session(self) -> None:
        """Make it on the same server."""
        await self.sessions.world.tmux.command("new-session", "-d", "-s", "a", "exec sleep infinity")

    async def give_session_back(self) -> None:
        """End it."""
        await self.sessions.world.tmux.command("kill-session", "-t", "=a")


@pytest.fixture(params=["fake", "tmux"])
async def world(request: pytest.FixtureRequest, tmp_path: Path, settings: Settings) -> AsyncIterator[World]:
    if request.param == "fake":
        yield FakeWorld()
        return
    settings = attrs.evolve(settings, run_dir=settings.tmux_socket.parent / "run")
    settings.run_dir.mkdir()
    async with open_tmux(settings) as tmux:
        scanner = Scanner(settings.agent_user.uid)
        yield TmuxWorld(TmuxSessions(settings, tmux, scanner, time.time), tmp_path)


async def test_an_attempt_that_ends_by_itself_tells_its_code_as_often_as_asked(world: World) -> None:
    """After `launch` gave a pid, `ended` gives the exit code, the same again when asked again."""
    with trio.fail_after(BOUND):
        attempt = world.attempt(Play(ends_after=0.1, code=3))
        assert await attempt.launch() > 1
        ended = await attempt.ended()
        assert (ended.how, ended.code) == (How.CODE, 3)
        assert await attempt.ended() == ended
        assert await attempt.sweep() == 0
        await attempt.close()


async def test_a_cancelled_wait_for_the_end_loses_nothing(world: World) -> None:
    """A cancelled `ended` can be awaited again, as a stop does after the run was cancelled."""
    with trio.fail_after(BOUND):
        attempt = world.attempt(Play(ends_after=0.3, code=5))
        await attempt.launch()
        with trio.move_on_after(0.05) as scope:
            await attempt.ended()
        assert scope.cancelled_caught
        assert (await attempt.ended()).code == 5
        await attempt.close()


async def test_an_interrupt_reaches_the_harness(world: World) -> None:
    """C-c in a cooked terminal ends a harness that listens; `interrupt` says that the terminal is not raw."""
    with trio.fail_after(BOUND):
        attempt = world.attempt(Play(exits_on=1, interrupt_code=7))
        await attempt.launch()
        await world.ready()
        assert await attempt.interrupt(again=False) is False
        assert (await attempt.ended()).code == 7
        await attempt.close()


async def test_a_sweep_ends_a_harness_that_ignores_everything(world: World) -> None:
    """After `sweep` nothing lives, and `ended` says that a signal did it."""
    with trio.fail_after(BOUND):
        attempt = world.attempt(Play(exits_on=None, sweep_takes=0.1))
        await attempt.launch()
        await world.ready()
        await attempt.interrupt(again=False)
        assert await attempt.sweep() == 0
        ended = await attempt.ended()
        assert (ended.how, ended.signal) in {(How.SIGNAL, "SIGKILL"), (How.KILLED, None)}
        await attempt.close()


async def test_the_next_attempt_takes_the_place_of_the_one_before(world: World) -> None:
    """A restart is a new attempt that is given the previous one; closing it is enough."""
    with trio.fail_after(BOUND):
        first = world.attempt(Play(ends_after=0.05, code=1))
        await first.launch()
        await first.ended()
        assert await first.sweep() == 0
        second = world.attempt(Play(ends_after=0.05, code=2), number=2, previous=first)
        await second.launch()
        assert (await second.ended()).code == 2
        assert await second.sweep() == 0
        await second.close()
        await second.close()


async def test_a_blocked_launch_says_so_until_the_cause_is_gone(world: World) -> None:
    """`launch` raises LaunchBlockedError, and `still_blocked` holds exactly as long as the cause."""
    with trio.fail_after(BOUND):
        attempt = world.attempt(Play(blocked=Blocked(reason="workdir_missing", message="There is no workdir.")))
        with pytest.raises(LaunchBlockedError) as caught:
            await attempt.launch()
        blocked, effective = caught.value.blocked, _effective("/")
        assert blocked.reason == "workdir_missing"
        assert await world.sessions.still_blocked(effective, blocked)
        world.unblock()
        assert not await world.sessions.still_blocked(effective, blocked)
        assert await attempt.sweep() == 0
        await attempt.close()


def _note(state: State, *, exit_: Exit | None = None, **times: float) -> RunNote:
    status = status_of(state=state, since=1.5, restarts=4, exit=exit_, digest="d")
    return note_of(status, timeout=9.5, grace_period=2.5, doublings=3, **times)


def _again() -> AttemptRequest:
    return _request(_effective("/"), 1, None)


async def test_what_is_remembered_of_a_run_is_found_by_the_next_agentd_until_it_is_forgotten(world: World) -> None:
    """A note comes back as it was, its times on the clock of whoever reads it; forgotten, it does not."""
    ended = Exit(how=How.SIGNAL, code=137, signal="SIGKILL", at=2.5, duration=3.5, wish="changed", detail="words")
    now = trio.current_time()
    note = _note(State.BACKOFF, exit_=ended, deadline=now + 60, next_restart=now + 3, started=now - 5)
    attempt = world.attempt(Play())
    world.sessions.remember(note, attempt)
    world.succeed(attempt)
    recovered = await world.sessions.recover()
    assert recovered is not None
    (found,) = recovered
    for name in ("deadline", "next_restart", "started"):
        assert abs(getattr(found, name) - getattr(note, name)) < 0.01
    assert attrs.evolve(found, deadline=note.deadline, next_restart=note.next_restart, started=note.started) == note
    world.sessions.forget("abc")
    assert await world.sessions.recover() == ()


async def test_an_attempt_is_taken_over_while_it_runs(world: World) -> None:
    """An adopted attempt tells its end, and is swept and closed like any other."""
    with trio.fail_after(BOUND):
        attempt = world.attempt(Play(exits_on=1, interrupt_code=7))
        await attempt.launch()
        await world.ready()
        assert not attempt.is_over()
        world.sessions.remember(_note(State.RUNNING), attempt)
        world.succeed(attempt)
        assert await world.sessions.recover() is not None
        adopted = world.sessions.adopt(_again())
        assert not adopted.is_over()
        assert await adopted.interrupt(again=False) is False
        assert (await adopted.ended()).code == 7
        assert await adopted.sweep() == 0
        await adopted.close()


async def test_an_end_that_nobody_saw_is_told_with_its_code(world: World) -> None:
    """An adopted attempt that had ended before tells its exit code; for one that was still starting, too."""
    with trio.fail_after(BOUND):
        for state in State.RUNNING, State.STARTING:
            attempt = world.attempt(Play(ends_after=0.1, code=5))
            await attempt.launch()
            world.sessions.remember(_note(state), attempt)
            world.succeed(attempt)
            await world.over()
            recovered = await world.sessions.recover()
            assert recovered is not None
            assert [note.status.state for note in recovered] == [State.RUNNING]
            adopted = world.sessions.adopt(_again())
            assert adopted.is_over()
            assert (await adopted.ended()).code == 5
            assert adopted.is_over()
            assert await adopted.sweep() == 0
            await adopted.close()
            world.sessions.forget("abc")


async def test_a_launch_that_was_under_way_goes_on_or_begins_anew(world: World) -> None:
    """An adopted attempt of which nothing had come yet is launched, and comes up once."""
    with trio.fail_after(BOUND):
        attempt = world.attempt(Play(ends_after=0.1, code=6))
        world.sessions.remember(_note(State.STARTING), attempt)
        world.succeed(attempt)
        assert await world.sessions.recover() is not None
        adopted = world.sessions.adopt(_request(world.effective, 1, None))
        assert await adopted.launch() > 1
        assert (await adopted.ended()).code == 6
        assert await adopted.sweep() == 0
        await adopted.close()


async def test_a_launch_that_was_under_way_is_not_begun_anew_with_a_stand_in(world: World) -> None:
    """Of what nothing has come, and only the note tells what it was, the launch is blocked, and nothing runs."""
    with trio.fail_after(BOUND):
        attempt = world.attempt(Play())
        note = _note(State.STARTING)
        world.sessions.remember(note, attempt)
        world.succeed(attempt)
        assert await world.sessions.recover() is not None
        adopted = world.sessions.adopt(AttemptRequest(effective=note.stand_in(), run="abc", number=1))
        with pytest.raises(LaunchBlockedError):
            await adopted.launch()
        assert await adopted.sweep() == 0
        await adopted.close()


async def test_a_start_that_was_heard_and_not_noted_is_known_again(world: World) -> None:
    """An agentd may be killed between hearing of a start and noting it: the next one finds the harness that runs."""
    with trio.fail_after(BOUND):
        attempt = world.attempt(Play(exits_on=1, interrupt_code=7))
        pid = await attempt.launch()
        await world.ready()
        world.sessions.remember(_note(State.STARTING), attempt)
        world.succeed(attempt)
        recovered = await world.sessions.recover()
        assert recovered is not None
        assert [note.status.state for note in recovered] == [State.STARTING]
        adopted = world.sessions.adopt(_request(world.effective, 1, None))
        assert await adopted.launch() == pid
        assert await adopted.interrupt(again=False) is False
        assert (await adopted.ended()).code == 7
        assert await adopted.sweep() == 0
        await adopted.close()


async def test_a_harness_outlives_its_launcher_until_it_is_swept(world: World) -> None:
    """Where the launcher is killed, `ended` says so, and what it launched lives until the sweep."""
    with trio.fail_after(BOUND):
        attempt = world.attempt(Play(leaves=True))
        pid = await attempt.launch()
        await world.ready()
        world.kill_launcher(attempt)
        assert (await attempt.ended()).how is How.KILLED
        assert world.lives(pid)
        assert await attempt.sweep() == 0
        assert not world.lives(pid)
        await attempt.close()


async def test_a_launch_whose_launcher_was_killed_unheard_begins_anew(world: World) -> None:
    """Of a launch that a dead agentd had not heard of, and that ended without a word, nothing lives beside the next."""
    with trio.fail_after(BOUND):
        attempt = world.attempt(Play(leaves=True, exits_on=1, interrupt_code=7))
        pid = await attempt.launch()
        await world.ready()
        world.sessions.remember(_note(State.STARTING), attempt)
        world.kill_launcher(attempt)
        world.succeed(attempt)
        recovered = await world.sessions.recover()
        assert recovered is not None
        assert [note.status.state for note in recovered] == [State.STARTING]
        adopted = world.sessions.adopt(_request(world.effective, 1, None))
        fresh = await adopted.launch()
        assert (world.lives(pid), world.lives(fresh), fresh == pid) == (False, True, False)
        assert await adopted.sweep() == 0
        await adopted.close()


@pytest.mark.parametrize("moment", [0.0, 0.02, 0.1])
async def test_a_launch_that_was_cut_off_comes_up_once_or_not_at_all(world: World, moment: float) -> None:
    """Whenever `launch` is cancelled, a sweep leaves nothing of it, and nothing comes of it later."""
    with trio.fail_after(BOUND):
        attempt = world.attempt(Play(start_after=0.05, exits_on=None))
        with trio.move_on_after(moment):
            await attempt.launch()
        assert await attempt.sweep() == 0
        await attempt.close()
        again = world.attempt(Play(ends_after=0.1, code=4), number=2)
        await again.launch()
        assert (await again.ended()).code == 4
        assert await again.sweep() == 0
        await again.close()


async def test_an_interrupt_of_what_has_ended_does_nothing(world: World) -> None:
    """C-c after the end changes nothing of how it ended."""
    with trio.fail_after(BOUND):
        attempt = world.attempt(Play(ends_after=0.1, code=5))
        await attempt.launch()
        ended = await attempt.ended()
        await attempt.interrupt(again=False)
        assert await attempt.ended() == ended
        assert await attempt.sweep() == 0
        await attempt.close()


async def test_a_close_ends_what_runs(world: World) -> None:
    """Without a sweep, and of an attempt that was taken over, too; closed again, nothing happens."""
    with trio.fail_after(BOUND):
        attempt = world.attempt(Play(exits_on=None))
        pid = await attempt.launch()
        await world.ready()
        world.sessions.remember(_note(State.RUNNING), attempt)
        world.succeed(attempt)
        assert await world.sessions.recover() is not None
        adopted = world.sessions.adopt(_again())
        await adopted.close()
        assert not world.lives(pid)
        await adopted.close()


async def test_what_no_note_tells_of_is_ended_before_anything_is_launched(world: World) -> None:
    """An attempt that nobody has noted, or noted no more, does not outlive the next agentd's `recover`."""
    with trio.fail_after(BOUND):
        attempt = world.attempt(Play(exits_on=None))
        pid = await attempt.launch()
        await world.ready()
        world.succeed(attempt)
        assert await world.sessions.recover() == ()
        assert not world.lives(pid)


async def test_a_session_that_somebody_else_made_blocks_until_it_is_gone(world: World) -> None:
    """`launch` says that the session is taken, and touches nothing; when it is gone, nothing is in the way."""
    with trio.fail_after(BOUND):
        await world.take_session()
        attempt = world.attempt(Play(ends_after=0.1, code=3))
        with pytest.raises(LaunchBlockedError) as caught:
            await attempt.launch()
        blocked = caught.value.blocked
        assert blocked.reason == "session_taken"
        assert await world.sessions.still_blocked(world.effective, blocked)
        await world.give_session_back()
        assert not await world.sessions.still_blocked(world.effective, blocked)
        again = world.attempt(Play(ends_after=0.1, code=3), number=2, previous=attempt)
        await again.launch()
        assert (await again.ended()).code == 3
        assert await again.sweep() == 0
        await again.close()
