"""From the card's bytes to plain TOML values, or to where and why they are not TOML.

An error shows its line, and the line may hold a secret: only what is known to be harmless is shown of it.
"""

import re
import tomllib

import tomlkit
from tomlkit.exceptions import (
    InvalidControlChar,
    InvalidDateError,
    InvalidDateTimeError,
    InvalidNumberError,
    InvalidNumberOrDateError,
    InvalidTimeError,
    ParseError,
    TOMLKitError,
    UnexpectedCharError,
    UnexpectedEofError,
)

from agentd.errors import CardError, Problem

LARGEST_CARD = 4 << 20
_BOM = b"\xef\xbb\xbf"
_BEFORE, _AFTER = 60, 40
"""How much of a long line is shown on either side of the caret."""
_UNFINISHED = "the file ends inside a string, an array, a table or a line that is not finished"
_POSITION = re.compile(r" at line \d+ col \d+$")
_REPEATED = re.compile(r"(?:Cannot|Duplicate) .*\(at line (\d+), column \d+\)", re.DOTALL)
_HEADER = re.compile(r"^[ \t]*\[{1,2}([\w.\- ]*)\]{0,2}\s*(?:#.*)?$", re.MULTILINE)
_HARMLESS = re.compile(
    r"\s*(?:name|harness|session|type|replicas|workdir|prompt_file|binary|restart|max_restarts|restart_delay_max"
    r"|timeout|grace_period|memory|pid_limit)\s*=\s*(?:\"[^\"=]*\"?|'[^'=]*'?)?[^\s\"'=]*\s*(?:#[^=]*)?"
)
_KEY = re.compile(r"\s*[\w.\-]+\s*=(?!=|\s*$)")
_NOT_A_VALUE = (InvalidNumberError, InvalidNumberOrDateError, InvalidDateError, InvalidDateTimeError, InvalidTimeError)
_COVERED = re.compile(r"[^\s\"'\[\]{}=,]")


def parse_toml(data: bytes) -> dict[str, object]:
    """Read TOML into plain values, or raise CardError with the one mistake that stops the reading."""
    text = _decoded(data)
    try:
        return tomlkit.parse(text).unwrap()
    except ParseError as error:
        # A NUL, which no card has, is how tomlkit spells the end of the file.
        at_end = isinstance(error, UnexpectedCharError) and r"\x00" in str(error)
        if at_end or isinstance(error, UnexpectedEofError):
            raise _syntax_error(text, len(text.rstrip()), _UNFINISHED) from None
        offset = _repeated(text) if "already exists" in str(error) else _offset(text, error)
        raise _syntax_error(text, offset, _reason(error) + _advice(text, offset, error)) from None
    except TOMLKitError as error:
        # That a key of a table is there twice comes without a position.
        raise _syntax_error(text, _repeated(text), _reason(error)) from None
    except RecursionError:
        raise CardError((Problem("card", "nested too deeply to be read; use fewer tables inside tables"),)) from None


def _decoded(data: bytes) -> str:
    if len(data) > LARGEST_CARD:
        found = (
            f"{len(data)} bytes are more than the {LARGEST_CARD} that a card may have; move prompts to a prompt_file"
        )
        raise CardError((Problem("card", found),))
    try:
        text = data.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode()
        rest = error.object[error.start :].decode(errors="replace")
        found = f"byte 0x{error.object[error.start]:02x} is not UTF-8; save the card as UTF-8"
        raise _syntax_error(before + rest, len(before), found) from None
    if "\0" in text:
        raise _syntax_error(text, text.index("\0"), "a NUL character cannot stand in a card; remove it")
    return text


def _reason(error: Exception) -> str:
    if isinstance(error, InvalidControlChar) and "\\u000a" in str(error):
        return "the string is not closed at the end of its line; add the quote, or write it between triple quotes"
    words = _POSITION.sub("", str(error))
    if words.startswith("Invalid key"):
        # What follows may be the text of a prompt that was closed too early.
        return "this is not a key; quote it, or write one word before the ="
    words = words.removesuffix(".").replace(r"character: '\n'", "end of the line")
    return words if words.startswith("TOML") else words[:1].lower() + words[1:]


def _advice(text: str, offset: int | None, error: ParseError) -> str:
    after_equals = isinstance(error, UnexpectedCharError) and text[:offset].rstrip(" \t").endswith("=")
    return "; a value that is text needs quotes" if after_equals or isinstance(error, _NOT_A_VALUE) else ""


def _offset(text: str, error: ParseError) -> int:
    # tomlkit counts columns from 0, and takes more characters than the newline for the end of a line.
    return sum(map(len, text.splitlines(keepends=True)[: error.line - 1])) + error.col


def _repeated(text: str) -> int | None:
    """Find the second of two equal keys or tables: tomlkit notices it late and does not say where."""
    try:
        tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        if found := _REPEATED.fullmatch(str(error)):
            lines = text.split("\n")[: int(found[1])]
            return len("\n".join(lines)) - len(lines[-1].lstrip())
    return None


def _syntax_error(text: str, offset: int | None, reason: str) -> CardError:
    if offset is None:
        return CardError((Problem("card", reason),))
    start = text.rfind("\n", 0, offset) + 1
    column = offset - start
    line = _shown(text[start:].split("\n", 1)[0].removesuffix("\r"), text[:start])
    cut = max(0, column - _BEFORE)
    shown = ("…" if cut else "") + line[cut : column + _AFTER] + ("…" if line[column + _AFTER :] else "")
    caret = " " * (column - cut + bool(cut)) + "^"
    where = f"line {text.count(chr(10), 0, offset) + 1}, column {column + 1}"
    return CardError((Problem(where, f"{reason}\n    {shown}\n    {caret}"),))


def _shown(line: str, before: str) -> str:
    """Cover whatever may be a secret, character by character, so that the caret still stands where it should."""
    shown = 0
    in_string = before.count('"""') % 2 or before.count("'''") % 2
    if not in_string:
        in_agent = _HEADER.findall(before)[-1:] in (["agent"], ["agents"])
        harmless = _HEADER.fullmatch(line) or (in_agent and _HARMLESS.fullmatch(line))
        found = harmless or _KEY.match(line)
        shown = found.end() if found else 0
    line = line[:shown] + _COVERED.sub("*", line[shown:])
    return "".join(char if char.isprintable() else " " for char in line)
