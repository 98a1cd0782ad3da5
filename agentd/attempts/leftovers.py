"""What an agentd that is dead left behind and nobody takes over: sessions, processes of attempts, directories."""

import logging
import os
from collections.abc import Collection, Container, Iterable
from functools import partial

import attrs
import trio

from agentd.attempts import session
from agentd.attempts.directory import AttemptDirectory
from agentd.attempts.state import World
from agentd.errors import TmuxUnknownError
from agentd.processes.cgroup import Cgroup
from agentd.processes.ending import Footprint, end_all
from agentd.processes.scan import Process

LIMIT = 60.0
"""Seconds for ending all of it: the bound of the shield, since half of it ended would be forgotten.

Each step has a bound of its own: 10 s for the processes, and for a session twice that and two answers of tmux.
"""
_ROUNDS = 2
_SHOWN = 3
_LONGEST_RUN = 100
"""Characters of what a session says its run is; it is the agents' word."""

_log = logging.getLogger("agentd.attempts.launch")


async def end_leftovers(
    world: World, sessions: Iterable[session.Found], attempts: Container[tuple[str, int]], runs: Container[str]
) -> bool:
    """End these sessions, and all other attempts' processes; return whether it is done, or has to be tried again.

    What carries the tag of an attempt, but not of these or of these runs, is ended even where its session, or the
    whole tmux server, is gone.
    """
    with trio.move_on_after(LIMIT, shield=True):
        unsure: list[session.Found] = []
        async with trio.open_nursery() as nursery:
            for one in sessions:
                nursery.start_soon(_try_session, one, world, unsure)
        cgroups = list(world.cgroups.others(attempts, runs))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_processes, world, attempts, runs)
            for cgroup in cgroups:
                nursery.start_soon(_end_cgroup, world, cgroup)
        names = os.listdir(world.settings.run_dir)
        AttemptDirectory.remove_others(world.settings, world.instance, names, attempts, runs)
        return not unsure
    _log.error("what an earlier agentd left behind does not end within %g s; agentd tries again", LIMIT)
    return False


async def _end_processes(world: World, attempts: Container[tuple[str, int]], runs: Container[str]) -> None:
    """End the processes of other attempts that are there now, and a few times those that are there then.

    Not for ever: any process may carry such a tag, and who has new ones come again and again must not keep all agents
    waiting. What was killed and cannot end does nothing any more, either.
    """
    for _ in range(_ROUNDS):
        found = await _left(world, attempts, runs)
        if not found:
            return
        shown = ", ".join(sorted({process.tag or "" for process in found})[:_SHOWN])
        _log.warning("ends %d processes that attempts of an earlier agentd left behind (%s)", len(found), shown)
        tree = frozenset(process.key for process in found)
        await end_all(world.scanner, attrs.evolve(_nobodys(world), tree=tree))
    left = await _left(world, attempts, runs)
    if left:
        _log.error(
            "%d processes with the tag of an earlier agentd's attempt are left alone: more keep coming", len(left)
        )


async def _end_cgroup(world: World, cgroup: Cgroup) -> None:
    ended = await end_all(world.scanner, attrs.evolve(_nobodys(world), cgroup=cgroup))
    if ended.left:
        _log.error("%d processes in %s are left alone: they cannot be ended", ended.left, cgroup.path)
    cgroup.remove()


def _nobodys(world: World) -> Footprint:
    """The footprint of no attempt, to which what is found is added."""
    return Footprint(tag=f"{world.instance}/?", launcher=None, launcher_ticks=None, shell=None, keep_shell=True)


async def _left(world: World, attempts: Container[tuple[str, int]], runs: Container[str]) -> list[Process]:
    """What lives of other attempts of an earlier agentd, by their tags."""
    found = []
    for process in (await world.scanner.scan()).processes.values():
        instance, _, attempt = (process.tag or "").partition("/")
        run, _, number = attempt.partition("/")
        known = run in runs or (number.isdecimal() and (run, int(number)) in attempts)
        if instance == world.instance and not known:
            found.append(process)
    return found


async def _try_session(found: session.Found, world: World, unsure: list[session.Found]) -> None:
    try:
        await end_session(found, world)
    except TmuxUnknownError as error:
        _log.warning("nobody knows whether a session of an earlier agentd ended; agentd tries again: %s", error)
        unsure.append(found)


def end_sessions_later(world: World, runs: Collection[str]) -> None:
    """Have whatever sessions have the marks of these runs, which are over, end as soon as tmux answers again."""
    world.unended.update(runs)
    world.tmux.later.add("sessions", partial(_end_unended, world))


async def _end_unended(world: World) -> None:
    """End the sessions of runs that are over.

    Raises:
        TmuxUnknownError: if nobody knows whether there are any.
    """
    runs = frozenset(world.unended)
    for one in await session.find_all(world.tmux, world.instance):
        if one.run in runs:
            await end_session(one, world)
    world.unended.difference_update(runs)


async def end_session(found: session.Found, world: World) -> None:
    """End a session of ours that no run of this agentd has, with what its attempt left.

    Raises:
        TmuxUnknownError: if nobody knows whether it ended; its processes did.
    """
    _log.warning(
        "ends a session that an earlier agentd, or attempt, left behind (run %s)", (found.run or "")[:_LONGEST_RUN]
    )
    place = found.place
    # Its processes are known by the shell's session, or were ended by their tag.
    footprint = attrs.evolve(_nobodys(world), shell=place.shell, shell_ticks=place.shell_ticks, sid=place.sid)
    await end_all(world.scanner, footprint)
    await session.kill(world.tmux, place)
    await end_all(world.scanner, attrs.evolve(footprint, keep_shell=False))
