"""Durations as Go spells them (`1h30m`, `2.5s`), read exactly as Go's `time.ParseDuration` reads them."""

import re

from agentd.wording import nearest, quoted

_UNITS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,  # the micro sign
    "\u03bcs": 1_000,  # the Greek letter mu
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_LIMIT = 1 << 63
_LIMIT_DIGITS = 19
_TERM = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]*)")
_EXAMPLE = 'write for example "30s" or "1h30m"'


def parse_duration(text: str) -> int:
    """Read a Go duration into nanoseconds, or raise a ValueError that quotes the text and says what is wrong."""
    unsigned = text[1:] if text.startswith(("-", "+")) else text
    negative = text.startswith("-")
    if unsigned == "0":
        return 0
    if not unsigned:
        raise _invalid(text, "has no number in it")
    total = position = 0
    while position < len(unsigned):
        term = _TERM.match(unsigned, position)
        if term is None or not (term[1] or term[2]):
            raise _invalid(text, "has something else where a number is expected")
        total += _term(text, *term.groups(default=""))
        position = term.end()
    # int64 reaches one further below zero than above it.
    if total > _LIMIT - (not negative):
        raise _too_long(text)
    return -total if negative else total


def _term(text: str, whole: str, fraction: str, unit: str) -> int:
    if not unit:
        raise _invalid(text, "has a number without a unit")
    if unit not in _UNITS:
        raise _invalid(text, f"has the unknown unit {quoted(unit)}{nearest(unit, ('ms', 'us', 'ns'))}")
    digits = whole.lstrip("0")
    if len(digits) > _LIMIT_DIGITS:
        raise _too_long(text)
    return int(digits or "0") * _UNITS[unit] + _fraction(fraction, _UNITS[unit])


def _fraction(digits: str, unit: int) -> int:
    """Take the digits behind the point in float64, and none beyond what an int64 holds, as Go does."""
    value, scale = 0, 1.0
    for digit in digits:
        grown = value * 10 + int(digit)
        if grown > _LIMIT:
            break
        value, scale = grown, scale * 10
    return int(value * (unit / scale))


def _invalid(text: str, fault: str) -> ValueError:
    return ValueError(f"the duration {quoted(text)} {fault}: {_EXAMPLE}")


def _too_long(text: str) -> ValueError:
    return ValueError(f"the duration {quoted(text)} is longer than the 292 years that a duration can have")
