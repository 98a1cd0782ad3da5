"""What agentd's API answers, as lines for a terminal: never wider than 80 cells, with nothing that it would obey."""

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from agentd.wording import escape

WIDTH = 80
_GAP = "  "
_NAME_ROOM = 20
"""So many cells are the names' in a table, and more where the messages leave them."""
_SHORT_COLUMN = 10
_KEY_ROOM = 20
_DIGEST_ROOM = 13
"""A digest is only compared by eye; a key as long as `next_restart_at` leaves no room for all of it."""
_CARET_ROOM = 20
"""So many cells of a line of the card are shown after its caret."""
_ORDER = (
    *("name", "state", "reason", "message", "error", "since", "running", "wanted", "pid", "attempt", "restarts"),
    *("exit", "next_restart_at", "started_at", "deadline_at", "harness", "type", "session", "digest"),
)
"""What an operator asks first comes first; what this does not know comes last."""
_TIMES = frozenset({"since", "next_restart_at", "started_at", "deadline_at"})
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))
_LONGEST_SPAN = 9_999_999
"""Of days: more than there are in Python's calendar, and only a broken clock tells of more."""


def table(agents: Sequence[Mapping[str, Any]], now: float) -> list[str]:
    """Show all agents, one a line; `now` is in Unix seconds."""
    if not agents:
        return ["agentd has no agents."]
    names = ["NAME", *(_field(agent, "name") for agent in agents)]
    states = _column("STATE", [_field(agent, "state") for agent in agents])
    ages = _column("SINCE", [_age_since(agent.get("since"), now) for agent in agents])
    restarts = _column("RESTARTS", [_field(agent, "restarts") for agent in agents], right=True)
    messages = ["MESSAGE", *(_field(agent, "message") or _field(agent, "reason") for agent in agents)]
    room = WIDTH - sum(cells(column[0]) for column in (states, ages, restarts)) - 4 * len(_GAP)
    longest = max(map(cells, names))
    name_room = min(longest, max(_NAME_ROOM, room - max(map(cells, messages))))
    lines = []
    for name, *short, message in zip(names, states, ages, restarts, messages, strict=True):
        first = _padded(shorten_middle(name, name_room), name_room)
        lines.append(_GAP.join((first, *short, shorten(message, room - name_room))).rstrip())
    return lines


def details(agent: Mapping[str, Any], now: float) -> list[str]:
    """Show everything of one agent as `key  value`; what says nothing is left out."""
    known = {key: agent[key] for key in (*(key for key in _ORDER if key in agent), *agent)}
    if known.get("error") == known.get("message"):
        known.pop("error", None)
    texts = {shorten(escape(key), _KEY_ROOM): _value(key, value, now) for key, value in known.items()}
    texts = {key: text for key, text in texts.items() if text}
    indent = max(map(cells, texts), default=0) + len(_GAP)
    return [line for key, text in texts.items() for line in _wrapped_lines(text, _padded(key, indent), " " * indent)]


def notes(health: Mapping[str, Any], *, agents: int) -> list[str]:
    """Tell what is to be known of agentd itself: that it stops, what is wrong with the card, its warnings."""
    paragraphs = []
    if health.get("state") == "stopping":
        paragraphs.append(["agentd is stopping."])
    if error := health.get("card_error"):
        kept = ", the last good one stays in force" if agents else ""
        heading = f"The card {_field(health, 'card')} cannot be used{kept}:"
        paragraphs.append([*_wrapped_lines(heading), *_card_error(_plain(error))])
    warnings = health.get("warnings")
    if isinstance(warnings, list) and warnings:
        paragraphs.append([line for one in warnings for line in _wrapped_lines(f"warning: {_plain(one)}", "", "  ")])
    return [line for number, lines in enumerate(paragraphs) for line in ([""] if number else []) + lines]


def valid_card(path: str, names: Sequence[str]) -> str:
    """Tell in one line that a card is valid, and which agents it has."""
    agents = f"{len(names)} agent{'' if len(names) == 1 else 's'} ({', '.join(names)})" if names else "no agents"
    return shorten(f"{shorten_middle(escape(path), WIDTH // 2)} is valid: {escape(agents)}", WIDTH)


def encoded(text: str, encoding: str) -> bytes:
    """Encode the text for a terminal that may lack some of its characters."""
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        return text.replace("…", "~").encode(encoding, "backslashreplace")


def encodable(value: Any, encoding: str) -> Any:
    """Escape what this encoding does not have in all texts of a JSON value: before the widths are reckoned."""
    if isinstance(value, str):
        return encoded(value, encoding).decode(encoding)
    if isinstance(value, list):
        return [encodable(item, encoding) for item in value]
    if isinstance(value, dict):
        return {encodable(key, encoding): encodable(item, encoding) for key, item in value.items()}
    return value


def cells(text: str) -> int:
    """Count the cells of a terminal that the text takes."""
    return len(text) if text.isascii() else sum(map(_cells_of, text))


def shorten(text: str, width: int) -> str:
    """Cut the text's end off where it is wider than that."""
    if _fitting(text, width) == len(text):
        return text
    return text[: _fitting(text, width - 1)].rstrip() + "…"


def shorten_middle(text: str, width: int) -> str:
    """Cut out of the text's middle where it is wider than that: replicas differ in their ends."""
    if _fitting(text, width) == len(text):
        return text
    start = _fitting_from_the_end(text, (width - 1) // 3)
    return text[: _fitting(text, width - 1 - cells(text[start:]))] + "…" + text[start:]


def _column(header: str, values: Sequence[str], *, right: bool = False) -> list[str]:
    """The header and the values, all of one width."""
    shown = [shorten(text, _SHORT_COLUMN) for text in (header, *values)]
    width = max(map(cells, shown))
    return [" " * (width - cells(text)) + text if right else _padded(text, width) for text in shown]


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cells(text))


def _field(value: Mapping[str, Any], key: str) -> str:
    return escape(_plain(value.get(key)))


def _value(key: str, value: Any, now: float) -> str:
    if key in _TIMES and isinstance(value, str):
        return _time(value, now)
    if key == "exit" and isinstance(value, dict):
        return _exit(value, now)
    return shorten(_plain(value), _DIGEST_ROOM) if key == "digest" else _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else json.dumps(value)


def _exit(ended: Mapping[str, Any], now: float) -> str:
    words = {
        "code": f"exited with code {_plain(ended.get('code'))}",
        "signal": f"was ended by {_plain(ended.get('signal'))}",
        "killed": "was killed",
        "never_started": "never started",
    }
    how = _plain(ended.get("how"))
    text = words.get(how, how)
    duration = ended.get("duration_seconds")
    if isinstance(duration, int | float):
        text += f" after {duration:.3g}s" if 0 < duration < _UNITS[-2][0] else f" after {_span(duration)}"
    if wish := ended.get("wish"):
        text += f", as agentd asked it to ({_plain(wish)})"
    return f"{text}, {_time(_plain(ended.get('at')), now)}"


def _time(text: str, now: float) -> str:
    seconds = _seconds(text)
    if seconds is None:
        return text
    return f"{text} (in {_span(seconds - now)})" if seconds > now else f"{text} ({_span(now - seconds)} ago)"


def _age_since(text: Any, now: float) -> str:
    seconds = _seconds(text) if isinstance(text, str) else None
    return "?" if seconds is None else _span(max(0, now - seconds))


def _seconds(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None


def _span(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds >= size:
            count = seconds // size
            # Not of a count beyond: an integer can be too large to be formatted.
            return f"{count:.0f}{unit}" if count <= _LONGEST_SPAN else f"more than {_LONGEST_SPAN}{unit}"
    return "0s"


def _card_error(text: str) -> Iterator[str]:
    """The card's mistakes, each from a line of its own; a line of the card and the caret below it stay together."""
    lines = text.split("\n")
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if _is_caret(below):
            yield from _excerpt(line, below.index("^"))
        elif not _is_caret(line):
            yield from _wrapped(escape(line), "  ", "    ")


def _is_caret(line: str) -> bool:
    return line.strip(" ") == "^"


def _excerpt(line: str, caret: int) -> Iterator[str]:
    """Show a line with its caret, of which the place is counted in cells."""
    line = _padded(line, caret)
    start = _fitting(line, caret)
    before, after = escape(line[:start]), escape(line[start:])
    indent = before[: len(before) - len(before.lstrip(" "))]
    room = WIDTH - len(_GAP) - _CARET_ROOM
    if cells(before) > room:
        rest = before[_fitting_from_the_end(before, room - len(indent) - 1) :]
        before = indent[: WIDTH // 2] + "…" + rest
    yield _GAP + shorten(before + after, WIDTH - len(_GAP))
    yield _GAP + " " * cells(before) + "^"


def _wrapped_lines(text: str, first: str = "", rest: str = "") -> Iterator[str]:
    """Wrap a text that may have several lines already."""
    for number, line in enumerate(text.split("\n")):
        yield from _wrapped(escape(line), rest if number else first, rest)


def _wrapped(text: str, first: str, rest: str) -> Iterator[str]:
    """Break a line between its words, or within one that has no place; `first` and `rest` go before what comes."""
    text = text.rstrip()
    start, prefix = 0, first
    while (end := _fitting(text, WIDTH - cells(prefix), start)) < len(text):
        cut = text.rfind(" ", start, end + 1)
        if cut < 0 or not text[start:cut].strip():
            cut = max(end, start + 1)
        yield prefix + text[start:cut].rstrip()
        start, prefix = cut, rest
        while text[start] == " ":
            start += 1
    yield prefix + text[start:]


def _fitting(text: str, width: int, start: int = 0) -> int:
    """The end of what has place in the width, from there on."""
    if text.isascii():
        return min(start + max(width, 0), len(text))
    for index in range(start, len(text)):
        width -= _cells_of(text[index])
        if width < 0:
            return index
    return len(text)


def _fitting_from_the_end(text: str, width: int) -> int:
    """The start of what has place in the width, at the text's end."""
    if text.isascii():
        return max(len(text) - max(width, 0), 0)
    start = len(text)
    while start and (width := width - _cells_of(text[start - 1])) >= 0:
        start -= 1
    # What combines stays with its letter.
    while start < len(text) and _cells_of(text[start]) == 0:
        start += 1
    return start


def _cells_of(char: str) -> int:
    if char.isascii():
        return 1
    if unicodedata.category(char) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
