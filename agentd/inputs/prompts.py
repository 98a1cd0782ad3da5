"""Prompt files: read when their stat changed, and with the agent user's own credentials."""

import errno
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Final

import attrs
import trio

from agentd.errors import is_shortage, threads_as_processes
from agentd.inputs.regular_file import Stat, read_regular, stat_key
from agentd.inputs.settle import settle
from agentd.inputs.watch import Watch
from agentd.process_context import UMASK, agents_path
from agentd.settings import AgentUser, Settings

_MAX_PROMPT: Final = 2 * 1024 * 1024
_READERS: Final = 8
_TIMEOUT: Final = 5.0
_KILL_TIMEOUT: Final = 1.0
_LOOK_TIMEOUT: Final = 10.0
"""For all files together: who owns some of them can have each reading take its whole time."""

# What it tests is only for the message: the agent user may replace the file between any two lines.
_SCRIPT: Final = """
[ -e "$1" ] || exit 71
[ -f "$1" ] || exit 72
[ -r "$1" ] || exit 73
exec head -c "$2" -- "$1"
"""
_EXITS: Final = {
    71: (errno.ENOENT, "there is no such file within its reach"),
    72: (errno.EINVAL, "it is not a regular file"),
    73: (errno.EACCES, "permission denied"),
}
_OF_THE_FILE: Final = frozenset({errno.EINVAL, errno.EFBIG, errno.EILSEQ})
"""The errors that nothing but a change of the file itself can cure."""


@attrs.frozen(kw_only=True)
class PromptFile:
    """What came of reading a prompt file, the stat it had then, and whether the same stat means the same outcome."""

    stat: Stat | None
    lasting: bool
    text: str | None = attrs.field(default=None, repr=False)
    problem: str = ""


class PromptReader:
    """Reads the prompt files of one agentd."""

    def __init__(self, settings: Settings, watch: Watch) -> None:
        self._settings = settings
        self._watch = watch
        self._readers = trio.CapacityLimiter(_READERS)

    async def look(self, files: Mapping[str, PromptFile | None]) -> dict[str, PromptFile]:
        """Look at these files, of which that is known; what is wrong with one is in what was found, never raised."""
        looked: dict[str, PromptFile] = {}
        with trio.move_on_after(_LOOK_TIMEOUT):
            async with trio.open_nursery() as nursery:
                for path, known in files.items():
                    if known is not None and known.lasting and known.stat == _stat_of(path):
                        looked[path] = known
                    else:
                        nursery.start_soon(self._look_at, path, known, looked)
        late = PromptFile(stat=None, lasting=False, problem="reading it took too long")
        return {path: looked.get(path, late) for path in files}

    async def _look_at(self, path: str, known: PromptFile | None, looked: dict[str, PromptFile]) -> None:
        found, settled = None, False
        if self._watch.is_quiet(path):
            found, settled = await settle(partial(_stat_of, path), known.stat if known else None)
        if known and known.stat == found and known.lasting:
            looked[path] = known
        elif settled and self._watch.is_quiet(path):
            async with self._readers:
                looked[path] = await self._read(path, found, known)
        else:
            looked[path] = known or PromptFile(stat=None, lasting=False, problem="it keeps changing")

    async def _read(self, path: str, found: Stat | None, known: PromptFile | None) -> PromptFile:
        try:
            if self._settings.switch_user:
                data = await _read_as(self._settings.agent_user, path, _MAX_PROMPT)
            else:
                data, _ = read_regular(path, _MAX_PROMPT)
            text = data.decode().strip()
        except UnicodeDecodeError as error:
            return PromptFile(stat=found, lasting=bool(found), problem=f"it is not valid UTF-8 (byte {error.start})")
        except OSError as error:
            if is_shortage(error) and known is not None and known.text is not None:
                return attrs.evolve(known, lasting=False)  # nothing was found out about the file
            lasting = bool(found) and error.errno in _OF_THE_FILE
            gone = found == () and error.errno in {errno.ENOENT, errno.ENOTDIR}
            return PromptFile(stat=found, lasting=lasting or gone, problem=str(error.strerror))
        return PromptFile(stat=found, lasting=bool(found), text=text)


def _stat_of(path: str) -> Stat | None:
    """Return what changes when the file does; () when there is none, None when that cannot be told."""
    try:
        return stat_key(Path(path).stat())
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError:
        return None


async def _read_as(user: AgentUser, path: str, limit: int) -> bytes:
    """Read a file with the user's own credentials. OSError: it cannot be read, `strerror` says why."""
    data = bytearray()
    with trio.move_on_after(_TIMEOUT):
        with threads_as_processes():
            process = await trio.lowlevel.open_process(
                ["/bin/sh", "-c", _SCRIPT, "sh", path, str(limit + 1)],
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=DEVNULL,
                env={"PATH": agents_path(os.environ)},
                cwd="/",
                umask=UMASK,
                user=user.uid,
                group=user.gid,
                extra_groups=user.groups,
            )
        assert process.stdout is not None, "PIPE was asked for"
        try:
            async for chunk in process.stdout:
                data += chunk
                # The process belongs to the agent user, who may make it say anything: `head` is no limit for us.
                if len(data) > limit:
                    raise OSError(errno.EFBIG, f"it is larger than {limit} bytes")
            status = await process.wait()
        finally:
            process.kill()
            with trio.move_on_after(_KILL_TIMEOUT, shield=True):
                await process.wait()
            await process.stdout.aclose()
        if status:
            raise OSError(*_EXITS.get(status, (errno.EIO, f"the reading ended with status {status}")))
        return bytes(data)
    raise OSError(errno.ETIMEDOUT, f"reading it took longer than {_TIMEOUT} s")
