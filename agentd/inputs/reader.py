"""One look at the world outside: the card once it is settled, the secrets, the prompt files."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Final

import attrs
import trio

from agentd.card.card import Agent, Card
from agentd.errors import CardError, shortage_words, threads_as_processes
from agentd.inputs.card_file import CardFile, read_card_file
from agentd.inputs.parsing import parse
from agentd.inputs.prompts import PromptFile, PromptReader
from agentd.inputs.secrets import Secrets, read_secrets
from agentd.inputs.settle import REREADS, SETTLE, settle
from agentd.inputs.watch import QUIET, Watch
from agentd.resolve import Blocked, EffectiveAgent, Unsupported, expand_path, resolve
from agentd.settings import Settings

_BLANK_REREADS: Final = 3
"""So often the same before a card is believed to be blank or missing: it may be about to be written anew."""

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


class InputReader:
    """Reads the inputs of one agentd, and remembers what was good."""

    def __init__(self, settings: Settings, watch: Watch) -> None:
        self._settings = settings
        self._watch = watch
        self._card_file: CardFile | None = None
        self._card: Card | None = None
        self._parsed: tuple[bytes, Card | CardError] | None = None
        self._card_error: str | None = None
        self._card_missing = False
        self._secrets = Secrets()
        self._secrets_read = False
        """Whether anything is known of them yet."""
        self._prompt_reader = PromptReader(settings, watch)
        self._prompts: Mapping[str, PromptFile] = {}
        self._basis: object = None
        self._wanted: _Wanted = MappingProxyType({})

    async def read(self) -> Inputs:
        """Look once. Whatever is wrong outside is in the result, never raised."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_at_card)
            nursery.start_soon(self._look_at_secrets)
            # They settle side by side; whether they are still wanted only the card tells.
            nursery.start_soon(self._look_at_prompts, self._prompts)
        agents = () if self._card is None else self._card.agents
        prompt_files = {self._path(agent.prompt_file) for agent in agents if agent.prompt_file is not None}
        self._follow(prompt_files)
        await self._look_at_prompts(dict.fromkeys(prompt_files - self._prompts.keys()))
        self._prompts = {path: self._prompts[path] for path in prompt_files}
        return Inputs(
            card=self._card,
            card_error=self._card_error,
            card_missing=self._card_missing,
            secrets=self._secrets,
            wanted=self._resolve_all(agents),
            warnings=(() if self._parsed is None else self._parsed[1].warnings)
            + self._secrets.warnings
            + self._watch.warnings,
        )

    async def _look_at_card(self) -> None:
        path = self._settings.config
        if not self._watch.is_quiet(str(path)):
            if self._watch.is_restless(str(path)):
                self._call_restless()
            return
        found, settled = await settle(
            partial(read_card_file, path),
            self._card_file,
            rereads=lambda card: _BLANK_REREADS if card.missing else 1,
        )
        if found != self._card_file and not self._watch.is_quiet(str(path)):
            return
        if not settled:
            self._call_restless()
            return
        self._card_file = found
        self._card_error = found.problem or found.missing
        self._card_missing = found.missing is not None
        if found.data is not None and not self._card_missing:
            await self._take_card(found.data)

    def _call_restless(self) -> None:
        """Leave the card as it was until it stands still, and say so."""
        self._card_error = f"the card keeps changing: it is taken once it stands still for {QUIET} s"
        self._card_missing = False

    async def _take_card(self, data: bytes) -> None:
        """Put the card in force unless it is invalid, and say why it is."""
        if self._parsed is None or self._parsed[0] != data:
            try:
                with threads_as_processes():
                    parsed = await parse(data)
            except OSError as error:
                self._card_error = f"the card cannot be read ({shortage_words(error)})"
                return
            self._parsed = data, parsed
            if isinstance(parsed, Card):
                self._card = parsed
        self._card_error = str(self._parsed[1]) if isinstance(self._parsed[1], CardError) else None

    async def _look_at_secrets(self) -> None:
        directory, last = self._settings.secret_dir, self._secrets
        try:
            before, seen = last, read_secrets(directory, last)
            for _ in range(REREADS):
                if not seen.changed(before) - self._restless_secrets(seen):
                    break
                await trio.sleep(SETTLE)
                before, seen = seen, read_secrets(directory, last)
        except OSError as error:
            warning = f"secrets directory {directory} cannot be read ({shortage_words(error)})"
            self._secrets = Secrets(last.values, (warning,))
            return
        self._secrets_read = True
        # One entry that somebody keeps writing costs neither its own last good value nor the others.
        self._secrets = seen.keeping(seen.changed(before) | self._restless_secrets(seen), last)

    def _restless_secrets(self, seen: Secrets) -> set[str]:
        """The names about which there are events right now, among those that changed since the last look."""
        directory, changed = self._settings.secret_dir, seen.changed(self._secrets)
        if not self._watch.is_quiet(str(directory)):
            return changed
        return {name for name in changed if not self._watch.is_quiet(str(directory / name))}

    async def _look_at_prompts(self, files: Mapping[str, PromptFile | None]) -> None:
        self._prompts = {**self._prompts, **await self._prompt_reader.look(files)}

    def _follow(self, prompt_files: Iterable[str]) -> None:
        directory = self._settings.secret_dir
        links: list[str] = []
        with suppress(OSError), os.scandir(directory) as entries:
            links += (entry.path for entry in entries if entry.is_symlink())
        self._watch.follow((str(self._settings.config), *links, *prompt_files), str(directory))

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
        basis = agents, self._secrets.values, self._secrets_read, self._prompts
        if basis != self._basis:
            self._basis = basis
            self._wanted = MappingProxyType({agent.name: (agent, self._resolve(agent)) for agent in agents})
        return self._wanted

    def _resolve(self, agent: Agent) -> EffectiveAgent | Blocked | Unsupported:
        if not self._secrets_read:
            # What is launched without them is not what the card wants, and what runs with them would be stopped.
            return Blocked(
                reason="secrets", message=f"{self._secrets.warnings[0]}: agent {agent.name} waits until it can"
            )
        return resolve(
            agent,
            prompt=self._prompt(agent),
            secrets=self._secrets.values,
            home=self._settings.agent_user.home,
            card_dir=str(self._settings.config.parent),
            default_workdir=self._settings.default_workdir,
        )
