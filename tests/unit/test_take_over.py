from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from agentd.lifecycle import Exit, How, State
from agentd.resolve import Blocked, EffectiveAgent
from agentd.sessions import AttemptRequest
from agentd.testing import Play
from tests.notes import note_of, status_of
from tests.unit.world import EPOCH, World, effective_of, reconciling, until

UNREADABLE = Blocked(reason="prompt_file", message="The prompt file cannot be read.")


async def leave(
    world: World,
    effective: EffectiveAgent,
    play: Play,
    state: State = State.RUNNING,
    reason: str | None = None,
    **keys: Any,
) -> None:
    """Leave behind what an agentd does that is killed while its agent is in that state, in its second attempt."""
    agent = effective.agent
    world.sessions.script(agent.name, play)
    attempt = world.sessions.attempt(AttemptRequest(effective=effective, run="old", number=2))
    lives = state in {State.RUNNING, State.STOPPING}
    pid = await attempt.launch() if lives else None
    status = status_of(
        name=agent.name,
        session=agent.session,
        type=agent.type,
        harness=agent.harness,
        state=state,
        running=lives,
        reason=reason,
        since=EPOCH - 10,
        pid=pid,
        attempt=2,
        restarts=1,
        digest=effective.digest,
    )
    note = note_of(
        status,
        run="old",
        timeout=agent.timeout,
        grace_period=agent.grace_period,
        doublings=1,
        started=trio.current_time(),
    )
    world.sessions.remember(attrs.evolve(note, **keys), attempt)


@pytest.fixture
def world(autojump_clock: MockClock) -> World:
    return World(autojump_clock)


async def test_running(autojump_clock: MockClock, world: World) -> None:
    """What runs is known at once and not launched; its end goes through the policy, which goes on counting."""
    effective = effective_of(restart="always", max_restarts=2, restart_delay_max=60.0)
    await leave(world, effective, Play(ends_after=5, code=3))
    async with reconciling(world, effective):
        status = world.status()
        assert (status.state, status.running, status.since, status.restarts) == ("running", True, EPOCH - 10, 1)
        assert world.times("launch") == [0]
        await until(6)
        assert (world.status().state, world.status().next_restart_at) == ("backoff", EPOCH + 5 + 6)
        await until(12)
        assert world.times("launch") == [0, 11]
        assert (world.status().restarts, world.status().attempt) == (2, 3)


async def test_backoff(autojump_clock: MockClock, world: World) -> None:
    """A backoff ends when it would have ended, and what the attempt left is swept before that."""
    effective = effective_of(restart="always", max_restarts=2)
    await leave(world, effective, Play(), State.BACKOFF, next_restart=2.5)
    async with reconciling(world, effective):
        assert world.status().state == "backoff"
        await until(4)
        assert (world.times("sweep"), world.times("start")) == ([0], [2.5])
        assert (world.status().restarts, world.status().attempt) == (2, 3)


@pytest.mark.parametrize(("deadline", "at"), [(20.0, 20), (-5.0, 0)])
async def test_deadline(autojump_clock: MockClock, world: World, deadline: float, at: float) -> None:
    """A deadline is what it was; one that passed meanwhile ends the agent at once."""
    effective = effective_of(timeout=30.0)
    await leave(world, effective, Play(), deadline=deadline)
    async with reconciling(world, effective):
        await until(at + 1)
        assert world.times("C-c") == [at]
        assert (world.status().state, world.status().reason) == ("failed", "timed_out")


@pytest.mark.parametrize(
    ("policy", "told"), [("no", ("completed", "exited", 1)), ("always", ("failed", "timed_out", 1))]
)
async def test_ended_before_its_deadline_was_seen(
    autojump_clock: MockClock, world: World, policy: str, told: tuple[str, str, int]
) -> None:
    """Who has ended by itself while nobody was there has not timed out, though its deadline has passed, too.

    But where the policy has it restarted, its time is over.
    """
    effective = effective_of(timeout=30.0, restart=policy)
    await leave(world, effective, Play(ends_after=0), deadline=-5.0)
    async with reconciling(world, effective):
        await until(10)
        status = world.status()
        assert (status.state, status.reason, status.restarts) == told
        assert (status.exit is not None, len(world.times("launch"))) == (True, 1)
        assert world.sessions.noted[-1].deadline is None


@pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED])
async def test_ended(autojump_clock: MockClock, world: World, state: State) -> None:
    """Who has ended stays so, until the entry changes."""
    effective = effective_of()
    await leave(world, effective, Play(), state)
    async with reconciling(world, effective) as at_work:
        await until(100)
        assert (world.status().state, world.times("launch")) == (state, [])
        at_work.desk.want(effective_of(env={"RUN": "2"}))
        await until(110)
        # At the next look, which is the tick here.
        assert (world.status().state, world.times("close"), len(world.times("start"))) == ("running", [105], 1)


async def test_changed(autojump_clock: MockClock, world: World) -> None:
    """Whose entry changed meanwhile gets its C-c and the grace period that it had, and only then its successor."""
    await leave(world, effective_of(grace_period=7.0), Play(exits_on=None))
    async with reconciling(world, effective_of(grace_period=1.0)):
        world.sessions.script("a", Play())
        await until(8)
        assert (world.times("C-c"), world.times("end")) == ([0], [7])
        assert (world.status().state, world.status().restarts, world.status().attempt) == ("running", 0, 1)
        assert list(world.sessions.notes) != ["old"]


async def test_removed(autojump_clock: MockClock, world: World) -> None:
    """Who is not in the card any more is stopped, and forgotten."""
    await leave(world, effective_of("gone"), Play(interrupt_takes=2))
    async with reconciling(world, effective_of("a")):
        await until(3)
        assert (world.times("C-c", "gone"), world.times("end", "gone")) == ([0], [2])
        assert [note.status.name for note in world.sessions.notes.values()] == ["a"]
        assert [status.name for status in world.store.agents] == ["a"]


@pytest.mark.parametrize("cause", ["shutdown", "changed", "removed"])
@pytest.mark.parametrize("ends_after", [0.0, None], ids=["ended", "lives"])
async def test_stopping(autojump_clock: MockClock, world: World, cause: str, ends_after: float | None) -> None:
    """A stop on wish is brought to its end, whatever came of it meanwhile, and then it is a new run."""
    effective = effective_of(restart="no")
    await leave(world, effective, Play(ends_after=ends_after, interrupt_takes=1), State.STOPPING, cause)
    world.sessions.script("a", Play())
    async with reconciling(world, effective):
        await until(2)
        status = world.status()
        assert (status.state, status.attempt, status.restarts, status.exit) == ("running", 1, 0, None)
        assert "old" not in world.sessions.notes


async def test_stopping_for_its_timeout(autojump_clock: MockClock, world: World) -> None:
    """A stop for a timeout goes on as one, and its end is final."""
    effective = effective_of(restart="always", timeout=5.0)
    await leave(world, effective, Play(interrupt_takes=1), State.STOPPING, "timed_out", deadline=-1.0)
    async with reconciling(world, effective):
        await until(30)
        assert (world.status().state, world.status().reason) == ("failed", "timed_out")
        assert len(world.times("launch")) == 1


async def test_starting(autojump_clock: MockClock, world: World) -> None:
    """A launch that was under way goes on: it is the same attempt."""
    effective = effective_of()
    await leave(world, effective, Play(), State.STARTING)
    async with reconciling(world, effective):
        await until(1)
        assert world.times("start") == [0]
        assert (world.status().state, world.status().attempt, world.status().restarts) == ("running", 2, 1)


async def test_unreadable_entry(autojump_clock: MockClock, world: World) -> None:
    """Of whom only the digest is known, that goes on; after its end its policy is waited for, and then obeyed."""
    effective = effective_of(restart="always")
    await leave(world, effective, Play(ends_after=3))
    async with reconciling(world, (effective.agent, UNREADABLE)) as at_work:
        assert world.status().running
        await until(20)
        assert (world.status().running, world.times("launch")) == (False, [0])
        assert "waits until" in world.status().message
        world.sessions.script("a", Play())
        at_work.desk.want(effective)
        await until(31)
        assert (world.status().state, world.status().restarts) == ("running", 2)


async def test_unreadable_starting(autojump_clock: MockClock, world: World) -> None:
    """A launch that was under way for an entry that cannot be read goes on: it needs nothing more of it."""
    effective = effective_of(restart="always")
    await leave(world, effective, Play(ends_after=3), State.STARTING)
    await world.sessions.attempts["old", 2].launch()
    async with reconciling(world, (effective.agent, UNREADABLE)) as at_work:
        await until(1)
        assert (world.status().state, world.status().attempt) == ("running", 2)
        await until(20)
        assert (world.status().running, len(world.times("launch"))) == (False, 1)
        at_work.desk.want(effective)
        await until(30)
        assert (world.status().attempt, len(world.times("launch"))) == (3, 2)


async def test_unreadable_and_not_started(autojump_clock: MockClock, world: World) -> None:
    """A launch of which nothing has come, for an entry that cannot be read, is begun anew when it can."""
    effective = effective_of()
    await leave(world, effective, Play(), State.STARTING)
    async with reconciling(world, (effective.agent, UNREADABLE)) as at_work:
        await until(1)
        assert (world.times("sweep"), world.times("start")) == ([0], [])
        assert (world.status().state, world.status().reason) == ("waiting", "recovering")
        await until(20)
        assert world.times("launch") == []
        at_work.desk.want(effective)
        await until(30)
        assert len(world.times("start")) == 1
        assert world.status().attempt == 3


async def test_unreadable_starting_is_noted(autojump_clock: MockClock, world: World) -> None:
    """That such a launch is given up is noted before it is swept: its end is ours, and no later agentd judges it."""
    effective = effective_of(restart="no")
    await leave(world, effective, Play(sweep_takes=2), State.STARTING)
    async with reconciling(world, (effective.agent, UNREADABLE)):
        await until(1)
        (note,) = world.sessions.notes.values()
        assert (note.status.state, note.status.reason) == ("waiting", "recovering")
        await until(3)
        assert (world.status().state, world.times("sweep")) == ("waiting", [0])


async def test_ended_by_a_bug(autojump_clock: MockClock, world: World) -> None:
    """Whose run a bug has ended has no deadline any more, which the next agentd could take for its end."""
    effective = effective_of(timeout=60.0)
    world.sessions.script("a", Play(bug="scripted"))
    async with reconciling(world, effective):
        await until(1)
        (note,) = world.sessions.notes.values()
        assert (note.status.state, note.status.reason, note.deadline) == ("failed", "bug", None)


async def test_unreadable_ended(autojump_clock: MockClock, world: World) -> None:
    """Who has ended is not launched again because the prompt file could not be read for a while."""
    effective = effective_of()
    await leave(world, effective, Play(), State.COMPLETED)
    async with reconciling(world, (effective.agent, UNREADABLE)) as at_work:
        await until(10)
        at_work.desk.want(effective)
        await until(30)
        assert (world.status().state, world.times("launch")) == ("completed", [])


async def test_what_is_remembered(autojump_clock: MockClock, world: World) -> None:
    """Each step is noted when it is taken, a launch before it, a sweep after it; nothing is after a clean stop."""
    effective = effective_of(restart="always", max_restarts=1, timeout=60.0)
    world.sessions.script("a", Play(start_after=1, ends_after=2, code=3))
    async with reconciling(world, effective):
        await until(20)
        noted = [(note.status.state, note.status.attempt, note.next_restart) for note in world.sessions.noted]
        assert noted == [
            ("starting", 1, None),
            ("running", 1, None),
            ("backoff", 1, 6),
            ("backoff", 1, 6),
            ("starting", 2, None),
            ("running", 2, None),
            ("failed", 2, None),
            ("failed", 2, None),
        ]
        assert [note.deadline for note in world.sessions.noted] == [60] * 6 + [None] * 2
        assert world.sessions.noted[-1].status.exit == Exit(how=How.CODE, code=3, at=EPOCH + 9, duration=2)
    assert world.sessions.notes == {}
