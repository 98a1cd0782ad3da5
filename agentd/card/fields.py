"""The keys of an agent in the card: for each, what it may be and what is said when it is something else."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

import attrs

from agentd.card.duration import parse_duration
from agentd.card.harness import HARNESSES
from agentd.errors import Problem
from agentd.wording import described, nearest, quoted, scalar

_T = TypeVar("_T")

MOST_AGENTS = 1000
_LONGEST_NAME = 100
_INT64_MAX = (1 << 63) - 1
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = ("TMUX", "AGENTD_")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,60}")
_INTEGER = re.compile(r"[0-9]{1,18}")


@attrs.frozen
class Place:
    """Where a value stands in the card, and the list of what is wrong there."""

    path: str
    problems: list[Problem]

    def at(self, key: str) -> "Place":
        """Return the place of one of this table's keys."""
        return Place(f"{self.path}.{key if _BARE_KEY.fullmatch(key) else quoted(key)}", self.problems)

    def refuse(self, text: str, value: _T | None = None) -> _T | None:
        """Note what is wrong here, and give the None that stands for a refused value."""
        self.problems.append(Problem(self.path, text))
        return value


Check = Callable[[Place, object], object]
"""Turns a value of the card into that of an agent, or notes the problem and returns None."""


def session_fault(session: str) -> str | None:
    """Say why tmux could not hold a session of this name, or nothing."""
    if session == "_agentd":
        return "agentd itself uses that session"
    if session.startswith(("$", "=", "@", "%", "{", "-", "+")):
        return f"tmux takes a session that begins with {quoted(session[0])} for something else"
    if any(char in session for char in "#$\\"):
        return "tmux changes a #, a $ or a \\ in the name of a session"
    return None


def session_name(name: str) -> str:
    """Spell a name as tmux spells it for a session."""
    return name.replace(".", "_").replace(":", "_")


def _text(place: Place, value: object, *, secret: bool = False) -> str | None:
    if not isinstance(value, str):
        shown = scalar(value, secret=secret)
        advice = f'; write "{shown}"' if shown else "" if isinstance(value, list | dict) else "; put it in quotes"
        return place.refuse(f"expected a string, found {described(value, secret=secret)}{advice}")
    if "\0" in value:
        return place.refuse("a NUL character cannot be given to a program; remove it")
    return value


def _secret_text(place: Place, value: object) -> str | None:
    return _text(place, value, secret=True)


def _text_or_none(place: Place, value: object) -> str | None:
    return _text(place, value) or None


def _word(place: Place, value: object) -> str | None:
    if value == "":
        return place.refuse("the string is empty; write something, or leave the key out for its default")
    return _text(place, value)


def _name(place: Place, value: object) -> str | None:
    shown = scalar(value)
    # What would be refused in quotes too is not to be advised.
    refused = shown is not None and session_fault(shown) is not None
    text = place.refuse(f"expected a string, found {described(value)}") if refused else _word(place, value)
    if text is None:
        return None
    if len(text) > _LONGEST_NAME:
        return place.refuse(f"{len(text)} characters are more than the {_LONGEST_NAME} that a name may have")
    if not text.isprintable():
        return place.refuse(f"{quoted(text)} has a character that cannot be printed; remove it")
    if text != text.strip():
        return place.refuse(f"{quoted(text)} begins or ends with a space; remove it")
    if "/" in text or text in {".", ".."}:
        return place.refuse(f"{quoted(text)} cannot be part of a path; use neither a / nor . or .. alone")
    return text


def _session(place: Place, value: object) -> str | None:
    text = _name(place, value)
    if text is None:
        return None
    session = session_name(text)
    fault = session_fault(session)
    return place.refuse(f"{quoted(text)} cannot be used: {fault}; choose another one") if fault else session


def _choice(options: tuple[str, ...]) -> Check:
    def check(place: Place, value: object) -> str | None:
        if not isinstance(value, str):
            return place.refuse(f"expected one of {', '.join(map(quoted, options))}, found {described(value)}")
        if value not in options:
            return place.refuse(f"{quoted(value)} is not one of {', '.join(options)}{nearest(value, options)}")
        return value

    return check


def _harness(place: Place, value: object) -> object:
    return _choice(tuple(HARNESSES))(place, value)


def _integer(least: int, most: int) -> Check:
    def check(place: Place, value: object) -> int | None:
        if not isinstance(value, int) or isinstance(value, bool):
            text = f"{value:.0f}" if isinstance(value, float) and value.is_integer() else value
            meant = int(text) if isinstance(text, str) and _INTEGER.fullmatch(text) else -1
            advice = f"; write {meant}" if max(least, 0) <= meant <= most else ""
            return place.refuse(f"expected an integer, found {described(value)}{advice}")
        if value < least:
            return place.refuse(f"{described(value)} is too small; write {least} or more")
        if value > most:
            return place.refuse(f"{described(value)} is too large; write {most} or less")
        return value

    return check


def _seconds(place: Place, value: object) -> float | None:
    if not isinstance(value, str):
        return place.refuse(f"expected a duration in quotes, found {described(value)}; write {_meant_seconds(value)}")
    try:
        nanoseconds = parse_duration(value)
    except ValueError as error:
        return place.refuse(str(error))
    if nanoseconds <= 0:
        return place.refuse(f'{quoted(value)} is not longer than zero; write for example "30s" or leave the key out')
    return nanoseconds / 1e9


def _meant_seconds(value: object) -> str:
    """Spell a number as the duration that was meant by it, or give an example where it cannot be one."""
    text = f"{scalar(value)}s"
    try:
        nanoseconds = parse_duration(text)
    except ValueError:
        nanoseconds = 0
    return quoted(text if nanoseconds > 0 else "30s")


def _texts(place: Place, value: object) -> tuple[str | None, ...] | None:
    if not isinstance(value, list):
        found = described(value, secret=True)
        return place.refuse(f'expected an array of strings, found {found}; write it in brackets, as in ["one", "two"]')
    return tuple(
        _text(Place(f"{place.path}[{index}]", place.problems), item, secret=True) for index, item in enumerate(value)
    )


def _env(place: Place, value: object) -> dict[str, str | None] | None:
    if not isinstance(value, dict):
        found = described(value, secret=True)
        return place.refuse(f'expected a table of strings, found {found}; write it as in {{ NAME = "value" }}')
    for name in value:
        if not _VARIABLE.fullmatch(name):
            place.at(name).refuse("not the name of a variable; use letters, digits and _, and no digit first")
        elif name.startswith(_RESERVED):
            place.at(name).refuse("variables named TMUX… and AGENTD_… are reserved for tmux and agentd; rename it")
    return {name: _secret_text(place.at(name), item) for name, item in value.items()}


FIELDS: Mapping[str, Check] = MappingProxyType(
    {
        "name": _name,
        "harness": _harness,
        "replicas": _integer(1, MOST_AGENTS),
        "session": _session,
        "type": _choice(("native", "sandboxed")),
        "prompt": _secret_text,
        "prompt_file": _text_or_none,
        "workdir": _text_or_none,
        "restart": _choice(("no", "on-failure", "always")),
        "max_restarts": _integer(0, _INT64_MAX),
        "restart_delay_max": _seconds,
        "timeout": _seconds,
        "grace_period": _seconds,
        "env": _env,
        "binary": _word,
        "args": _texts,
        "memory": _text_or_none,
        "pid_limit": _integer(0, _INT64_MAX),
        "extra_packages": _texts,
    }
)
"""Every key that an agent may have."""
SANDBOX_FIELDS = ("memory", "pid_limit", "extra_packages")
