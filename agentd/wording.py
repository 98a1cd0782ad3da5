"""How a message names what was found: quoted, shortened, safe for a terminal, and never a secret."""

from collections.abc import Iterable

_LONGEST = 60
_LONGEST_SECRET = 5
"""A number in a secret's place is shown up to this length: a port helps to see the mistake, a PIN must not leak."""
_INT64 = 1 << 63


def escape(text: str) -> str:
    """Make text safe for one line: whatever a terminal would not print as itself is escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def quoted(text: str) -> str:
    """Put the text in double quotes: at most 60 characters of it, and nothing that a terminal would obey."""
    shown = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return '"' + "".join(map(_visible, shown)) + '"'


def _visible(char: str) -> str:
    if char == '"':
        return '\\"'
    return char if char.isprintable() and char != "\\" else char.encode("unicode_escape").decode("ascii")


def nearest(word: str, options: Iterable[str]) -> str:
    """Suggest the option that was meant, to end a sentence with; say nothing where none is near."""
    from difflib import get_close_matches  # a few milliseconds, of which agentctl has not many

    found = get_close_matches(word[:_LONGEST].lower(), list(options), n=1)
    return f'; did you mean "{found[0]}"?' if found else ""


def scalar(value: object, *, secret: bool = False) -> str | None:
    """Spell a number or boolean as the card does; None is for whatever cannot or must not be shown."""
    if isinstance(value, bool):
        return "true" if value else "false"
    # Beyond 64 bits Python itself may refuse to spell an integer.
    if not (isinstance(value, float) or (isinstance(value, int) and -_INT64 <= value < _INT64)):
        return None
    text = str(value)
    return None if secret and len(text) > _LONGEST_SECRET else text


def described(value: object, *, secret: bool = False) -> str:
    """Name a value of the card by its type, and by itself where that is short and no secret."""
    shown = scalar(value, secret=secret)
    if isinstance(value, bool):
        return f"the boolean {shown}"
    if isinstance(value, int):
        return f"the integer {shown}" if shown else "an integer"
    if isinstance(value, float):
        return f"the float {shown}" if shown else "a float"
    if isinstance(value, str):
        return "a string" if secret else f"the string {quoted(value)}"
    if isinstance(value, list):
        return "an array"
    return "a table" if isinstance(value, dict) else "a date or time"
