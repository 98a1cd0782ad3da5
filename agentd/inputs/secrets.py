"""Secrets: a directory of files read as environment variables; a bad entry never costs the others."""

import errno
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from agentd.card.card import _frozen_mapping
from agentd.errors import is_shortage
from agentd.inputs.regular_file import read_regular

_MAX_VARIABLE: Final = 131_072
"""The kernel's limit (MAX_ARG_STRLEN) on one `NAME=value` with its NUL."""
_MAX_ENTRIES: Final = 1_000
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_RESERVED: Final = ("TMUX", "AGENTD_")


@attrs.frozen
class Secrets:
    """What one look at the secrets directory gave: variables, and what is wrong there."""

    values: Mapping[str, str] = attrs.field(factory=dict, converter=_frozen_mapping, repr=False)
    warnings: tuple[str, ...] = ()

    def changed(self, last: "Secrets") -> set[str]:
        """The names that are new, gone, or have another value."""
        names = self.values.keys() | last.values.keys()
        return {name for name in names if self.values.get(name) != last.values.get(name)}

    def keeping(self, names: set[str], last: "Secrets") -> "Secrets":
        """The same, except that these names are as they were last."""
        if not names:
            return self
        values = {name: value for name, value in self.values.items() if name not in names}
        kept = {name: last.values[name] for name in names & last.values.keys()}
        return Secrets(dict(sorted((values | kept).items())), self.warnings)


def read_secrets(directory: Path, last: Secrets) -> Secrets:
    """Read the directory's entries; one that is there but cannot be used keeps its value from `last`.

    OSError: there is not enough of something to read them with, so that nothing is known of any.
    """
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not directory.is_symlink():
            return Secrets()
        if is_shortage(error):
            raise
        return _keep_all(directory, last, error)
    try:
        entries = os.listdir(folder)
        names = sorted(name for name in entries if not name.startswith("."))
        return _read_entries(directory, folder, names, last)
    except OSError as error:
        if is_shortage(error):
            raise
        return _keep_all(directory, last, error)
    finally:
        os.close(folder)


def _keep_all(directory: Path, last: Secrets, error: OSError) -> Secrets:
    kept = "the secrets read before stay in force" if last.values else "there are no secrets until then"
    warning = f"secrets directory {directory} cannot be read ({error.strerror}): mend it; {kept}"
    return Secrets(last.values, (warning,))


def _read_entries(directory: Path, folder: int, names: list[str], last: Secrets) -> Secrets:
    values: dict[str, str] = {}
    warnings: list[str] = []
    for name in names[:_MAX_ENTRIES]:
        if _is_directory(name, folder):
            continue
        if problem := _name_problem(name):
            warnings.append(f"secret {name!r} is left out: {problem}")
            continue
        try:
            values[name] = _read_value(name, folder)
        except OSError as error:
            if is_shortage(error):
                raise
            if _is_entry(name, folder):
                warnings.append(_entry_warning(name, error, values, last))
    if len(names) > _MAX_ENTRIES:
        warnings.append(
            f"secrets directory {directory} has {len(names)} entries: only the first {_MAX_ENTRIES} by name are read"
        )
    return Secrets(values, tuple(warnings))


def _entry_warning(name: str, error: OSError, values: dict[str, str], last: Secrets) -> str:
    """Put the entry's last good value, if it had one, into `values`, and say so."""
    if name not in last.values:
        return f"secret {name} is left out: {error.strerror}; mend or remove the file"
    values[name] = last.values[name]
    return f"secret {name} keeps its last good value: {error.strerror}; mend or remove the file"


def _is_directory(name: str, folder: int) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=folder).st_mode)
    except OSError:
        return False


def _is_entry(name: str, folder: int) -> bool:
    """Tell a dangling symlink, which is an entry, from a file that went between the listing and the reading."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return True


def _name_problem(name: str) -> str | None:
    if not _VARIABLE.fullmatch(name):
        return "its name is no variable name (letters, digits and _, not beginning with a digit); rename the file"
    if name.startswith(_RESERVED):
        return "TMUX* and AGENTD_* are reserved for tmux and agentd; rename the file"
    return None


def _read_value(name: str, folder: int) -> str:
    """Return an entry's value. OSError: there is none, and `strerror` says why without quoting any of it."""
    data, _ = read_regular(name, _MAX_VARIABLE, folder=folder)
    value = _without_trailing_newlines(data)
    limit = _MAX_VARIABLE - len(name) - len("=\0")
    if len(value) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit} bytes, the kernel's limit for this variable")
    if b"\0" in value:
        raise OSError(errno.EILSEQ, "it has a NUL byte, which no variable can hold")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        # The original error holds the value itself: it must not travel as the cause.
        raise OSError(errno.EILSEQ, f"it is not valid UTF-8 (byte {error.start})") from None


def _without_trailing_newlines(data: bytes) -> bytes:
    end = len(data)
    while data[end - 1 : end] == b"\n":
        end -= 1
        if data[end - 1 : end] == b"\r":
            end -= 1
    return data[:end]
