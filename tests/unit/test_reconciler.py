"""What runs is made to match what is wanted: looks, starts, stops, waiting, shutdown; on the virtual clock."""

import logging
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from agentd.card.card import Agent
from agentd.reconciler import Reconciler
from agentd.resolve import Blocked, Unsupported
from agentd.sessions import AttemptRequest, RunNote
from agentd.testing import FakeAttempt, Play
from tests.unit.world import (
    EPOCH,
    Desk,
    RecordingSessions,
    World,
    agent_of,
    effective_of,
    inputs_of,
    reconciling,
    resolved,
    until,
)

_DEAF = Play(exits_on=None)
_NO_PROMPT = Blocked(reason="prompt_file", message="There is no /srv/prompt.md.", paths=("/srv/prompt.md",))


@pytest.fixture
def world(autojump_clock: MockClock) -> World:
    return World(autojump_clock)


def _names(world: World) -> list[str]:
    return [status.name for status in world.store.agents]


def _said(caplog: pytest.LogCaptureFixture, logger: str = "agentd.reconciler") -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name == logger]


def _sandboxed(name: str = "a") -> tuple[Agent, Unsupported]:
    agent = agent_of(name, type="sandboxed")
    what = resolved(agent)
    assert isinstance(what, Unsupported)
    return agent, what


# Looks


async def test_looks(autojump_clock: MockClock, world: World) -> None:
    """There is a look at the start and every 5 s."""
    async with reconciling(world) as at_work:
        await until(20)
    assert at_work.desk.reads == [0, 5, 10, 15, 20]


async def test_knock(autojump_clock: MockClock, world: World) -> None:
    """A knock brings a look at once, and the clock goes on as before."""
    async with reconciling(world) as at_work:
        await until(7)
        at_work.reconciler.knock()
        await until(10)
    assert at_work.desk.reads == [0, 5, 7, 10]


async def test_knocks_coalesce(autojump_clock: MockClock, world: World) -> None:
    """However many knock during a look, one more look follows it."""
    async with reconciling(world) as at_work:
        at_work.desk.read_takes = 1
        await until(6.5)
        assert at_work.desk.reads == [0, 5]
        at_work.reconciler.knock()
        await until(7)
        for _ in range(100):
            at_work.reconciler.knock()
        await until(9.9)
    assert at_work.desk.reads == [0, 5, 6.5, 7.5]


async def test_slow_look(autojump_clock: MockClock, world: World) -> None:
    """A look that takes longer than a tick is followed by the next one, never joined by it."""
    async with reconciling(world) as at_work:
        at_work.desk.read_takes = 7
        await until(27)
    assert at_work.desk.reads == [0, 5, 12, 19, 26]


async def test_looked(autojump_clock: MockClock, world: World) -> None:
    """`looked` is set by the first look, when everything it starts is in the store."""
    desk = Desk(inputs_of(effective_of("a"), effective_of("b")), read_takes=3)
    reconciler = Reconciler(desk.read, world.around)
    looked = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reconciler.work, looked)
        await until(2.9)
        assert not looked.is_set()
        await looked.wait()
        assert trio.current_time() == 3
        assert _names(world) == ["a", "b"]
        nursery.cancel_scope.cancel()


# What an earlier agentd left behind


async def test_nothing_is_launched_before_recovery(autojump_clock: MockClock, world: World) -> None:
    """Nothing is launched until what an earlier agentd left behind has ended; at the first look after that, all is."""
    world.sessions.recovers = False
    async with reconciling(world, effective_of("a"), effective_of("b")) as at_work:
        await until(12)
        assert world.seen("a") == world.seen("b") == []
        assert [(status.state, status.reason) for status in world.store.agents] == [("waiting", "recovering")] * 2
        world.sessions.recovers = True
        await until(14)
        assert world.seen("a") == []
        await until(20)
        world.sessions.recovers = False  # it is asked until it is done, and never again
        at_work.desk.want(effective_of("a"), effective_of("b"), effective_of("c"))
        await until(25)
    assert world.times("launch", "a") == world.times("launch", "b") == [15]
    assert world.times("launch", "c") == [25]


@pytest.mark.parametrize(
    "without",
    [{"card_missing": True}, {"card_error": "line 3: no"}],
    ids=["missing", "invalid"],
)
async def test_no_recovery_before_a_card(autojump_clock: MockClock, world: World, without: dict[str, object]) -> None:
    """Before the first valid card nothing that an earlier agentd left behind is ended."""
    asked = []

    class Asked(RecordingSessions):
        async def recover(self) -> tuple[RunNote, ...] | None:
            asked.append(trio.current_time())
            return await super().recover()

    world = World(autojump_clock, sessions=Asked)
    async with reconciling(world, desk=Desk(inputs_of(card=None, **without))) as at_work:
        await until(12)
        assert asked == []
        at_work.desk.want(effective_of())
        await until(20)
    assert asked == [15]
    assert world.times("launch") == [15]


# One agent


async def test_start(autojump_clock: MockClock, world: World) -> None:
    """A wanted agent is started at the first look."""
    async with reconciling(world, effective_of()):
        await until(1)
        assert world.status().running
    assert world.times("start") == [0]


async def test_unchanged(autojump_clock: MockClock, world: World) -> None:
    """An equal card, read again and again, does nothing to anybody."""
    async with reconciling(world, effective_of()) as at_work:
        await until(1)
        revision = world.store.revision
        for when in (12, 23, 34):
            await until(when)
            at_work.desk.want(effective_of())
        assert world.store.revision == revision
    assert world.times("launch") == [0]


async def test_changed(autojump_clock: MockClock, world: World) -> None:
    """A changed agent is stopped and, when it is gone, started: never are two of them alive."""
    world.sessions.script("a", Play(interrupt_takes=8), Play())
    async with reconciling(world, effective_of()) as at_work:
        await until(6)
        at_work.desk.want(effective_of(args=("--new",)))
        await until(30)
        assert world.status().digest == effective_of(args=("--new",)).digest
        assert world.status().running
    assert world.seen()[:5] == [(0, "launch"), (0, "start"), (10, "C-c"), (18, "end"), (18, "sweep")]
    assert world.times("start") == [0, 18]


async def test_changed_is_never_out_of_sight(autojump_clock: MockClock, world: World) -> None:
    """An agent that is being relaunched is in the store all the time."""
    async with reconciling(world, effective_of()) as at_work:
        at_work.desk.read_takes = 2
        await until(6)
        at_work.desk.want(effective_of(args=("--new",)))
        await until(30)
        assert world.times("start") == [0, 9]
        assert world.store.dropped == []
        assert world.states()[2:] == [
            (0, "running"),
            (7, "stopping"),
            (9, "waiting"),
            (9, "starting"),
            (9, "running"),
        ]


async def test_changed_again_while_stopping(autojump_clock: MockClock, world: World) -> None:
    """Of several changes during a stop, the last one is started."""
    world.sessions.script("a", _DEAF, Play())
    async with reconciling(world, effective_of()) as at_work:
        for when, text in ((6, "1"), (12, "2"), (18, "3")):
            await until(when)
            at_work.desk.want(effective_of(env={"RUN": text}))
        await until(50)
    assert world.times("start") == [0, 40]
    assert world.sessions.requests[1].effective.env == {"RUN": "3"}


async def test_changed_back_while_stopping(autojump_clock: MockClock, world: World) -> None:
    """A change that is taken back during the stop still ends in a new start."""
    world.sessions.script("a", _DEAF, Play())
    async with reconciling(world, effective_of()) as at_work:
        await until(4)
        at_work.desk.want(effective_of(args=("--new",)))
        await until(9)
        at_work.desk.want(effective_of())
        await until(50)
    assert world.times("start") == [0, 35]


async def test_removed(autojump_clock: MockClock, world: World) -> None:
    """A removed agent is stopped, its session is ended, and then it is dropped from the store."""
    world.sessions.script("a", Play(interrupt_takes=3))
    async with reconciling(world, effective_of()) as at_work:
        await until(1)
        at_work.desk.want()
        await until(7)
        assert (world.status().state, world.status().wanted) == ("stopping", "stopped")
        await until(8)
        assert _names(world) == []
        assert world.sessions.sessions == set()
    assert world.store.dropped == [(8, "a")]


async def test_added_again_while_stopping(autojump_clock: MockClock, world: World) -> None:
    """An agent that comes back during its stop runs again when the stop is over."""
    world.sessions.script("a", _DEAF, Play())
    async with reconciling(world, effective_of()) as at_work:
        await until(4)
        at_work.desk.want()
        await until(14)
        at_work.desk.want(effective_of())
        await until(60)
        assert world.status().running
        assert (world.status().wanted, world.status().reason) == ("running", None)
    assert world.times("start") == [0, 35]


async def test_blocked_input_stops_nothing(
    autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """An input that vanishes while its agent runs is told and stops nothing; coming back it restarts nothing."""
    async with reconciling(world, effective_of()) as at_work:
        await until(1)
        at_work.desk.want((agent_of(), _NO_PROMPT))
        await until(11)
        assert (world.status().state, world.status().error) == ("running", None)
        told = "agent a goes on as it was launched: There is no /srv/prompt.md."
        warnings = [world.store.daemon.warnings]
        assert _said(caplog) == [("WARNING", told)]
        at_work.desk.want(effective_of())
        await until(21)
        warnings.append(world.store.daemon.warnings)
    assert warnings == [(told,), ()]
    assert world.times("start") == [0]


async def test_changed_to_a_blocked_input(autojump_clock: MockClock, world: World) -> None:
    """An agent that has ended waits when its entry changes to one that is blocked; a mere loss leaves it as it is."""
    world.sessions.script("a", Play(ends_after=1))
    async with reconciling(world, effective_of()) as at_work:
        await until(6)
        at_work.desk.want((agent_of(), _NO_PROMPT))
        await until(11)
        assert world.status().state == "completed"
        at_work.desk.want((agent_of(args=("changed",)), _NO_PROMPT))
        await until(16)
        assert (world.status().state, world.status().reason) == ("waiting", "prompt_file")


async def test_blocked_input_starts_nothing(
    autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent whose input is missing waits with its reason, said once, and starts at the look that finds it."""
    async with reconciling(world, (agent_of(), _NO_PROMPT)) as at_work:
        await until(12)
        status = world.status()
        at_work.desk.want(effective_of())
        await until(15)
        assert world.status().running
    assert (status.state, status.reason, status.message) == ("waiting", "prompt_file", _NO_PROMPT.message)
    assert (status.error, status.wanted, status.since) == (_NO_PROMPT.message, "running", EPOCH)
    assert world.times("start") == [15]
    assert _said(caplog) == [
        ("WARNING", "agent=a wanted=running state=waiting reason=prompt_file: There is no /srv/prompt.md.")
    ]


async def test_blocked_input_is_said_again(
    autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The same cause is said again when it comes back after the agent ran."""
    async with reconciling(world, (agent_of(), _NO_PROMPT)) as at_work:
        await until(4)
        at_work.desk.want(effective_of())
        await until(9)
        at_work.desk.want()
        await until(14)
        at_work.desk.want((agent_of(), _NO_PROMPT))
        await until(20)
    assert len(_said(caplog)) == 2


async def test_blocked_input_that_is_removed(autojump_clock: MockClock, world: World) -> None:
    """An agent that waits for its input and is removed is dropped from the store."""
    async with reconciling(world, (agent_of(), _NO_PROMPT)) as at_work:
        await until(1)
        at_work.desk.want()
        await until(6)
        assert _names(world) == []


async def test_blocked_launch(autojump_clock: MockClock, world: World) -> None:
    """A launch that is blocked is tried again at the look after its cause has gone."""
    world.sessions.script("a", Play(blocked=Blocked(reason="workdir", message="There is no /srv.")), Play())
    async with reconciling(world, effective_of()):
        await until(12)
        assert (world.status().state, world.status().reason) == ("waiting", "workdir")
        world.sessions.causes.clear()
        await until(14.9)
        assert world.times("launch") == [0]
        await until(15)
        assert world.status().running
    assert world.times("launch") == [0, 15]


# Ends


@pytest.mark.parametrize("play", [Play(ends_after=1), Play(ends_after=1, code=1), Play(bug="the sky fell")])
async def test_ended(autojump_clock: MockClock, world: World, play: Play) -> None:
    """An agent that has ended is not launched again, however often agentd looks."""
    world.sessions.script("a", play)
    async with reconciling(world, effective_of()):
        await until(1000)
        assert world.status().state in {"completed", "failed"}
    assert world.times("launch") == [0]


async def test_ended_and_changed(autojump_clock: MockClock, world: World) -> None:
    """An ended agent runs again when its entry changes, in a session of its own."""
    world.sessions.script("a", Play(ends_after=1))
    async with reconciling(world, effective_of()) as at_work:
        await until(12)
        at_work.desk.want(effective_of(env={"RUN": "2"}))
        await until(20)
        assert world.status().state == "completed"
        assert world.store.dropped == []
    assert world.times("start") == [0, 15]
    assert world.times("close")[0] == 15
    assert [request.previous for request in world.sessions.requests] == [None, None]


async def test_ended_and_removed(autojump_clock: MockClock, world: World) -> None:
    """An ended agent that is removed is dropped with its session, and runs again when it comes back."""
    world.sessions.script("a", Play(ends_after=1))
    async with reconciling(world, effective_of()) as at_work:
        await until(12)
        assert world.sessions.sessions == {"a"}
        at_work.desk.want()
        await until(16)
        assert world.sessions.sessions == set()
        assert _names(world) == []
        at_work.desk.want(effective_of())
        await until(20)
    assert world.times("start") == [0, 20]


async def test_timed_out(autojump_clock: MockClock, world: World) -> None:
    """An agent that timed out stays failed in its session until its entry changes."""
    async with reconciling(world, effective_of(timeout=7.0, restart="always")) as at_work:
        await until(100)
        assert (world.status().state, world.status().reason) == ("failed", "timed_out")
        assert world.sessions.sessions == {"a"}
        at_work.desk.want(effective_of(timeout=8.0, restart="always"))
        await until(106)
        assert world.status().running
    assert world.times("start") == [0, 105]


async def test_changed_during_the_stop_of_a_timeout(autojump_clock: MockClock, world: World) -> None:
    """An agent whose entry changes while it is stopped by its timeout is relaunched when that stop is over."""
    world.sessions.script("a", _DEAF, Play())
    async with reconciling(world, effective_of(timeout=10.0)) as at_work:
        await until(14)
        at_work.desk.want(effective_of(timeout=500.0))
        await until(60)
        assert world.status().running
    assert world.times("start") == [0, 40]


async def test_bug_in_one(autojump_clock: MockClock, world: World) -> None:
    """A bug in one agent's run leaves the others and the reconciler at work."""
    world.sessions.script("a", Play(bug="the sky fell"))
    async with reconciling(world, effective_of("a"), effective_of("b")) as at_work:
        await until(12)
        assert (world.status("a").state, world.status("a").reason) == ("failed", "bug")
        assert world.status("b").running
        at_work.desk.want(effective_of("b"), effective_of("c"))
        await until(20)
        assert _names(world) == ["b", "c"]


# What is left over


async def test_left_overs_hold_the_successor(
    autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What defies the sweeps of a stop keeps the successor waiting until a look finds it gone; that is said once."""
    world.sessions.script("a", Play(defies=4), Play())
    async with reconciling(world, effective_of()) as at_work:
        await until(4)
        at_work.desk.want(effective_of(args=("--new",)))
        await until(6)
        status = world.status()
        await until(30)
    assert (status.state, status.running) == ("stopping", False)
    assert status.message == "Processes that it left behind (1) cannot be ended; agentd tries again at each look."
    # One by the stop, one when its session was to be ended, and then one at each look.
    assert world.times("sweep")[:5] == [5, 5, 10, 15, 20]
    assert world.times("start") == [0, 20]
    assert len([words for _, words in _said(caplog, "agentd.run") if "left behind" in words]) == 1


async def test_left_overs_do_not_hold_a_shutdown(autojump_clock: MockClock, world: World) -> None:
    """A shutdown does not wait for what cannot be ended."""
    world.sessions.script("a", Play(defies=10**6))
    async with reconciling(world, effective_of()) as at_work:
        await until(4)
        at_work.desk.want()
        await until(12)
        at_work.shut_down()
    assert trio.current_time() == 12


class _BrokenClose(FakeAttempt):
    async def close(self) -> None:
        await super().close()
        if self.broken:
            msg = "the door broke"
            raise RuntimeError(msg)

    broken = False


class _BrokenSessions(RecordingSessions):
    def attempt(self, request: AttemptRequest) -> FakeAttempt:
        super().attempt(request)
        attempt = _BrokenClose(self, request, Play(), len(self.requests))
        attempt.broken = request.effective.agent.name == "a"
        return attempt


async def test_bug_in_ending_one(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """A bug that keeps one session from being ended costs that agent, logged with its traceback, and nobody else."""
    world = World(autojump_clock, sessions=_BrokenSessions)
    async with reconciling(world, effective_of("a"), effective_of("b")) as at_work:
        await until(4)
        at_work.desk.want(effective_of("b"), effective_of("c"))
        await until(50)
        assert world.status("b").running
        assert world.status("c").running
        assert world.status("a").state == "failed"
        assert world.status("a").error is not None
    assert len([record for record in caplog.records if record.exc_info]) == 2
    assert "RuntimeError: the door broke" in caplog.text


# Several agents


async def test_order(autojump_clock: MockClock, world: World) -> None:
    """The store has the card's order from the first look on, and follows it."""
    names = list("hgfedcba")
    async with reconciling(world, *map(effective_of, names)) as at_work:
        assert _names(world) == names
        at_work.desk.want(*map(effective_of, sorted(names)))
        await until(5)
        assert _names(world) == sorted(names)


async def test_one_changes(autojump_clock: MockClock, world: World) -> None:
    """A change of one agent touches no other."""
    async with reconciling(world, effective_of("a"), effective_of("b")) as at_work:
        await until(4)
        at_work.desk.want(effective_of("a"), effective_of("b", args=("--new",)))
        await until(10)
    assert world.times("start", "a") == [0]
    assert world.times("start", "b") == [0, 5]


async def test_slow_stop_delays_nobody(autojump_clock: MockClock, world: World) -> None:
    """While one agent takes its whole grace period, others are stopped, started and changed at once."""
    world.sessions.script("a", _DEAF)
    async with reconciling(world, *map(effective_of, "abc")) as at_work:
        await until(4)
        at_work.desk.want(effective_of("c"))
        await until(9)
        at_work.desk.want(effective_of("c", args=("--new",)), effective_of("d"))
        await until(14)
        assert world.status("a").state == "stopping"
        assert world.status("d").running
    assert world.times("end", "b") == [5]
    assert world.times("start", "c") == [0, 10]
    assert world.times("start", "d") == [10]
    assert world.times("end", "a") == [35]


async def test_swapped_sessions(autojump_clock: MockClock, world: World) -> None:
    """Two agents that swap their sessions are both stopped before either begins in the other's."""
    world.sessions.script("a", Play(interrupt_takes=2), Play())
    world.sessions.script("b", Play(interrupt_takes=9), Play())
    async with reconciling(world, effective_of("a", session="left"), effective_of("b", session="right")) as at_work:
        await until(4)
        at_work.desk.want(effective_of("a", session="right"), effective_of("b", session="left"))
        await until(10)
        status = world.status("a")
        await until(30)
        assert [(agent.name, agent.session, agent.running) for agent in world.store.agents] == [
            ("a", "right", True),
            ("b", "left", True),
        ]
    assert (status.state, status.reason, status.session) == ("waiting", "session_taken", "right")
    assert world.times("end", "a")[0] == 7
    assert world.times("end", "b")[0] == 14
    assert world.times("start", "a") == [0, 14]
    assert world.times("start", "b") == [0, 14]


async def test_inherited_session(autojump_clock: MockClock, world: World) -> None:
    """An agent that takes the session of a removed one waits for that one's end."""
    world.sessions.script("a", Play(interrupt_takes=8))
    async with reconciling(world, effective_of("a", session="s")) as at_work:
        await until(4)
        at_work.desk.want(effective_of("b", session="s"))
        await until(20)
        assert _names(world) == ["b"]
    assert world.times("start", "b") == [13]


@pytest.mark.parametrize(("count", "last"), [(8, 0), (9, 3), (20, 6)])
async def test_launches_are_limited(autojump_clock: MockClock, world: World, count: int, last: float) -> None:
    """At most 8 launches are under way at once, and those that wait say so."""
    names = [f"a{number}" for number in range(count)]
    for name in names:
        world.sessions.script(name, Play(start_after=3))
    async with reconciling(world, *map(effective_of, names)):
        await until(1)
        queued = [status for status in world.store.agents if status.reason == "queued"]
        await until(100)
        assert all(status.running for status in world.store.agents)
    assert len(queued) == count - 8
    launches = sorted(at for name in names for at in world.times("launch", name))
    assert launches == [3 * (number // 8) for number in range(count)]
    assert launches[-1] == last


# Types


async def test_sandboxed(autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A sandboxed agent has failed for its type, said once, and the others run."""
    async with reconciling(world, _sandboxed(), effective_of("b")):
        await until(20)
        status = world.status()
        assert world.status("b").running
    assert (status.state, status.reason, status.type) == ("failed", "unsupported_type", "sandboxed")
    assert (status.wanted, status.running, status.since) == ("running", False, EPOCH)
    assert status.error == status.message
    assert world.seen() == []
    assert len(_said(caplog)) == 1


async def test_native_becomes_sandboxed_and_back(autojump_clock: MockClock, world: World) -> None:
    """A running agent that becomes sandboxed is stopped, and one that becomes native again is started."""
    async with reconciling(world, effective_of()) as at_work:
        await until(4)
        at_work.desk.want(_sandboxed())
        await until(9)
        assert (world.status().state, world.status().reason) == ("failed", "unsupported_type")
        assert world.sessions.sessions == set()
        at_work.desk.want(effective_of())
        await until(10)
        assert world.status().running
    assert world.times("end") == [5, 10]
    assert world.times("start") == [0, 10]


# Shutdown


async def test_shutdown(autojump_clock: MockClock, world: World) -> None:
    """A shutdown stops all agents at once: it takes as long as the slowest, and no session is left."""
    plays = {"a": Play(), "b": Play(interrupt_takes=7), "c": _DEAF, "d": Play(start_after=60), "e": Play(ends_after=1)}
    for name, play in plays.items():
        world.sessions.script(name, play)
    async with reconciling(world, *(effective_of(name, grace_period=12.0) for name in plays)) as at_work:
        await until(5)
        at_work.shut_down()
    assert trio.current_time() == 17
    assert {name: world.times("end", name) for name in plays} == {"a": [5], "b": [12], "c": [17], "d": [], "e": [1]}
    assert {name: world.status(name).state for name in plays} == {
        **dict.fromkeys("abcd", "stopping"),
        "e": "completed",
    }
    assert not any(status.running for status in world.store.agents)


async def test_hurried_shutdown(autojump_clock: MockClock, world: World) -> None:
    """Hurry during a shutdown ends every grace period at that instant."""
    for name in "abc":
        world.sessions.script(name, _DEAF)
    async with reconciling(world, *map(effective_of, "abc")) as at_work:
        await until(5)
        at_work.shut_down()
        await until(8)
        world.hurry.set()
    assert trio.current_time() == 8
    assert [world.times("end", name) for name in "abc"] == [[8]] * 3


async def test_shutdown_during_a_stop(autojump_clock: MockClock, world: World) -> None:
    """A stop that is under way at a shutdown is not begun anew, and nothing is started any more."""
    world.sessions.script("a", _DEAF)
    async with reconciling(world, effective_of()) as at_work:
        await until(4)
        at_work.desk.want(effective_of(args=("--new",)))
        await until(10)
        at_work.shut_down()
    assert trio.current_time() == 35
    assert world.times("C-c") == [5]
    assert world.times("launch") == [0]


async def test_shutdown_during_a_look(autojump_clock: MockClock, world: World) -> None:
    """A shutdown does not wait for a look."""
    async with reconciling(world, effective_of()) as at_work:
        at_work.desk.read_takes = 1000
        await until(7)
        at_work.shut_down()
    assert trio.current_time() == 7


# The inputs themselves


async def test_invalid_card(autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture) -> None:
    """An invalid card stops nothing; its error is logged once while it lasts, and shown until it is mended."""
    async with reconciling(world, effective_of()) as at_work:
        await until(4)
        at_work.desk.inputs = inputs_of(effective_of(), card_error="line 3: no")
        await until(21)
        shown = [world.store.daemon.card_error]
        assert world.status().running
        at_work.desk.want(effective_of())
        await until(26)
        shown.append(world.store.daemon.card_error)
        at_work.desk.inputs = inputs_of(effective_of(), card_error="line 3: no")
        await until(31)
    lines = [
        ("ERROR", "card /etc/stereos/jcard.toml cannot be used, the last good one stays in force:"),
        ("ERROR", "card: line 3: no"),
    ]
    assert _said(caplog) == lines * 2
    assert shown == ["line 3: no", None]
    assert world.times("launch") == [0]


async def test_invalid_first_card(autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture) -> None:
    """An invalid card before any good one starts nothing, and the log says so, a line for each mistake."""
    desk = Desk(inputs_of(card=None, card_error="agents[0].harness: no\nagents[1].restart: no"))
    async with reconciling(world, desk=desk):
        await until(20)
    assert _said(caplog) == [
        ("ERROR", "card /etc/stereos/jcard.toml cannot be used, nothing is started:"),
        ("ERROR", "card: agents[0].harness: no"),
        ("ERROR", "card: agents[1].restart: no"),
    ]


async def test_missing_card(autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Without a card the log says once which path it waits for; a card that comes is taken at the next look."""
    caplog.set_level(logging.INFO, logger="agentd.reconciler")
    desk = Desk(inputs_of(card=None, card_missing=True))
    async with reconciling(world, desk=desk):
        await until(12)
        assert _said(caplog) == [("INFO", "waiting for a card at /etc/stereos/jcard.toml")]
        desk.want(effective_of())
        await until(15)
        assert world.status().running


async def test_card_goes_missing(autojump_clock: MockClock, world: World) -> None:
    """A card that goes missing stops nothing."""
    async with reconciling(world, effective_of()) as at_work:
        await until(4)
        at_work.desk.inputs = inputs_of(effective_of(), card_missing=True)
        await until(20)
        assert world.status().running
    assert world.times("C-c") == [20]


@pytest.mark.parametrize(
    ("looks", "said"),
    [
        ([("x",), ("x",), ("x",)], ["x"]),
        ([("x",), ("x", "y"), ("y",)], ["x", "y"]),
        ([("x",), (), ("x",)], ["x", "x"]),
    ],
)
async def test_warnings(
    autojump_clock: MockClock,
    world: World,
    caplog: pytest.LogCaptureFixture,
    looks: Sequence[tuple[str, ...]],
    said: list[str],
) -> None:
    """Each warning about the inputs is logged once while it lasts, and shown as long."""
    first, *others = looks
    desk = Desk(inputs_of(warnings=first))
    async with reconciling(world, desk=desk):
        for number, warnings in enumerate(others, start=1):
            desk.inputs = inputs_of(warnings=warnings)
            await until(5 * number)
            assert world.store.daemon.warnings == warnings
    assert [words for _, words in _said(caplog)] == said
