"""What a run may expect of `Sessions`: the same tests on the fake and on real tmux hold the fake to the truth."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import attrs
import pytest
import trio

from agentd.card import Agent
from agentd.launch import TmuxSessions
from agentd.lifecycle import How
from agentd.processes import Scanner
from agentd.resolve import Blocked, EffectiveAgent
from agentd.sessions import Attempt, AttemptRequest, LaunchBlockedError, Sessions
from agentd.settings import Settings
from agentd.testing import FakeSessions, Play
from agentd.tmux import open_tmux

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


def _request(effective: EffectiveAgent, number: int, previous: Attempt | None) -> AttemptRequest:
    return AttemptRequest(
        effective=effective, run="abc", number=number, restarts=number - 1, deadline=None, previous=previous
    )


def _effective(workdir: str, *argv: str) -> EffectiveAgent:
    agent = Agent(name="a", harness="custom", session="a")
    return EffectiveAgent(agent=agent, argv=argv or ("true",), env={}, workdir=workdir, digest="d")


class FakeWorld:
    """Plays as they are."""

    def __init__(self) -> None:
        self.sessions = FakeSessions(time.time)

    def attempt(self, play: Play, *, number: int = 1, previous: Attempt | None = None) -> Attempt:
        """Make an attempt that does this."""
        self.sessions.script("a", play)
        return self.sessions.attempt(_request(_effective("/"), number, previous))

    async def ready(self) -> None:
        """Wait for nothing: a play is there from its start."""
        await trio.lowlevel.checkpoint()

    def unblock(self) -> None:
        """Take the cause away."""
        self.sessions.causes.clear()


class TmuxWorld:
    """Plays are shell scripts here."""

    def __init__(self, sessions: TmuxSessions, tmp_path: Path) -> None:
        self.sessions = sessions
        self._missing = tmp_path / "missing"
        self._ready = tmp_path / "ready"
        self._workdir = str(tmp_path)

    def attempt(self, play: Play, *, number: int = 1, previous: Attempt | None = None) -> Attempt:
        """Make an attempt of a shell script that does this."""
        on_interrupt = "''" if play.exits_on is None else f"'exit {play.interrupt_code}'"
        sleep = "while :; do sleep 0.1; done" if play.ends_after is None else f"sleep {play.ends_after}"
        self._ready.unlink(missing_ok=True)
        script = f"trap {on_interrupt} INT; trap '' TERM HUP; : >{self._ready}; {sleep}; exit {play.code}"
        workdir = self._workdir if play.blocked is None else str(self._missing)
        effective = _effective(workdir, "sh", "-c", script)
        return self.sessions.attempt(_request(effective, number, previous))

    async def ready(self) -> None:
        """Wait until the script has set its traps: it is launched a moment before that."""
        while not self._ready.exists():  # noqa: ASYNC110 - what is waited for is a file
            await trio.sleep(0.01)

    def unblock(self) -> None:
        """Take the cause away."""
        self._missing.mkdir()


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
