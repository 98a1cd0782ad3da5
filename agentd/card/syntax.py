"""From the card's bytes to plain TOML values, or to where and why they are not TOML.

An error shows its line, and the line may hold a secret: only what is known to be harmless is shown of it.
"""

import re
import unicodedata
from bisect import bisect_left

import tomlkit
from tomlkit.exceptions import (
    EmptyKeyError,
    EmptyTableNameError,
    InvalidControlChar,
    InvalidDateError,
    InvalidDateTimeError,
    InvalidNumberError,
    InvalidNumberOrDateError,
    InvalidTimeError,
    ParseError,
    TOMLKitError,
    UnexpectedCharError,
)

from agentd.errors import CardError, Problem
from agentd.wording import quoted

LARGEST_CARD = 4 << 20
_BOM = b"\xef\xbb\xbf"
_BEFORE, _AFTER = 60, 40
"""How much of a long line is shown on either side of the caret."""
_MOST_STATEMENTS = 2000
"""A repeated key is not looked for in a longer card: that takes about ten times as long as to read the card."""
_UNFINISHED = "the file ends inside a string, an array, a table or a line that is not finished"
_POSITION = re.compile(r" at line \d+ col \d+$")
_REPEATED = re.compile(r"Key \"(.*)\" already exists\.|Redefinition of an existing table", re.DOTALL)
_INVALID_NAME = re.compile(r"Invalid (?:key|table name) \"")
_LINE_END = re.compile(r"\r?(?:\n|\Z)")
_JSON = re.compile(r"\s*\[?\s*\{")
_TOKEN = re.compile(
    r'#[^\n]*|"""(?:[^"\\]++|\\.?|"(?!""))*+(?:"{3,5}|\Z)|"(?:[^"\\\n]++|\\[^\n]?)*+"?'
    r"|'''(?:[^']++|'(?!''))*+(?:'{3,5}|\Z)|'[^'\n]*+'?|[\[\]{}\n]",
    re.DOTALL,
)
"""Comments, strings, brackets and line breaks: what tells where a statement ends."""
_PROBE = "agentd-probe"
_HEADER = re.compile(r"\s*\[{1,2}[ \t]*[\w.\-]*[ \t]*\]{0,2}(?=\s*(?:#|$))")
_HARMLESS = re.compile(
    r"\s*(?:name|harness|session|type|replicas|workdir|prompt_file|binary|restart|max_restarts|restart_delay_max"
    r"|timeout|grace_period|memory|pid_limit)\s*=\s*(?:\"[^\"=#]*\"?|'[^'=#]*'?|[^\s\"'=#\[\]{},;]*)"
)
_KEY = re.compile(r"\s*[\w.\-]+\s*=(?!=|\s*$)")
_NOT_A_VALUE = (InvalidNumberError, InvalidNumberOrDateError, InvalidDateError, InvalidDateTimeError, InvalidTimeError)
_LEADING_ZERO = re.compile(r"[+\-]?0[0-9_]*(?![^\s#,\]}])")
_COVERED = re.compile(r"[^\s\"'\[\]{}=,]")


def parse_toml(data: bytes) -> dict[str, object]:
    """Read TOML into plain values, or raise CardError with the one mistake that stops the reading."""
    text = _decoded(data)
    try:
        return _read(text)
    except TOMLKitError as error:
        offset = _offset(text, error)
        if offset is None:
            raise CardError((Problem("card", _reason(error)),)) from None
        if offset > len(text):
            raise _syntax_error(text, len(text.rstrip()), _UNFINISHED) from None
        raise _syntax_error(text, offset, _reason_at(text, offset, error)) from None
    except RecursionError:
        raise CardError((Problem("card", "nested too deeply to be read; use fewer tables inside tables"),)) from None
    except MemoryError:
        raise CardError(
            (Problem("card", "too large for this machine's memory; move prompts to a prompt_file"),)
        ) from None


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


def _read(text: str) -> dict[str, object]:
    # tomlkit gives an error at the end of its text no column; so the lines' ends are never the end of the text.
    return tomlkit.parse(text + "\n\n").unwrap()


def _reason(error: TOMLKitError) -> str:
    if (found := _REPEATED.match(str(error))) and found[1]:
        return f"key {quoted(found[1])} already exists"
    words = _POSITION.sub("", str(error)).removesuffix(".")
    words = re.sub(r"character: '\\[nr]'", "end of the line", words)
    return words if words.startswith("TOML") else words[:1].lower() + words[1:]


def _reason_at(text: str, offset: int, error: TOMLKitError) -> str:
    if isinstance(error, InvalidControlChar):
        if _LINE_END.match(text, offset):
            return "the string is not closed at the end of its line; add the quote, or write it between triple quotes"
        return f"the control character 0x{ord(text[offset]):02x} cannot stand there; remove it"
    if isinstance(error, EmptyKeyError | EmptyTableNameError) or _INVALID_NAME.match(str(error)):
        return _not_a_name(text, offset, error)
    reason = _reason(error)
    if isinstance(error, InvalidNumberError) and _LEADING_ZERO.match(text, offset):
        return f"{reason}; write it without a zero in front, or in quotes if it is text"
    # tomlkit takes a word with the first letter of true or false for one of the two.
    before = text[:offset].rstrip("truefals").rstrip(" \t")
    is_word = isinstance(error, UnexpectedCharError) and before.endswith("=")
    return f"{reason}; a value that is text needs quotes" if is_word or isinstance(error, _NOT_A_VALUE) else reason


def _not_a_name(text: str, offset: int, error: TOMLKitError) -> str:
    """Say what stands where tomlkit found no key, without its text: that may be of a prompt closed too early."""
    if (json := _JSON.match(text)) and offset < json.end():
        return "this looks like JSON; write the card in TOML, as in [agent]"
    in_header = text[text.rfind("\n", 0, offset) + 1 : offset].lstrip().startswith("[")
    what, where = ("the name of a table", "between the brackets") if in_header else ("a key", "before the =")
    if not isinstance(error, EmptyKeyError | EmptyTableNameError):
        return f"this is not {what}; quote it, or write one word {where}"
    char = text[offset : offset + 1]
    if not char or char in "=.]\r\n":
        return _reason(error)
    if not char.isprintable():
        return f"the character U+{ord(char):04X} cannot begin {what}; remove it"
    return f"this is not {what}; quote it, or write # before a comment"


def _offset(text: str, error: TOMLKitError) -> int | None:
    """Find where the mistake is; behind the text is where something that was begun does not end."""
    if _REPEATED.match(str(error)):
        return _repeated(text)
    if not isinstance(error, ParseError):
        return None
    # tomlkit counts columns from 0, and takes more characters than the newline for the end of a line.
    offset = sum(map(len, (text + "\n\n").splitlines(keepends=True)[: error.line - 1])) + error.col
    if isinstance(error, _NOT_A_VALUE):
        # It is at the value's end by then.
        start = max(text.rfind(char, 0, offset) for char in "=[{,\n") + 1
        return offset - len(text[start:offset].lstrip())
    if isinstance(error, InvalidControlChar) and text[:offset].endswith("\r"):
        # It has looked for the newline behind it.
        return offset - 1
    return offset


def _repeated(text: str) -> int | None:
    """Find the second of two equal keys or tables: tomlkit notices it late and does not say where."""
    starts = _statements(text)
    if len(starts) > _MOST_STATEMENTS:
        return None
    ends = [*starts[1:], len(text)]
    index = bisect_left(ends, True, key=lambda end: _repeats(text[:end]))
    if index == len(ends):
        return None
    start, end = starts[index], ends[index]
    # It may be in one line of an inline table, rather than the whole statement.
    lines = [start, *(start + found.end() for found in re.finditer("\n", text[start:end]))]
    line = bisect_left(lines, True, key=lambda end: _repeats(text[:end]))
    if line < len(lines) and lines[line] < end:
        start = lines[line - 1]
    return start + len(text[start:end]) - len(text[start:end].lstrip())


def _repeats(text: str) -> bool:
    try:
        _read(text)
    except TOMLKitError as error:
        return _REPEATED.match(str(error)) is not None
    except RecursionError:
        pass
    return False


def _statements(text: str) -> list[int]:
    """Where each line begins that is not inside a string, an array or a table of several lines."""
    starts, depth = [0], 0
    for token in _TOKEN.finditer(text):
        if token[0] in {"[", "{"}:
            depth += 1
        elif token[0] in {"]", "}"}:
            depth -= 1
        elif token[0] == "\n" and depth == 0:
            starts.append(token.end())
    return starts


def _syntax_error(text: str, offset: int, reason: str) -> CardError:
    start = text.rfind("\n", 0, offset) + 1
    column = offset - start
    line = _shown(text[start:].split("\n", 1)[0].removesuffix("\r"), text[:start])
    cut = max(0, column - _BEFORE)
    shown = ("…" if cut else "") + line[cut : column + _AFTER] + ("…" if line[column + _AFTER :] else "")
    shown = "".join(map(_one_cell, shown))
    caret = " " * (column - cut + bool(cut)) + "^"
    where = f"line {text.count(chr(10), 0, offset) + 1}, column {column + 1}"
    return CardError((Problem(where, f"{reason}\n    {shown}\n    {caret}"),))


def _shown(line: str, before: str) -> str:
    """Cover whatever may be a secret, character by character, so that the caret still stands where it should."""
    shown = 0
    try:
        # Only between two statements can there be one more; and its table is that of the line.
        document = _read(f"{before}{_PROBE} = 0")
    except (TOMLKitError, RecursionError):
        pass
    else:
        agents = document.get("agents")
        tables = [document.get("agent"), *(agents if isinstance(agents, list) else [agents])]
        in_agent = any(isinstance(table, dict) and _PROBE in table for table in tables)
        found = _HEADER.match(line) or (in_agent and _HARMLESS.match(line)) or _KEY.match(line)
        shown = found.end() if found else 0
    return line[:shown] + _COVERED.sub("*", line[shown:])


def _one_cell(char: str) -> str:
    """Replace what a terminal shows wider or narrower than other characters: the caret is below its column."""
    if not char.isprintable():
        return " "
    wide = unicodedata.east_asian_width(char) in {"W", "F"}
    return "*" if wide or unicodedata.category(char) in {"Mn", "Me"} else char
