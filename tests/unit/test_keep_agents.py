"""A clean end that keeps the agents: what the next agentd finds is what a crash would have left."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
from trio.testing import MockClock

from agentd.resolve import Blocked, EffectiveAgent
from agentd.testing import Play
from tests.unit.world import EPOCH, World, effective_of, reconciling, until


@pytest.fixture
def world(autojump_clock: MockClock) -> World:
    return World(autojump_clock)


@asynccontextmanager
async def kept(world: World, *entries: EffectiveAgent) -> AsyncIterator[None]:
    """The life of an agentd that ends with the block, and keeps its agents."""
    around, world.around = world.around, attrs.evolve(world.around, keeps_agents=lambda: True)
    try:
        async with reconciling(world, *entries, rests=False):
            yield
    finally:
        world.around = around


async def test_a_running_agent_stays(autojump_clock: MockClock, world: World) -> None:
    """What runs hears nothing of the end, and the next agentd has it with its pid, start and restarts."""
    effective = effective_of(restart="always")
    world.sessions.script("a", Play(ends_after=1, code=3), Play())
    async with kept(world, effective):
        await until(10)
        before = world.status()
    assert (world.times("C-c"), world.times("close"), world.sessions.alive["a"]) == ([], [], 1)
    await until(20)
    async with reconciling(world, effective):
        assert world.status() == before
        assert (world.status().restarts, world.status().started_at, len(world.times("start"))) == (1, EPOCH + 4, 2)


async def test_a_backoff_stays(autojump_clock: MockClock, world: World) -> None:
    """A restart comes when it would have come, or at once if that was while no agentd was there."""
    effective = effective_of(restart="always", restart_delay_max=10.0)
    world.sessions.script("a", Play(ends_after=0, code=3), Play(ends_after=0, code=3), Play())
    async with kept(world, effective):
        await until(1)
    async with kept(world, effective):
        await until(3)
        assert world.times("start") == [0, 3]
    await until(11)
    async with reconciling(world, effective):
        await until(11)
        assert world.times("start") == [0, 3, 11]
        assert world.status().restarts == 2


@pytest.mark.parametrize("code", [0, 3])
async def test_an_ended_agent_stays(autojump_clock: MockClock, world: World, code: int) -> None:
    """Who has ended keeps the session, and is not launched again."""
    effective = effective_of()
    world.sessions.script("a", Play(ends_after=1, code=code))
    async with kept(world, effective):
        await until(2)
        before = world.status()
    assert world.sessions.sessions == {"a"}
    async with reconciling(world, effective):
        await until(10)
        assert (world.status(), world.times("start")) == (before, [0])


async def test_a_stop_on_wish_comes_to_its_end(autojump_clock: MockClock, world: World) -> None:
    """Who is being stopped when agentd ends is stopped, in the grace period; the others stay."""
    world.sessions.script("gone", Play(exits_on=None))
    gone, stays = effective_of("gone", grace_period=7.0), effective_of("a")
    world.around, around = attrs.evolve(world.around, keeps_agents=lambda: True), world.around
    async with reconciling(world, gone, stays, rests=False) as at_work:
        at_work.desk.want(stays)
        await until(6)
        at_work.shut_down()
    assert (world.times("C-c", "gone"), world.times("end", "gone")) == ([5], [12])
    assert world.sessions.sessions == {"a"}
    assert [note.status.name for note in world.sessions.notes.values()] == ["a"]
    world.around = around
    async with reconciling(world, stays):
        assert [status.name for status in world.store.agents if status.running] == ["a"]
        assert world.times("start") == [0]


async def test_a_timeout_goes_on(autojump_clock: MockClock, world: World) -> None:
    """A timeout counts on while no agentd is there; who timed out as agentd ends is stopped all the same."""
    world.sessions.script("b", Play(exits_on=None))
    entries = effective_of("a", timeout=30.0), effective_of("b", timeout=10.0, grace_period=5.0)
    async with kept(world, *entries):
        await until(12)
    assert (world.times("end", "b"), world.times("C-c")) == ([15], [])
    await until(20)
    async with reconciling(world, *entries):
        await until(40)
        assert world.times("C-c") == [30]
        assert [status.reason for status in world.store.agents] == ["timed_out"] * 2
        assert len(world.times("start", "b")) == 1


async def test_a_launch_goes_on(autojump_clock: MockClock, world: World) -> None:
    """What is being launched when agentd ends comes up once, and the next agentd knows it."""
    effective = effective_of()
    world.sessions.script("a", Play(start_after=3))
    async with kept(world, effective):
        await until(1)
    async with reconciling(world, effective):
        await until(10)
        assert (world.status().state, len(world.times("start"))) == ("running", 1)
    assert world.most_alive("a") == 1


async def test_a_waiting_agent_waits_on(autojump_clock: MockClock, world: World) -> None:
    """Who waits for something outside has nothing to leave, and is launched by the next agentd when that is there."""
    blocked = Blocked(reason="workdir_missing", message="The workdir is missing.", paths=("/srv",))
    world.sessions.script("a", Play(blocked=blocked), Play())
    effective = effective_of()
    async with kept(world, effective):
        assert world.status().state == "waiting"
    async with kept(world, effective):
        await until(3)
        world.sessions.causes.clear()
        await until(6)
        assert (world.status().state, world.status().restarts) == ("running", 0)
    async with reconciling(world, effective):
        assert world.times("start") == [5]
