"""What an agentd that is dead left behind and nobody takes over: sessions, processes of attempts, directories."""

import logging
from collections.abc import Container, Iterable
from functools import partial

import attrs
import trio

from agentd import session
from agentd.attempt_directory import AttemptDirectory
from agentd.attempt_state import World
from agentd.errors import TmuxUnknownError
from agentd.processes import Footprint, end_all

LIMIT = 30.0
"""Seconds for ending all of it: the bound of the shield, since half of it ended would be forgotten."""

_log = logging.getLogger("agentd.launch")


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
        async with trio.open_nursery() as nursery:
            for tag in await _tags(world, attempts, runs):
                _log.warning("ends what an earlier agentd's attempt %s left behind", tag)
                footprint = Footprint(tag=tag, launcher=None, launcher_ticks=None, shell=None, keep_shell=True)
                nursery.start_soon(partial(end_all, world.scanner, footprint))
        AttemptDirectory.remove_others(world.settings, world.instance, attempts, runs)
        return not unsure and not await _tags(world, attempts, runs)
    return False


async def _tags(world: World, attempts: Container[tuple[str, int]], runs: Container[str]) -> set[str]:
    """The other attempts of an earlier agentd of which something lives."""
    found = set()
    for process in (await world.scanner.scan()).processes.values():
        instance, _, attempt = (process.tag or "").partition("/")
        run, _, number = attempt.partition("/")
        known = run in runs or (number.isdecimal() and (run, int(number)) in attempts)
        if process.tag is not None and instance == world.instance and not known:
            found.add(process.tag)
    return found


async def _try_session(found: session.Found, world: World, unsure: list[session.Found]) -> None:
    try:
        await end_session(found, world)
    except TmuxUnknownError as error:
        _log.warning("nobody knows whether a session of an earlier agentd ended; agentd tries again: %s", error)
        unsure.append(found)


async def end_session(found: session.Found, world: World) -> None:
    """End a session of ours that no run of this agentd has, with what its attempt left.

    Raises:
        TmuxUnknownError: if nobody knows whether it ended; its processes did.
    """
    _log.warning("ends a session that an earlier agentd, or attempt, left behind (run %s)", found.run)
    place = found.place
    footprint = Footprint(
        tag=f"{world.instance}/?",  # its processes are known by the shell's session, or were ended by their tag
        launcher=None,
        launcher_ticks=None,
        shell=place.shell,
        shell_ticks=place.shell_ticks,
        sid=place.sid,
        keep_shell=True,
    )
    await end_all(world.scanner, footprint)
    await session.kill(world.tmux, place)
    await end_all(world.scanner, attrs.evolve(footprint, keep_shell=False))
