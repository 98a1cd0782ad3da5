"""One look at the world outside: the card once it is settled, the secrets, the prompt files."""

import errno
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE
from types import MappingProxyType
from typing import Final, TypeVar

import attrs
import trio

from agentd.card import Agent, Card, parse_card
from agentd.errors import CardError
from agentd.resolve import Blocked, EffectiveAgent, Unsupported, expand_path, resolve
from agentd.secrets import Secrets, read_regular, read_secrets
from agentd.settings import AgentUser, Settings

_T = TypeVar("_T")

_LARGE_CARD: Final = 1 << 16
_SETTLE: Final = 0.1
"""Seconds for which something must not change before it is believed: it may be being rewritten in place."""
_REREADS: Final = 5
_BLANK_REREADS: Final = 3
"""So often the same before a card is believed to be blank or missing: it may be about to be written anew."""
_MAX_CARD: Final = 4 * 1024 * 1024
_MAX_PROMPT: Final = 2 * 1024 * 1024
_PROMPT_READERS: Final = 8
_PROMPT_TIMEOUT: Final = 5.0
_KILL_TIMEOUT: Final = 1.0

# What it tests is only for the message: the agent user may replace the file between any two lines.
_PROMPT_SCRIPT: Final = """
[ -e "$1" ] || exit 71
[ -f "$1" ] || exit 72
[ -r "$1" ] || exit 73
exec head -c "$2" -- "$1"
"""
_PROMPT_EXITS: Final = {
    71: (errno.ENOENT, "there is no such file within its reach"),
    72: (errno.EINVAL, "it is not a regular file"),
    73: (errno.EACCES, "permission denied"),
}
_OF_THE_FILE: Final = frozenset({errno.EINVAL, errno.EFBIG, errno.EILSEQ})
"""The errors that nothing but a change of the file itself can cure."""

_Stat = tuple[int, ...]
_Wanted = Mapping[str, tuple[Agent, EffectiveAgent | Blocked | Unsupported]]


@attrs.frozen(kw_only=True)
class Inputs:
    """What one look found; what cannot be read now is as it was when it last could."""

    card: Card | None = attrs.field(repr=False)
    """The last good card; None until the first."""
    card_error: str | None
    """Why the card that is there now, or is not, is not the one in force; None when it is."""
    card_missing: bool
    """Whether that is because there is no card, or only a blank one."""
    secrets: Secrets
    wanted: _Wanted = attrs.field(repr=False)
    """By agent name, in the card's order."""
    warnings: tuple[str, ...]


@attrs.frozen(kw_only=True)
class _CardFile:
    """The card's file at one moment: its bytes, or the problem with it, or neither when there is none."""

    stat: _Stat = ()
    data: bytes | None = None
    problem: str | None = None

    @property
    def missing(self) -> str | None:
        """What is missing, when there is no card in it."""
        if self.problem is not None or (self.data and not self.data.isspace()):
            return None
        return "the card is missing" if self.data is None else "the card is blank"


@attrs.frozen(kw_only=True)
class _PromptFile:
    """What came of reading a prompt file, the stat it had then, and whether the same stat means the same outcome."""

    stat: _Stat | None
    lasting: bool
    text: str | None = None
    problem: str = ""


class InputReader:
    """Reads the inputs of one agentd, and remembers what was good."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._card_file: _CardFile | None = None
        self._card: Card | None = None
        self._parsed: tuple[bytes, Card | str] | None = None
        self._card_error: str | None = None
        self._card_missing = False
        self._secrets = Secrets()
        self._prompts: dict[str, _PromptFile] = {}
        self._basis: object = None
        self._wanted: _Wanted = MappingProxyType({})
        self._prompt_readers = trio.CapacityLimiter(_PROMPT_READERS)

    async def read(self) -> Inputs:
        """Look once. Whatever is wrong outside is in the result, never raised."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_at_card)
            nursery.start_soon(self._look_at_secrets)
        agents = () if self._card is None else self._card.agents
        await self._look_at_prompts(
            {self._path(agent.prompt_file) for agent in agents if agent.prompt_file is not None}
        )
        return Inputs(
            card=self._card,
            card_error=self._card_error,
            card_missing=self._card_missing,
            secrets=self._secrets,
            wanted=self._resolve_all(agents),
            warnings=(() if self._card is None else self._card.warnings) + self._secrets.warnings,
        )

    async def _look_at_card(self) -> None:
        path = self._settings.config
        found, settled = await _settle(
            partial(_read_card, path),
            self._card_file,
            rereads=lambda card: _BLANK_REREADS if card.missing else 1,
        )
        if not settled:
            self._card_error = f"the card keeps changing: it is taken once it stands still for {_SETTLE} s"
            self._card_missing = False
            return
        self._card_file = found
        self._card_error = found.problem or found.missing
        self._card_missing = found.missing is not None
        if found.data is not None and not self._card_missing:
            await self._take_card(found.data)

    async def _take_card(self, data: bytes) -> None:
        """Put the card in force unless it is invalid, and say why it is."""
        if self._parsed is None or self._parsed[0] != data:
            # A hostile megabyte keeps tomlkit busy for half a minute; nobody else shall wait for that, nor a stop.
            if len(data) > _LARGE_CARD:
                parsed = await trio.to_thread.run_sync(_parse, data, abandon_on_cancel=True)
            else:
                parsed = _parse(data)
            self._parsed = data, parsed
            if isinstance(parsed, Card):
                self._card = parsed
        self._card_error = self._parsed[1] if isinstance(self._parsed[1], str) else None

    async def _look_at_secrets(self) -> None:
        # What never settles is taken all the same: one entry that somebody keeps writing must not cost the others.
        self._secrets, _ = await _settle(
            lambda: read_secrets(self._settings.secret_dir, self._secrets),
            self._secrets,
        )

    async def _look_at_prompts(self, paths: set[str]) -> None:
        self._prompts = {path: known for path, known in self._prompts.items() if path in paths}
        async with trio.open_nursery() as nursery:
            for path in paths:
                nursery.start_soon(self._look_at_prompt, path)

    async def _look_at_prompt(self, path: str) -> None:
        known = self._prompts.get(path)
        found, settled = await _settle(partial(_stat_of, path), known.stat if known else None)
        if known and known.stat == found and known.lasting:
            return
        if settled:
            async with self._prompt_readers:
                self._prompts[path] = await self._read_prompt(path, found)
        elif known is None:
            self._prompts[path] = _PromptFile(stat=None, lasting=False, problem="it keeps changing")

    async def _read_prompt(self, path: str, found: _Stat | None) -> _PromptFile:
        try:
            if self._settings.switch_user:
                data = await _read_as(self._settings.agent_user, path, _MAX_PROMPT)
            else:
                data, _ = read_regular(path, _MAX_PROMPT)
            text = data.decode().strip()
        except UnicodeDecodeError as error:
            return _PromptFile(stat=found, lasting=bool(found), problem=f"it is not valid UTF-8 (byte {error.start})")
        except OSError as error:
            lasting = bool(found) and error.errno in _OF_THE_FILE
            gone = found == () and error.errno in {errno.ENOENT, errno.ENOTDIR}
            return _PromptFile(stat=found, lasting=lasting or gone, problem=str(error.strerror))
        return _PromptFile(stat=found, lasting=bool(found), text=text)

    def _path(self, path: str) -> str:
        return expand_path(path, home=self._settings.agent_user.home, base=str(self._settings.config.parent))

    def _prompt(self, agent: Agent) -> str | Blocked:
        if agent.prompt_file is None:
            return agent.prompt
        path = self._path(agent.prompt_file)
        file = self._prompts[path]
        if file.text is not None:
            return file.text
        user = self._settings.agent_user.name
        return Blocked(
            reason="prompt_file",
            message=f"the prompt file {path} of agent {agent.name} cannot be read as user {user} ({file.problem}):"
            " mend it, or correct prompt_file",
            paths=(path,),
        )

    def _resolve_all(self, agents: tuple[Agent, ...]) -> _Wanted:
        basis = agents, self._secrets.values, self._prompts.copy()
        if basis != self._basis:
            self._basis = basis
            self._wanted = MappingProxyType({agent.name: (agent, self._resolve(agent)) for agent in agents})
        return self._wanted

    def _resolve(self, agent: Agent) -> EffectiveAgent | Blocked | Unsupported:
        return resolve(
            agent,
            prompt=self._prompt(agent),
            secrets=self._secrets.values,
            home=self._settings.agent_user.home,
            card_dir=str(self._settings.config.parent),
            default_workdir=self._settings.default_workdir,
        )


async def _settle(read: Callable[[], _T], last: object, rereads: Callable[[_T], int] = lambda _: 1) -> tuple[_T, bool]:
    """Read until it is as it was last time, or the same at so many rereads; False: it never was, this is the newest."""
    seen = read()
    same = 0
    for _ in range(_REREADS):
        if seen == last:
            return seen, True
        await trio.sleep(_SETTLE)
        before, seen = seen, read()
        same = same + 1 if seen == before else 0
        if same == rereads(seen):
            return seen, True
    return seen, False


def _parse(data: bytes) -> Card | str:
    """Read a card; text is what is wrong with it."""
    try:
        return parse_card(data)
    except CardError as error:
        return str(error)


def _read_card(path: Path) -> _CardFile:
    try:
        data, found = read_regular(path, _MAX_CARD)
    except FileNotFoundError:
        return _CardFile()
    except OSError as error:
        return _CardFile(problem=f"the card cannot be read ({error.strerror})")
    return _CardFile(stat=_key(found), data=data)


def _stat_of(path: str) -> _Stat | None:
    """Return what changes when the file does; () when there is none, None when that cannot be told."""
    try:
        return _key(Path(path).stat())
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError:
        return None


def _key(found: os.stat_result) -> _Stat:
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_mode, found.st_uid)


async def _read_as(user: AgentUser, path: str, limit: int) -> bytes:
    """Read a file with the user's own credentials. OSError: it cannot be read, `strerror` says why."""
    data = bytearray()
    with trio.move_on_after(_PROMPT_TIMEOUT):
        process = await trio.lowlevel.open_process(
            ["/bin/sh", "-c", _PROMPT_SCRIPT, "sh", path, str(limit + 1)],
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=DEVNULL,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            cwd="/",
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
            raise OSError(*_PROMPT_EXITS.get(status, (errno.EIO, f"the reading ended with status {status}")))
        return bytes(data)
    raise OSError(errno.ETIMEDOUT, f"reading it took longer than {_PROMPT_TIMEOUT} s")
