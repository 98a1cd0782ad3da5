"""What an agentd that is dead left behind: its sessions, the processes of its attempts, their directories."""

import logging
from functools import partial

import attrs
import trio

from agentd import session
from agentd.attempt_directory import AttemptDirectory
from agentd.errors import TmuxError, TmuxUnknownError
from agentd.processes import Footprint, Scanner, end_all
from agentd.settings import Settings
from agentd.tmux import Tmux

LIMIT = 30.0
"""Seconds for ending all of it: the bound of the shield, since half of it ended would be forgotten."""

_log = logging.getLogger("agentd.launch")


async def end_leftovers(settings: Settings, tmux: Tmux, scanner: Scanner, instance: str) -> bool:
    """End everything of an earlier agentd with this socket; return whether it is done, or has to be tried again.

    What carries its tag is ended even where its session, or the whole tmux server, is gone.
    """
    with trio.move_on_after(LIMIT, shield=True):
        try:
            found = await session.find_all(tmux, instance)
        except (TmuxError, TmuxUnknownError) as error:
            _log.warning("nobody knows what an earlier agentd left behind, so nothing is launched yet: %s", error)
            return False
        unsure: list[session.Found] = []
        async with trio.open_nursery() as nursery:
            for one in found:
                nursery.start_soon(_try_session, one, tmux, scanner, instance, unsure)
        async with trio.open_nursery() as nursery:
            for tag in await _tags(scanner, instance):
                _log.warning("ends what an earlier agentd's attempt %s left behind", tag)
                footprint = Footprint(tag=tag, launcher=None, launcher_ticks=None, shell=None, keep_shell=True)
                nursery.start_soon(partial(end_all, scanner, footprint))
        AttemptDirectory.remove_all(settings, instance)
        return not unsure and not await _tags(scanner, instance)
    return False


async def _tags(scanner: Scanner, instance: str) -> set[str]:
    """The attempts of an earlier agentd of which something lives."""
    processes = (await scanner.scan()).processes.values()
    return {process.tag for process in processes if process.tag is not None and process.tag.startswith(f"{instance}/")}


async def _try_session(
    found: session.Found, tmux: Tmux, scanner: Scanner, instance: str, unsure: list[session.Found]
) -> None:
    try:
        await end_session(found, tmux, scanner, instance)
    except TmuxUnknownError as error:
        _log.warning("nobody knows whether a session of an earlier agentd ended; agentd tries again: %s", error)
        unsure.append(found)


async def end_session(found: session.Found, tmux: Tmux, scanner: Scanner, instance: str) -> None:
    """End a session of ours that no run of this agentd has, with what its attempt left.

    Raises:
        TmuxUnknownError: if nobody knows whether it ended; its processes did.
    """
    record = found.record
    who = record.agent if record else "?"
    _log.warning("agent=%s: ends the session that an earlier agentd, or attempt, left behind", who)
    footprint = Footprint(
        tag=record.tag if record else f"{instance}/?",
        launcher=record.launcher if record else None,
        launcher_ticks=record.launcher_ticks if record else None,
        shell=found.place.shell,
        shell_ticks=found.place.shell_ticks,
        sid=found.place.sid,
        keep_shell=True,
    )
    await end_all(scanner, footprint)
    await session.kill(tmux, found.place)
    await end_all(scanner, attrs.evolve(footprint, keep_shell=False))
