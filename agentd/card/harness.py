"""Harnesses: how each AI coding agent is started with a prompt. A new one is one entry in `HARNESSES`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

import attrs


class Harness(Protocol):
    """A kind of agent program: what the card's `harness` names."""

    @property
    def name(self) -> str:
        """The name by which a card asks for it."""

    @property
    def binary(self) -> str:
        """The program, looked up in the agent's PATH."""

    def build_command(self, prompt: str) -> tuple[str, ...]:
        """Return the argv that starts it on this prompt; an empty prompt gives the bare binary."""


@attrs.frozen(kw_only=True)
class _Program:
    """A harness whose argv is the binary and a fixed form, in which `{}` stands for the prompt."""

    name: str
    binary: str
    plain: tuple[str, ...]
    dashed: tuple[str, ...]
    """The form for a prompt that begins with a dash, which the plain one would pass as an option."""

    def build_command(self, prompt: str) -> tuple[str, ...]:
        if not prompt:
            return (self.binary,)
        form = self.dashed if prompt.startswith("-") else self.plain
        return (self.binary, *(part.replace("{}", prompt) for part in form))


_PROGRAMS: tuple[Harness, ...] = (
    _Program(name="claude-code", binary="claude", plain=("-p", "{}"), dashed=("-p", "--", "{}")),
    _Program(name="opencode", binary="opencode", plain=("--prompt", "{}"), dashed=("--prompt={}",)),
    # `gemini -- -x` takes the prompt for an option all the same; only the option's own value is safe.
    _Program(name="gemini-cli", binary="gemini", plain=("{}",), dashed=("--prompt-interactive={}",)),
    _Program(name="custom", binary="agent", plain=("{}",), dashed=("--", "{}")),
)

HARNESSES: Final[Mapping[str, Harness]] = MappingProxyType({program.name: program for program in _PROGRAMS})


def build_argv(harness: Harness, prompt: str, binary: str | None, args: tuple[str, ...]) -> tuple[str, ...]:
    """Return the harness's argv with the card's `binary` in place of its own and the card's `args` right after it."""
    program, *rest = harness.build_command(prompt)
    return (binary or program, *args, *rest)
