"""Stops: as long as the agent needs, at most its grace period, then by force; to the tenth of a second."""

import logging

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from agentd.lifecycle import Exit
from agentd.resolve import Blocked
from agentd.run import Run
from agentd.sessions import AttemptRequest
from agentd.testing import FakeAttempt, Play
from tests.unit.world import RecordingSessions, World, effective_of, until

_DEAF = Play(exits_on=None)
_BLOCKED = Blocked(reason="workdir", message="There is no /srv.")


@pytest.fixture
def world(autojump_clock: MockClock) -> World:
    return World(autojump_clock)


async def _stop_at(world: World, when: float, *plays: Play, restart: str = "no", grace: float = 30.0) -> float:
    """Play an agent, stop it, and return how long its run took to end after that."""
    world.sessions.script("a", *plays)
    async with world.living(effective_of(restart=restart, grace_period=grace)) as run:
        await until(when)
        run.stop("removed")
    return trio.current_time() - when


async def test_obedient(autojump_clock: MockClock, world: World) -> None:
    """An agent that exits on C-c at once is gone at once: nobody waits out a grace period."""
    assert await _stop_at(world, 5, Play()) == 0
    assert world.seen() == [(0, "launch"), (0, "start"), (5, "C-c"), (5, "end"), (5, "sweep"), (5, "close")]
    assert world.sessions.sessions == set()


async def test_takes_its_time(autojump_clock: MockClock, world: World) -> None:
    """A stop takes as long as the agent needs within its grace period, and presses a cooked terminal once."""
    assert await _stop_at(world, 5, Play(interrupt_takes=20)) == 20
    assert world.seen()[2:] == [(5, "C-c"), (25, "end"), (25, "sweep"), (25, "close")]


async def test_deaf(autojump_clock: MockClock, world: World) -> None:
    """An agent that ignores C-c is swept exactly when its grace period is over, and got one C-c."""
    assert await _stop_at(world, 5, _DEAF, grace=12.5) == 12.5
    assert world.seen()[2:] == [(5, "C-c"), (17.5, "sweep"), (17.5, "end"), (17.5, "close")]


async def test_deaf_and_slow_to_sweep(autojump_clock: MockClock, world: World) -> None:
    """What ends only by force adds the sweep's time to the grace period."""
    assert await _stop_at(world, 5, Play(exits_on=None, sweep_takes=2.5), grace=10) == 12.5


async def test_raw_volleys(autojump_clock: MockClock, world: World) -> None:
    """A raw terminal gets three C-c, 0.3 s apart, and three again 5 s after the last, until the grace is over."""
    await _stop_at(world, 0, Play(exits_on=None, raw=True), grace=12)
    presses = [0, 0.3, 0.6, 5.6, 5.9, 6.2, 11.2, 11.5, 11.8]
    assert world.times("C-c") == pytest.approx(presses, abs=1e-9)
    assert world.times("sweep") == [12]


@pytest.mark.parametrize(("exits_on", "takes"), [(1, 0), (2, 0.3), (3, 0.6), (4, 5.6), (5, 5.9), (6, 6.2), (7, 11.2)])
async def test_raw_exits(autojump_clock: MockClock, world: World, exits_on: int, takes: float) -> None:
    """A full-screen agent is gone at the C-c that it obeys, and gets none after it."""
    took = await _stop_at(world, 5, Play(exits_on=exits_on, raw=True))
    assert took == pytest.approx(takes, abs=1e-9)
    assert len(world.times("C-c")) == exits_on


@pytest.mark.parametrize("hurried", [5, 6, 8, 34.5])
async def test_hurry(autojump_clock: MockClock, world: World, hurried: float) -> None:
    """Hurry cuts a grace period at that instant."""
    world.sessions.script("a", _DEAF)
    async with world.living(effective_of()) as run:
        await until(5)
        run.stop("removed")
        await until(hurried)
        world.hurry.set()
    assert world.times("sweep") == [hurried]
    assert trio.current_time() == hurried


async def test_hurry_from_the_start(autojump_clock: MockClock, world: World) -> None:
    """A stop that begins in a hurry waits for nothing."""
    world.hurry.set()
    assert await _stop_at(world, 5, _DEAF) == 0


async def test_hurry_without_a_stop(autojump_clock: MockClock, world: World) -> None:
    """Hurry by itself stops nobody."""
    world.sessions.script("a", Play(ends_after=50))
    world.hurry.set()
    await world.live(effective_of())
    assert world.times("C-c") == []
    assert world.times("end") == [50]


async def test_in_starting(autojump_clock: MockClock, world: World) -> None:
    """A stop while the harness is being started presses nothing: what came of the launch is swept."""
    assert await _stop_at(world, 5, Play(start_after=20)) == 0
    assert world.seen() == [(0, "launch"), (5, "sweep"), (5, "close")]


async def test_in_backoff(autojump_clock: MockClock, world: World) -> None:
    """A stop in backoff presses nothing, starts nothing, and leaves the last exit as it was."""
    assert await _stop_at(world, 2, Play(ends_after=1, code=1), restart="always") == 0
    assert world.seen()[2:] == [(1, "end"), (1, "sweep"), (2, "sweep"), (2, "close")]
    status = world.status()
    assert (status.state, status.next_restart_at) == ("stopping", None)
    assert status.exit is not None
    assert (status.exit.code, status.exit.wish) == (1, None)


async def test_while_blocked(autojump_clock: MockClock, world: World) -> None:
    """A blocked agent is stopped at once."""
    assert await _stop_at(world, 5, Play(blocked=_BLOCKED)) == 0
    assert world.seen() == [(0, "launch"), (0, "sweep"), (5, "sweep"), (5, "close")]
    assert world.states() == [(0, "waiting"), (0, "starting"), (0, "waiting"), (5, "stopping")]


async def test_in_the_queue(autojump_clock: MockClock) -> None:
    """An agent that waits for its launch is stopped without having seen anything."""
    world = World(autojump_clock, launches=1)
    async with world.around.launches:
        assert await _stop_at(world, 5, Play()) == 0
    assert world.seen() == []
    assert world.states() == [(0, "waiting"), (5, "stopping")]


async def test_before_its_life(autojump_clock: MockClock, world: World) -> None:
    """A run that is stopped before its task has begun launches nothing."""
    run = Run(effective_of(), "run-1", world.around)
    run.stop("removed")
    await run.live()
    assert world.seen() == []


async def test_after_its_end(autojump_clock: MockClock, world: World) -> None:
    """Stopping a run that has ended does nothing; its session is ended on its own."""
    world.sessions.script("a", Play(ends_after=1))
    run = await world.live(effective_of())
    run.stop("removed")
    assert world.states()[-1] == (1, "completed")
    assert world.sessions.sessions == {"a"}
    assert await run.end_session() is True
    assert world.sessions.sessions == set()


async def test_exit_at_the_same_instant(autojump_clock: MockClock, world: World) -> None:
    """An agent that exits by itself at the instant of its stop has exited once, and is not launched again."""
    world.sessions.script("a", Play(ends_after=5, code=1))
    async with world.living(effective_of(restart="always")) as run:
        await trio.sleep_until(5)
        run.stop("removed")
    assert trio.current_time() == 5
    assert world.times("end") == [5]
    assert world.times("start") == [0]


async def test_exit_at_the_instant_of_the_sweep(autojump_clock: MockClock, world: World) -> None:
    """An agent whose clean-up takes exactly its grace period has exited once."""
    assert await _stop_at(world, 5, Play(interrupt_takes=30)) == 30
    assert world.times("end") == [35]


async def test_swept_at_the_instant_of_its_end(autojump_clock: MockClock, world: World) -> None:
    """A scripted attempt that is swept at the instant of its own end, with somebody waiting for it, ends once."""
    world.sessions.script("a", Play(ends_after=5))
    attempt = world.sessions.attempt(
        AttemptRequest(
            effective=effective_of(),
            run="run-1",
            number=1,
        )
    )
    await attempt.launch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt.ended)
        await trio.sleep_until(5)
        await attempt.sweep()
    assert world.times("end") == [5]
    world.assert_at_rest("a")


@pytest.mark.parametrize(
    ("play", "code", "name"),
    [
        (Play(interrupt_code=0), 0, None),
        (Play(interrupt_code=130), 130, "SIGINT"),
        (_DEAF, 137, "SIGKILL"),
    ],
)
async def test_wish(autojump_clock: MockClock, world: World, play: Play, code: int, name: str | None) -> None:
    """An exit on somebody's wish has that wish beside its code, and no restart follows it."""
    await _stop_at(world, 5, play, restart="always")
    status = world.status()
    assert status.exit is not None
    assert (status.exit.code, status.exit.signal, status.exit.wish) == (code, name, "removed")
    assert (status.running, status.pid, status.restarts) == (False, None, 0)
    assert len(world.times("launch")) == 1


async def test_first_wish(autojump_clock: MockClock, world: World) -> None:
    """The first wish is the one that is remembered, and a second neither lengthens nor repeats the stop."""
    world.sessions.script("a", _DEAF)
    async with world.living(effective_of()) as run:
        await until(5)
        run.stop("changed")
        await until(20)
        run.stop("removed")
    assert trio.current_time() == 35
    status = world.status()
    assert (status.reason, status.exit and status.exit.wish) == ("changed", "changed")


@pytest.mark.parametrize(
    ("cause", "wanted", "message"),
    [
        ("removed", "stopped", "It is no longer in the card: it is stopped. C-c, then its grace period."),
        (
            "changed",
            "running",
            "Its entry, prompt or environment changed: it is stopped, and started anew. C-c, then its grace period.",
        ),
    ],
)
async def test_status_of_a_stop(autojump_clock: MockClock, world: World, cause: str, wanted: str, message: str) -> None:
    """While an agent is being stopped its status says so, and why, and that its harness still runs."""
    world.sessions.script("a", _DEAF)
    async with world.living(effective_of()) as run:
        await until(5)
        run.stop(cause)
        await until(6)
        status = world.status()
    assert (status.state, status.reason, status.wanted, status.message) == ("stopping", cause, wanted, message)
    assert status.running
    assert status.pid is not None
    assert status.error is None


async def test_shutdown(autojump_clock: MockClock, world: World) -> None:
    """A shutdown cancels the run from outside: the same stop, on the daemon's wish."""
    world.sessions.script("a", Play(interrupt_takes=4))
    with trio.CancelScope() as daemon:
        async with world.living(effective_of(restart="always")):
            await until(5)
            daemon.cancel()
    assert trio.current_time() == 9
    assert world.seen()[2:] == [(5, "C-c"), (9, "end"), (9, "sweep"), (9, "close")]
    status = world.status()
    assert (status.reason, status.wanted) == ("shutdown", "stopped")
    assert status.exit is not None
    assert status.exit.wish == "shutdown"


async def test_shutdown_during_a_stop(autojump_clock: MockClock, world: World) -> None:
    """A shutdown during a stop lets it go on as it is."""
    world.sessions.script("a", _DEAF)
    with trio.CancelScope() as daemon:
        async with world.living(effective_of()) as run:
            await until(5)
            run.stop("changed")
            await until(10)
            daemon.cancel()
    assert trio.current_time() == 35
    assert world.status().reason == "changed"
    assert world.times("C-c") == [5]


async def test_bound(autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A stop that does not end by itself is given up 30 s after the grace period, with an error in the log."""
    world.sessions.script("a", Play(exits_on=None, sweep_takes=1000))
    run = Run(effective_of(grace_period=10), "run-1", world.around)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.live)
        await until(5)
        run.stop("removed")
    assert trio.current_time() == 45
    assert "agent=a: its stop did not end within 40 s" in caplog.text


async def test_end_session_is_bounded(
    autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Ending a session gives up after 30 s, says so once, and can be tried again."""
    world.sessions.script("a", Play(ends_after=1, sweep_takes=31))
    run = await world.live(effective_of())
    assert trio.current_time() == 32
    assert await run.end_session() is False
    assert await run.end_session() is False
    assert trio.current_time() == 92
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert messages == ["agent=a: its session could not be ended within 30 s"]


class _Mute(FakeAttempt):
    """Its launcher never says a word about the end, so that nobody knows it."""

    async def ended(self) -> Exit:
        await trio.sleep_forever()
        raise AssertionError


class _MuteSessions(RecordingSessions):
    def attempt(self, request: AttemptRequest) -> FakeAttempt:
        super().attempt(request)
        return _Mute(self, request, Play(exits_on=None), 1)


async def test_no_last_word(autojump_clock: MockClock) -> None:
    """A swept attempt whose end nobody reports is given 1 s for it, and then counts as gone, without an exit."""
    world = World(autojump_clock, sessions=_MuteSessions)
    async with world.living(effective_of(grace_period=10)) as run:
        await wait_all_tasks_blocked()
        run.stop("removed")
    assert trio.current_time() == 11
    assert world.seen()[-2:] == [(10, "end"), (11, "close")]
    status = world.status()
    assert (status.running, status.pid, status.exit) == (False, None, None)
