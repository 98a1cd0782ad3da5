"""From an agent, its prompt and the secrets to what is launched: the effective agent, or why there is none."""

import hashlib
import json
import os.path
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final

import attrs

from agentd.card.card import Agent, _frozen_mapping
from agentd.card.harness import HARNESSES, build_argv

_MAX_STRING: Final = 131_072
"""The kernel's limit (MAX_ARG_STRLEN) on one argument or one `NAME=value` with its NUL."""
_MAX_TOTAL: Final = 3 * 512 * 1024
"""What all of them together may have: the kernel takes 2 MiB by default, and the user's own variables come on top."""
_POINTER: Final = 8
"""What the kernel counts for each string besides its bytes."""


@attrs.frozen(kw_only=True)
class EffectiveAgent:
    """What one run supervises: an agent with everything from outside the card filled in.

    The workdir is absolute; a binary such as `./x` is left relative to it, as a shell started there has it.
    """

    agent: Agent = attrs.field(repr=lambda agent: repr(agent.name))
    argv: tuple[str, ...] = attrs.field(repr=False)
    env: Mapping[str, str] = attrs.field(converter=_frozen_mapping, repr=False)
    workdir: str
    digest: str


@attrs.frozen(kw_only=True)
class Blocked:
    """Why an agent cannot be launched now; it is launched when the cause is gone.

    `paths` are the files whose `stat` tells that the cause may be gone.
    """

    reason: str
    message: str
    paths: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Unsupported:
    """Why this agentd will never launch that agent."""

    message: str


@attrs.frozen(kw_only=True)
class _Piece:
    """One string that the kernel gets: the key it comes from, and what to do when it is too large."""

    reason: str
    key: str
    text: str
    advice: str

    @property
    def size(self) -> int:
        return len(self.text.encode()) + 1


def resolve(  # noqa: PLR0913 - everything that an effective agent depends on
    agent: Agent,
    *,
    prompt: str | Blocked,
    secrets: Mapping[str, str],
    home: str,
    card_dir: str,
    default_workdir: str,
) -> EffectiveAgent | Blocked | Unsupported:
    """Fill in what comes from outside the card; `prompt` is the text that the agent gets, or why it cannot be read."""
    if agent.type != "native":
        return Unsupported(
            message=f'agent {agent.name} has type = "{agent.type}", but this agentd runs native agents only:'
            f' set type = "native" or remove the key'
        )
    if isinstance(prompt, Blocked):
        return prompt
    paths = () if agent.prompt_file is None else (expand_path(agent.prompt_file, home=home, base=card_dir),)
    if "\0" in prompt:
        source = f"prompt file {paths[0]}" if paths else "prompt"
        return Blocked(
            reason="prompt_file",
            message=f"the {source} of agent {agent.name} has a NUL character, which no argument can hold: remove it",
            paths=paths,
        )
    env = {**secrets, **agent.env}
    binary = expand_home(agent.binary, home=home) if agent.binary else None
    argv = build_argv(HARNESSES[agent.harness], prompt, binary, agent.args)
    if blocked := _check_sizes(agent, argv, env, paths):
        return blocked
    return EffectiveAgent(
        agent=agent,
        argv=argv,
        env=env,
        workdir=expand_path(default_workdir if agent.workdir is None else agent.workdir, home=home, base=card_dir),
        digest=_digest(attrs.evolve(agent, prompt=prompt, env=env)),
    )


def expand_home(path: str, *, home: str) -> str:
    """Put the agent user's home in place of a leading `~`."""
    return home + path[1:] if path == "~" or path.startswith("~/") else path


def expand_path(path: str, *, home: str, base: str) -> str:
    """Return a path of the card absolute and normalised: `~` is the agent user's home, and others start at `base`."""
    absolute = os.path.normpath(PurePosixPath(base, expand_home(path, home=home)))
    # Two leading slashes mean something of their own to POSIX, and normpath keeps them.
    return "/" + absolute.lstrip("/")


def _check_sizes(
    agent: Agent, argv: tuple[str, ...], env: Mapping[str, str], prompt_paths: tuple[str, ...]
) -> Blocked | None:
    total = 0
    for piece in (*_arguments(agent, argv), *_variables(agent, env)):
        total += piece.size + _POINTER
        if piece.size > _MAX_STRING:
            return Blocked(
                reason=piece.reason,
                message=f"{piece.key} of agent {agent.name} makes {piece.size} bytes, but the kernel takes at most"
                f" {_MAX_STRING} in one piece: {piece.advice}",
                paths=prompt_paths if piece.reason == "prompt_too_large" else (),
            )
    if total > _MAX_TOTAL:
        return Blocked(
            reason="environment_too_large",
            message=f"prompt, args, env and secrets of agent {agent.name} make {total} bytes together, but at most"
            f" {_MAX_TOTAL} can be passed to a program: put the large ones in files that the prompt names",
            paths=prompt_paths,
        )
    return None


def _arguments(agent: Agent, argv: tuple[str, ...]) -> Iterator[_Piece]:
    advice = "put it in a file that the prompt names"
    first_of_prompt = 1 + len(agent.args)
    for index, text in enumerate(argv):
        if index >= first_of_prompt:
            key = "prompt" if agent.prompt_file is None else "prompt_file"
            yield _Piece(reason="prompt_too_large", key=key, text=text, advice=advice)
        else:
            key = f"args[{index - 1}]" if index else "binary"
            yield _Piece(reason="argument_too_large", key=key, text=text, advice=advice)


def _variables(agent: Agent, env: Mapping[str, str]) -> Iterator[_Piece]:
    advice = "put it in a file and the file's path in the variable"
    for name, value in env.items():
        key = f"env.{name}" if name in agent.env else f"secret {name}"
        yield _Piece(reason="variable_too_large", key=key, text=f"{name}={value}", advice=advice)


def _digest(agent: Agent) -> str:
    """Hash what differs from its default, so that a key which a later release adds changes nobody's digest."""
    values = {
        field.name: value
        for field in attrs.fields(type(agent))
        if (value := getattr(agent, field.name)) != _default(field)
    }
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), default=dict)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _default(field: "attrs.Attribute[object]") -> object:
    factory = getattr(field.default, "factory", None)
    return factory() if factory else field.default
