"""The time of day jumps, and the machine sleeps: nothing is measured by either."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from agentd.api.app import time_to_text
from agentd.attempts.memory import Memory
from agentd.testing import Play
from tests.notes import note_of, status_of
from tests.settings import settings_below
from tests.unit.world import World, effective_of, until

DAY = 86_400.0
JUMPS = [lambda at: -at, lambda at: 400 * DAY * (-1) ** int(at), lambda _at: -1_800_000_000.0]
"""A clock that stands still, one that jumps to and fro at each second, and one that is set to 1970."""
ATTEMPT = dict.fromkeys(("place", "typed", "accounted", "launcher", "launcher_ticks", "harness"))


def jumping(clock: MockClock, jump: Callable[[float], float]) -> World:
    """A world whose time of day is somewhere else."""
    world = World(clock)
    right = world.around.wall
    world.sessions.wall = lambda: right() + jump(clock.current_time())
    world.around = attrs.evolve(world.around, wall=world.sessions.wall)
    return world


@pytest.mark.parametrize("jump", JUMPS, ids=["still", "to and fro", "1970"])
async def test_restarts_and_timeout(autojump_clock: MockClock, jump: Callable[[float], float]) -> None:
    """Backoff, the reset of its doubling, and the timeout are what they are by a right clock."""
    plays = [Play(ends_after=1, code=1), Play(ends_after=1, code=1), Play(ends_after=100, code=1), Play(ends_after=1)]
    effective = effective_of(restart="always", restart_delay_max=60.0, timeout=200.0)
    seen = []
    for world in (World(autojump_clock), jumping(autojump_clock, jump)):
        world.sessions.script("a", *plays)
        began = trio.current_time()
        await world.live(effective)
        seen.append([(round(at - began, 6), what) for at, what in world.seen()])
        ended = world.status()
        assert (ended.reason, ended.exit is not None) == ("timed_out", True)
    assert seen[0] == seen[1]
    assert len(seen[0]) > 10


async def test_deadline_is_told_by_the_clock_of_then(autojump_clock: MockClock) -> None:
    """What people are told of the future is right by the time of day at which it was said."""
    world = jumping(autojump_clock, lambda at: -1_700_000_000.0 if at < 5 else 0)
    world.sessions.script("a", Play(ends_after=10, code=1), Play())
    async with world.living(effective_of(restart="always", timeout=50.0)) as run:
        await until(11)
        status = world.status()
        assert status.next_restart_at == world.around.wall() + 2
        assert status.started_at is not None
        assert status.started_at < world.around.wall() - 1_000_000
        run.stop("removed")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1970-01-01T00:00:00.000Z"), (-1.5, "1969-12-31T23:59:58.500Z"), (2**33, "2242-03-16T12:56:32.000Z")],
)
def test_times_of_a_wrong_clock(seconds: float, text: str) -> None:
    """A clock at zero, before it or far ahead is told as what it says."""
    assert time_to_text(seconds) == text


async def test_sleep_counts_for_nothing(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the machine sleeps no time passes, for the agentd that lives and for the one that takes over from it."""
    settings = settings_below(tmp_path)
    settings.run_dir.mkdir(mode=0o711)
    awake = slept = 1000.0

    def read(clock: int) -> float:
        return {time.CLOCK_MONOTONIC: awake, time.CLOCK_BOOTTIME: awake + slept, time.CLOCK_REALTIME: -slept}[clock]

    monkeypatch.setattr(time, "clock_gettime", read)
    soon = trio.current_time() + 3600
    Memory(settings, "i").write(note_of(status_of(), run="r", deadline=soon, next_restart=soon), ATTEMPT)
    slept += 8 * 3600
    awake += 10
    await trio.sleep(500)  # the next agentd's clock has another origin
    note, _ = Memory(settings, "i").read().runs["a"]
    assert note.deadline == note.next_restart == pytest.approx(trio.current_time() + 3590)


async def test_later_note_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two notes of one agent the later counts, though the time of day says the opposite."""
    settings = settings_below(tmp_path)
    settings.run_dir.mkdir(mode=0o711)
    now = 1000.0
    monkeypatch.setattr(time, "clock_gettime", lambda _clock: now)
    notes = Memory(settings, "i")
    for run in ("b", "a"):
        notes.write(note_of(status_of(), run=run), ATTEMPT)
        now += 1
    os.utime(settings.run_dir / "i-a.json", (1, 1))
    found = Memory(settings, "i").read()
    assert found.runs["a"][0].run == "a"
    assert [path.name for path in settings.run_dir.iterdir()] == ["i-a.json"]
