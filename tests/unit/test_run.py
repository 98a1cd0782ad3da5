"""One agent's life between its stops: attempts, policy, backoff, timeout, blocked, left-overs, bugs; to the second."""

import logging

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from agentd.lifecycle import Exit, How
from agentd.resolve import Blocked, EffectiveAgent
from agentd.sessions import AttemptRequest
from agentd.testing import FakeAttempt, Play
from tests.unit.world import EPOCH, RecordingSessions, World, effective_of, until

_FAILS = Play(ends_after=1, code=1)
_BLOCKED = Blocked(reason="binary", message="There is no agent on PATH.", paths=("/usr/bin/agent",))


@pytest.fixture
def world(autojump_clock: MockClock) -> World:
    return World(autojump_clock)


# The end and the policy


async def test_a_good_end(autojump_clock: MockClock, world: World) -> None:
    """An agent that ends well is known to be done at that instant, and its shell stays."""
    world.sessions.script("a", Play(start_after=2, ends_after=5))
    await world.live(effective_of())
    assert world.states() == [(0, "waiting"), (0, "starting"), (2, "running"), (7, "completed")]
    assert world.seen() == [(0, "launch"), (2, "start"), (7, "end"), (7, "sweep")]
    assert world.sessions.sessions == {"a"}


async def test_status_of_an_end(autojump_clock: MockClock, world: World) -> None:
    """The status of an ended agent tells how and when it ended, and how it would run again."""
    world.sessions.script("a", Play(start_after=2, ends_after=5, code=3))
    await world.live(effective_of())
    status = world.status()
    assert status.exit == Exit(how=How.CODE, code=3, at=EPOCH + 7, duration=5)
    assert (status.running, status.pid, status.restarts, status.attempt) == (False, None, 0, 1)
    assert (status.started_at, status.since, status.next_restart_at) == (EPOCH + 2, EPOCH + 7, None)
    assert (status.state, status.reason, status.error) == ("failed", "code", status.message)
    assert status.message.startswith("Exited with code 3;")


async def test_status_while_running(autojump_clock: MockClock, world: World) -> None:
    """The status of a running agent has its pid and no error."""
    async with world.living(effective_of()) as run:
        await until(5)
        status = world.status()
        run.stop("removed")
    assert (status.state, status.running, status.reason, status.error) == ("running", True, None, None)
    assert status.pid is not None
    assert status.started_at == EPOCH


@pytest.mark.parametrize(
    ("restart", "play", "starts", "state", "reason"),
    [
        ("no", Play(ends_after=1), [0], "completed", "exited"),
        ("no", Play(ends_after=1, code=1), [0], "failed", "code"),
        ("no", Play(ends_after=1, code=139), [0], "failed", "signal"),
        ("no", Play(ends_after=1, killed=True), [0], "failed", "killed"),
        ("no", Play(start_after=30), [], "failed", "never_started"),
        ("on-failure", Play(ends_after=1), [0], "completed", "exited"),
        ("on-failure", Play(ends_after=1, code=1), [0, 4, 8], "failed", "restarts_exhausted"),
        ("on-failure", Play(ends_after=1, code=139), [0, 4, 8], "failed", "restarts_exhausted"),
        ("on-failure", Play(ends_after=1, killed=True), [0, 4, 8], "failed", "restarts_exhausted"),
        ("on-failure", Play(start_after=30), [], "failed", "restarts_exhausted"),
        ("always", Play(ends_after=1), [0, 4, 8], "failed", "restarts_exhausted"),
        ("always", Play(ends_after=1, code=1), [0, 4, 8], "failed", "restarts_exhausted"),
    ],
)
async def test_policy(  # noqa: PLR0913, PLR0917 - one row
    autojump_clock: MockClock, world: World, restart: str, play: Play, starts: list[float], state: str, reason: str
) -> None:
    """Each policy meets each end as the table says; `max_restarts = 2` means three starts, 3 s after each end."""
    world.sessions.script("a", play)
    await world.live(effective_of(restart=restart, max_restarts=2))
    assert world.times("start") == starts
    status = world.status()
    assert (status.state, status.reason) == (state, reason)
    assert world.times("close") == []


async def test_states_across_restarts(autojump_clock: MockClock, world: World) -> None:
    """Each restart goes through `backoff` and `starting`, and is counted when it begins."""
    world.sessions.script("a", _FAILS)
    await world.live(effective_of(restart="always", max_restarts=2))
    assert world.states() == [
        *[(0, "waiting"), (0, "starting"), (0, "running")],
        *[(1, "backoff"), (4, "starting"), (4, "running")],
        *[(5, "backoff"), (8, "starting"), (8, "running")],
        (9, "failed"),
    ]
    restarts = [(at, status.restarts) for at, status in world.store.history]
    assert min(at for at, count in restarts if count == 1) == 4
    assert restarts[-1] == (9, 2)


async def test_next_restart_is_told(autojump_clock: MockClock, world: World) -> None:
    """In backoff the status says when the restart comes, and forgets it when it has come."""
    world.sessions.script("a", _FAILS, Play(ends_after=1))
    async with world.living(effective_of(restart="on-failure")):
        await until(2)
        waiting = world.status()
        await until(4)
        started = world.status()
    assert (waiting.state, waiting.next_restart_at, waiting.pid) == ("backoff", EPOCH + 4, None)
    assert (started.state, started.next_restart_at, started.exit) == ("running", None, waiting.exit)


async def test_recovery(autojump_clock: MockClock, world: World) -> None:
    """An agent that fails once and then ends well is done, without an error."""
    world.sessions.script("a", _FAILS, Play(ends_after=10))
    await world.live(effective_of(restart="on-failure"))
    assert world.times("start") == [0, 4]
    status = world.status()
    assert (status.state, status.error, status.restarts) == ("completed", None, 1)


# Backoff


@pytest.mark.parametrize(
    ("restart_delay_max", "starts"),
    [
        (3.0, [0, 4, 8, 12, 16]),
        (20.0, [0, 4, 11, 24, 45]),
        (7.5, [0, 4, 11, 19.5, 28]),
        (0.5, [0, 1.5, 3, 4.5, 6]),
    ],
)
async def test_backoff(autojump_clock: MockClock, world: World, restart_delay_max: float, starts: list[float]) -> None:
    """The backoff is 3 s for ever unless `restart_delay_max` lets it double, or makes it shorter."""
    world.sessions.script("a", _FAILS)
    await world.live(effective_of(restart="always", max_restarts=4, restart_delay_max=restart_delay_max))
    assert world.times("start") == starts


@pytest.mark.parametrize(
    ("restart_delay_max", "lasts", "backoff"),
    [(20.0, 20, 12), (20.0, 20.5, 3), (8.0, 10, 8), (8.0, 10.5, 3)],
)
async def test_backoff_resets(
    autojump_clock: MockClock, world: World, restart_delay_max: float, lasts: float, backoff: float
) -> None:
    """Only an attempt that lasted longer than both `restart_delay_max` and 10 s begins the doubling anew."""
    world.sessions.script("a", _FAILS, _FAILS, Play(ends_after=lasts, code=1), _FAILS)
    await world.live(effective_of(restart="always", max_restarts=3, restart_delay_max=restart_delay_max))
    third = 5 + min(6, restart_delay_max)
    assert world.times("start") == [0, 4, third, third + lasts + backoff]


async def test_never_started_goes_on_doubling(autojump_clock: MockClock, world: World) -> None:
    """Waiting 30 s for a harness in vain does not begin the doubling anew."""
    world.sessions.script("a", Play(start_after=30))
    await world.live(effective_of(restart="always", max_restarts=3, restart_delay_max=12.0))
    assert world.times("launch") == [0, 33, 69, 111]


@pytest.mark.parametrize(("sweep_takes", "second"), [(2, 4), (5, 6)])
async def test_backoff_counts_from_the_end(
    autojump_clock: MockClock, world: World, sweep_takes: float, second: float
) -> None:
    """Clearing away what an attempt left is part of the backoff, and the next attempt waits for it."""
    world.sessions.script("a", Play(ends_after=1, code=1, sweep_takes=sweep_takes))
    await world.live(effective_of(restart="always", max_restarts=1))
    assert world.times("start") == [0, second]


# What an attempt is asked with


def _asked(world: World) -> list[tuple[int, int, bool]]:
    begun = [note.status.restarts for note in world.sessions.noted if note.status.state == "starting"]
    requests = world.sessions.requests
    return [(request.number, restarts, request.typed) for request, restarts in zip(requests, begun, strict=True)]


async def test_requests(autojump_clock: MockClock, world: World) -> None:
    """Each attempt is told its number, and the attempt whose session it takes over; its restarts are noted before."""
    world.sessions.script("a", _FAILS)
    effective = effective_of(restart="always", max_restarts=2, timeout=60.0)
    await world.live(effective)
    assert _asked(world) == [(1, 0, True), (2, 1, True), (3, 2, True)]
    requests = world.sessions.requests
    assert all(request.effective is effective and request.run == "run-1" for request in requests)
    assert {note.deadline for note in world.sessions.noted[:-2]} == {60}
    first, second, third = (request.previous for request in requests)
    assert first is None
    assert isinstance(second, FakeAttempt)
    assert isinstance(third, FakeAttempt)
    assert second is not third


async def test_no_deadline(autojump_clock: MockClock, world: World) -> None:
    """Without a timeout there is no deadline, neither noted nor in the status."""
    world.sessions.script("a", Play(ends_after=1))
    await world.live(effective_of())
    assert {note.deadline for note in world.sessions.noted} == {None}
    assert world.status().deadline_at is None


async def test_never_started(autojump_clock: MockClock, world: World) -> None:
    """An attempt that never started counts as a failure, and those after it are launched without typing."""
    world.sessions.script("a", Play(start_after=30), Play(start_after=30), Play(ends_after=1))
    await world.live(effective_of(restart="on-failure"))
    assert _asked(world) == [(1, 0, True), (2, 1, False), (3, 2, False)]
    assert world.times("launch") == [0, 33, 66]
    assert world.times("sweep") == [30, 63, 67]
    assert world.states()[:4] == [(0, "waiting"), (0, "starting"), (30, "backoff"), (33, "starting")]


async def test_never_started_says_why(autojump_clock: MockClock, world: World) -> None:
    """The message of an attempt that never started repeats what was seen."""
    world.sessions.script("a", Play(start_after=30))
    await world.live(effective_of())
    status = world.status()
    assert (status.reason, status.exit and status.exit.how) == ("never_started", How.NEVER_STARTED)
    assert status.message.startswith("Never started (no sign of life);")
    assert status.exit is not None
    assert (status.exit.at, status.exit.duration) == (EPOCH + 30, 30)


async def test_never_started_after_blocked(autojump_clock: MockClock, world: World) -> None:
    """An attempt that never started after a blocked one counts for itself."""
    world.sessions.script("a", Play(blocked=_BLOCKED), Play(start_after=30))
    async with world.living(effective_of()):
        await until(5)
        world.sessions.causes.clear()
        world.looks.ring()
    assert world.states()[-3:] == [(0, "waiting"), (5, "starting"), (35, "failed")]
    assert world.status().reason == "never_started"


# Timeout


async def test_timeout(autojump_clock: MockClock, world: World) -> None:
    """At its deadline an agent is stopped, for good, whatever the policy says, and its shell stays."""
    async with world.living(effective_of(restart="always", timeout=100.0)):
        await until(1)
        assert world.status().deadline_at == EPOCH + 100
    assert world.seen() == [(0, "launch"), (0, "start"), (100, "C-c"), (100, "end"), (100, "sweep")]
    assert world.states()[-3:] == [(0, "running"), (100, "stopping"), (100, "failed")]
    status = world.status()
    assert (status.reason, status.wanted, status.running, status.pid) == ("timed_out", "running", False, None)
    assert status.message == "Timed out 100 s after its first launch. It runs again when its entry changes."
    assert status.error == status.message
    assert status.exit is not None
    assert (status.exit.signal, status.exit.wish) == ("SIGINT", "timed_out")


async def test_timeout_waits_for_the_stop(autojump_clock: MockClock, world: World) -> None:
    """An agent that ignores C-c has timed out when its stop is over, a whole grace period later."""
    world.sessions.script("a", Play(exits_on=None))
    await world.live(effective_of(timeout=10.0, grace_period=7.0))
    assert world.states()[-2:] == [(10, "stopping"), (17, "failed")]
    assert world.times("close") == []


async def test_timeout_includes_starting(autojump_clock: MockClock, world: World) -> None:
    """The timeout counts from the launch, not from the moment at which the harness runs."""
    world.sessions.script("a", Play(start_after=7))
    await world.live(effective_of(timeout=10.0))
    assert world.times("C-c") == [10]


async def test_timeout_in_starting(autojump_clock: MockClock, world: World) -> None:
    """A launch that takes longer than the timeout is given up without C-c."""
    world.sessions.script("a", Play(start_after=20))
    await world.live(effective_of(timeout=10.0))
    assert world.seen() == [(0, "launch"), (10, "sweep")]
    assert world.states()[-2:] == [(10, "stopping"), (10, "failed")]


async def test_timeout_includes_backoff(autojump_clock: MockClock, world: World) -> None:
    """The timeout counts from the first launch, across restarts and backoff, and may fall into a backoff."""
    world.sessions.script("a", _FAILS)
    await world.live(effective_of(restart="always", timeout=10.0))
    assert world.times("start") == [0, 4, 8]
    assert world.states()[-3:] == [(9, "backoff"), (10, "stopping"), (10, "failed")]
    assert world.times("C-c") == []
    status = world.status()
    assert (status.reason, status.next_restart_at) == ("timed_out", None)
    assert status.exit is not None
    assert (status.exit.code, status.exit.wish) == (1, None)


async def test_timeout_in_a_later_attempt(autojump_clock: MockClock, world: World) -> None:
    """A restart does not give an agent more time."""
    world.sessions.script("a", _FAILS, Play())
    await world.live(effective_of(restart="always", timeout=10.0))
    assert world.times("C-c") == [10]


async def test_timeout_excludes_the_queue(autojump_clock: MockClock) -> None:
    """Waiting for a place among the launches under way is not a part of the timeout."""
    world = World(autojump_clock, launches=1)
    async with world.living(effective_of(timeout=10.0)), world.around.launches:
        await until(5)
        assert (world.status().state, world.status().reason) == ("waiting", "queued")
        assert world.status().deadline_at is None
    assert world.times("launch") == [5]
    assert world.times("C-c") == [15]


async def test_timeout_excludes_blocked_before_the_first_start(autojump_clock: MockClock, world: World) -> None:
    """The time for which an agent could not be launched at all is not a part of the timeout."""
    world.sessions.script("a", Play(blocked=_BLOCKED), Play())
    async with world.living(effective_of(timeout=10.0)):
        await until(50)
        assert world.status().deadline_at is None
        world.sessions.causes.clear()
        world.looks.ring()
    assert world.times("start") == [50]
    assert world.times("C-c") == [60]
    assert world.status().deadline_at == EPOCH + 60


async def test_timeout_includes_blocked_afterwards(autojump_clock: MockClock, world: World) -> None:
    """Once there was a launch, the timeout goes on while a restart is blocked."""
    world.sessions.script("a", _FAILS, Play(blocked=_BLOCKED))
    await world.live(effective_of(restart="always", timeout=10.0))
    assert world.times("launch") == [0, 4]
    assert world.states()[-3:] == [(4, "waiting"), (10, "stopping"), (10, "failed")]


async def test_timeout_counts_from_a_launch_that_never_started(autojump_clock: MockClock, world: World) -> None:
    """A launch that never started was a launch: what is blocked after it does not begin the timeout anew."""
    world.sessions.script("a", Play(start_after=30), Play(blocked=_BLOCKED))
    await world.live(effective_of(restart="always", timeout=40.0))
    assert world.times("launch") == [0, 33]
    assert world.states()[-2:] == [(40, "stopping"), (40, "failed")]


async def test_end_before_the_timeout(autojump_clock: MockClock, world: World) -> None:
    """An agent that ended in time has not timed out, even where clearing away after it takes longer."""
    world.sessions.script("a", Play(ends_after=9, sweep_takes=5))
    await world.live(effective_of(timeout=10.0))
    assert world.states()[-2:] == [(0, "running"), (9, "completed")]
    assert world.status().reason == "exited"


async def test_timeout_while_stopping(autojump_clock: MockClock, world: World) -> None:
    """A deadline that passes during a stop changes nothing: the stop has its first cause."""
    world.sessions.script("a", Play(exits_on=None))
    async with world.living(effective_of(timeout=10.0)) as run:
        await until(5)
        run.stop("removed")
    assert world.seen()[2:] == [(5, "C-c"), (35, "sweep"), (35, "end"), (35, "close")]
    assert world.states()[-1] == (5, "stopping")
    status = world.status()
    assert (status.reason, status.wanted) == ("removed", "stopped")
    assert status.exit is not None
    assert status.exit.wish == "removed"


async def test_change_during_the_stop_of_a_timeout(autojump_clock: MockClock, world: World) -> None:
    """A changed entry during a timeout's stop lets the stop end in its own time, and ends the session too."""
    world.sessions.script("a", Play(exits_on=None))
    async with world.living(effective_of(timeout=10.0)) as run:
        await until(20)
        run.stop("changed")
    assert world.seen()[2:] == [(10, "C-c"), (40, "sweep"), (40, "end"), (40, "close")]
    assert world.states()[-1] == (10, "stopping")
    assert world.status().exit is not None


async def test_shutdown_during_the_stop_of_a_timeout(autojump_clock: MockClock, world: World) -> None:
    """A shutdown during a timeout's stop waits for that stop, and does not begin another."""
    world.sessions.script("a", Play(exits_on=None))
    with trio.CancelScope() as daemon:
        async with world.living(effective_of(timeout=10.0)):
            await until(20)
            daemon.cancel()
    assert trio.current_time() == 40
    assert world.seen()[2:] == [(10, "C-c"), (40, "sweep"), (40, "end")]


# Blocked


async def test_blocked(autojump_clock: MockClock, world: World) -> None:
    """A blocked agent waits with its reason, and is launched at the look after the cause has gone, uncounted."""
    world.sessions.script("a", Play(blocked=_BLOCKED), Play(ends_after=1))
    async with world.living(effective_of(max_restarts=1)):
        await until(5)
        status = world.status()
        world.looks.ring()
        await until(7)
        world.sessions.causes.clear()
        await until(10)
        world.looks.ring()
    assert (status.state, status.reason, status.message) == ("waiting", "binary", _BLOCKED.message)
    assert (status.error, status.running, status.wanted) == (_BLOCKED.message, False, "running")
    assert world.times("launch") == [0, 10]
    assert _asked(world) == [(1, 0, True), (2, 0, True)]
    status = world.status()
    assert (status.state, status.restarts, status.error) == ("completed", 0, None)


class _BlindSessions(RecordingSessions):
    """Nothing can be told by `stat`."""

    async def still_blocked(self, effective: EffectiveAgent, blocked: Blocked) -> bool:
        del effective, blocked
        await trio.lowlevel.checkpoint()
        return False


async def test_blocked_waits_for_a_look(autojump_clock: MockClock) -> None:
    """A cause that `stat` cannot see is tried once at each look, never in a busy loop."""
    world = World(autojump_clock, sessions=_BlindSessions)
    world.sessions.script("a", Play(blocked=_BLOCKED))
    async with world.living(effective_of()) as run:
        for look in (5, 10, 15):
            await until(look)
            world.looks.ring()
        await until(17)
        run.stop("removed")
    assert world.times("launch") == [0, 5, 10, 15]


async def test_blocked_restart(autojump_clock: MockClock, world: World) -> None:
    """A restart that is blocked is that same restart when the cause has gone."""
    world.sessions.script("a", _FAILS, Play(blocked=_BLOCKED), Play(ends_after=1, code=1))
    async with world.living(effective_of(restart="always", max_restarts=1)):
        await until(20)
        world.sessions.causes.clear()
        world.looks.ring()
    assert world.times("start") == [0, 20]
    assert _asked(world) == [(1, 0, True), (2, 1, True), (3, 1, True)]
    assert (world.status().state, world.status().reason) == ("failed", "restarts_exhausted")


async def test_blocked_frees_its_place(autojump_clock: MockClock) -> None:
    """A blocked agent takes no place among the launches under way."""
    world = World(autojump_clock, launches=1)
    world.sessions.script("a", Play(blocked=_BLOCKED))
    async with world.living(effective_of()) as run:
        await until(1)
        assert world.around.launches.borrowed_tokens == 0
        run.stop("removed")


# What is left over


async def test_left_overs(autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture) -> None:
    """No attempt begins before nothing is left of the one before; each look tries again, and says so once."""
    world.sessions.script("a", Play(ends_after=1, code=1, defies=3), Play(ends_after=1))
    async with world.living(effective_of(restart="on-failure")):
        await until(2)
        status = world.status()
        for look in (5, 10, 15):
            await until(look)
            world.looks.ring()
    assert status.state == "backoff"
    assert status.message == "Processes that it left behind (1) cannot be ended; agentd tries again at each look."
    assert status.error == status.message
    assert world.times("sweep") == [1, 5, 10, 15, 16]
    assert world.times("start") == [0, 15]
    assert [record.levelno for record in caplog.records if "left behind" in record.getMessage()] == [logging.ERROR]


async def test_left_overs_of_the_last_attempt(autojump_clock: MockClock, world: World) -> None:
    """When what defied the sweep has gone at last, the status tells again how the agent ended."""
    world.sessions.script("a", Play(ends_after=1, defies=1))
    async with world.living(effective_of()):
        await until(2)
        told = world.status()
        await until(5)
        world.looks.ring()
    assert (told.state, told.reason) == ("completed", "exited")
    assert "left behind" in told.message
    status = world.status()
    assert (status.state, status.reason, status.error) == ("completed", "exited", None)
    assert status.message.startswith("Exited with code 0;")


async def test_stop_with_left_overs(autojump_clock: MockClock, world: World) -> None:
    """A run that waits for its left-overs to go can be stopped at once."""
    world.sessions.script("a", Play(ends_after=1, code=1, defies=9))
    async with world.living(effective_of(restart="always")) as run:
        await until(8)
        run.stop("removed")
    assert trio.current_time() == 8
    assert world.seen()[-2:] == [(8, "sweep"), (8, "close")]


# Bugs


async def test_bug(autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A bug ends its run as failed, with its traceback in the log and nothing left behind."""
    world.sessions.script("a", Play(bug="the sky fell"))
    await world.live(effective_of(restart="always"))
    status = world.status()
    assert (status.state, status.reason, status.running) == ("failed", "bug", False)
    assert status.error == status.message
    assert world.seen() == [(0, "launch"), (0, "sweep")]
    assert "agent=a: a bug in agentd ended its run" in caplog.text
    assert "RuntimeError: the sky fell" in caplog.text
    assert "Traceback" in caplog.text


class _BrokenSweep(FakeAttempt):
    async def sweep(self) -> int:
        await super().sweep()
        msg = "the broom broke"
        raise RuntimeError(msg)


class _BrokenSessions(RecordingSessions):
    def attempt(self, request: AttemptRequest) -> FakeAttempt:
        super().attempt(request)
        return _BrokenSweep(self, request, Play(), 1)


async def test_bug_in_a_stop(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in the stop itself fails that agent and nobody else, and both of its tracebacks are in the log."""
    world = World(autojump_clock, sessions=_BrokenSessions)
    async with world.living(effective_of()) as run:
        await until(5)
        run.stop("removed")
    assert world.status().reason == "bug"
    assert world.states()[-2:] == [(5, "stopping"), (5, "failed")]
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        "agent=a: a bug in agentd ended its run",
        "agent=a: the same for its stop",
    ]


async def test_bug_in_ending_a_session(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in ending a session is logged once while it lasts, and the session counts as still there."""
    world = World(autojump_clock, sessions=_BrokenSessions)
    async with world.living(effective_of()) as run:
        await until(5)
        run.stop("removed")
    caplog.clear()
    assert await run.end_session() is False
    assert await run.end_session() is False
    (record,) = caplog.records
    assert record.exc_info
    assert "a bug in agentd keeps its session from being ended: RuntimeError('the broom broke')" in record.getMessage()


async def test_bug_in_one_of_two(autojump_clock: MockClock, world: World) -> None:
    """A bug in one run lets the others go on."""
    world.sessions.script("a", Play(bug="the sky fell"))
    world.sessions.script("b", Play(ends_after=50))
    async with world.living(effective_of("a")), world.living(effective_of("b")):
        pass
    assert world.states("b")[-1] == (50, "completed")


# What others see


async def test_repr(autojump_clock: MockClock, world: World) -> None:
    """A run's repr says whose it is and how far, and nothing of its prompt or environment."""
    async with world.living(effective_of(prompt="hush", env={"TOKEN": "hush"})) as run:
        await wait_all_tasks_blocked()
        assert repr(run) == "<Run run-1 of 'a', running, wish None>"
        run.stop("removed")
    assert repr(run) == "<Run run-1 of 'a', stopping, wish removed>"


async def test_log(autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Each change of state is one line with wanted, state and reason apart, and the level says whether to mend."""
    caplog.set_level(logging.INFO)
    world.sessions.script("a", _FAILS, Play(ends_after=1))
    await world.live(effective_of(restart="on-failure"))
    assert [(record.levelname, record.getMessage().partition(": ")[0]) for record in caplog.records] == [
        ("INFO", "agent=a wanted=running state=starting reason=- attempt=1 pid=-"),
        ("INFO", "agent=a wanted=running state=running reason=- attempt=1 pid=1001"),
        ("WARNING", "agent=a wanted=running state=backoff reason=code attempt=1 pid=-"),
        ("INFO", "agent=a wanted=running state=starting reason=- attempt=2 pid=-"),
        ("INFO", "agent=a wanted=running state=running reason=- attempt=2 pid=1002"),
        ("INFO", "agent=a wanted=running state=completed reason=exited attempt=2 pid=-"),
    ]


async def test_a_cause_that_lasts_is_said_once(
    autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """However often a blocked agent is tried again, the log says once that it is blocked, and then that it runs."""
    caplog.set_level(logging.INFO, "agentd.run")
    blocked = Play(blocked=Blocked(reason="tmux_refused", message="tmux says no"))
    world.sessions.script("a", blocked, blocked, blocked, Play(ends_after=5))
    async with world.living(effective_of()):
        for _ in range(4):
            await trio.sleep(1)
            world.sessions.causes.clear()
            world.looks.ring()
    said = [line.split("state=")[1].split()[0] for line in caplog.messages]
    assert said == ["starting", "waiting", "running", "completed"]


async def test_a_blocked_launch_is_swept_before_the_next(autojump_clock: MockClock, world: World) -> None:
    """Where a launch failed in the middle, what may run of it all the same is gone before the agent is tried again."""
    world.sessions.script("a", Play(blocked=_BLOCKED, defies=2), Play(ends_after=1))
    async with world.living(effective_of()):
        for _ in range(4):
            await trio.sleep(1)
            world.sessions.causes.clear()
            world.looks.ring()
    assert world.seen()[:5] == [(0, "launch"), (0, "sweep"), (1, "sweep"), (2, "sweep"), (3, "launch")]
