"""tmux's control mode as bytes: how a command is written on one line, and how replies are framed. Pure."""

import re
from collections.abc import Iterator

import attrs

from agentd.errors import AgentdError

_MAX_LINE = 1 << 20
_MAX_REPLY = 16 << 20
_LINE_OVERHEAD = 64  # What a line costs in memory besides its bytes: sixteen million empty lines are a bomb too.

_COMMAND_NAME = re.compile(r"[a-z]+(-[a-z]+)*")
_PLAIN_OR_NOT = re.compile(r"(?P<plain>[^'\x00-\x1f\x7f]+)|(?P<special>['\x01-\x1f\x7f]+)")
_HASHES_TO_DOUBLE = re.compile(r"#+(?![#\[])")
_BEGIN = re.compile(rb"%begin ([0-9]+ [0-9]+ ([0-9]+))")


class ProtocolError(AgentdError):
    """What came on the control connection is not tmux's control mode, or is too long to be taken in."""


@attrs.frozen
class Reply:
    """The answer to one command, or (not `ours`) to one that tmux ran on its own account for this client."""

    ok: bool
    lines: tuple[str, ...] = attrs.field(repr=False)
    """What was printed, without line ends; the words of the error if not `ok`."""
    ours: bool


def quote(argument: str) -> str:
    """Write any text without NUL as one argument, on one line, that tmux reads back byte for byte.

    Single quotes take everything but themselves and the newline; these, and the other control characters for the sake
    of whoever reads the line, become octal escapes in double quotes. The message of a refusal never has the text.
    """
    if "\0" in argument:
        message = "an argument of a tmux command contains NUL, which no command can carry"
        raise ValueError(message)
    pieces = _PLAIN_OR_NOT.finditer(argument)
    return "".join(f"'{piece[0]}'" if piece["plain"] else f'"{_escape(piece[0])}"' for piece in pieces) or "''"


def _escape(special: str) -> str:
    return "".join("'" if character == "'" else f"\\{ord(character):03o}" for character in special)


def escape_format(text: str) -> str:
    """Write text for an argument that tmux expands as a format (`new-session -c`, `-s` and `-n`, `respawn-pane -c`).

    Every `#` is doubled, except those right before a `[`, which tmux leaves alone. `%` means nothing in these places.
    """
    return _HASHES_TO_DOUBLE.sub(lambda hashes: hashes[0] * 2, text)


def command_line(*args: str) -> bytes:
    """Write a command as the one line that is sent; what is no command by its looks gets no reply, and is refused.

    A command that runs others (`if-shell`, `source-file`) has several replies: never send one.
    """
    if not args or not _COMMAND_NAME.fullmatch(args[0]):
        message = "a tmux command begins with its full name"
        raise ValueError(message)
    line = " ".join((args[0], *map(quote, args[1:])))
    try:
        return line.encode() + b"\n"
    except UnicodeEncodeError:
        message = f"an argument of tmux {args[0]} contains half of a surrogate pair, which is not text"
        raise ValueError(message) from None


@attrs.define
class _Frame:
    stamp: bytes
    ours: bool
    lines: list[str] = attrs.field(factory=list, repr=False)
    size: int = 0


class FrameParser:
    """Makes replies of the bytes that tmux sends; trusts nothing in them, since the agents own the server."""

    def __init__(self) -> None:
        self._unfinished = bytearray()
        self._frame: _Frame | None = None
        self._exit: str | None = None

    @property
    def exit(self) -> str | None:
        """Tmux's reason for ending the connection (often empty), or None while it has not said `%exit`."""
        return self._exit

    def feed(self, data: bytes) -> list[Reply]:
        """Take the next bytes, however they are cut, and return the replies that they complete; raise ProtocolError."""
        return [reply for line in self._lines(data) if (reply := self._take(line)) is not None]

    def _lines(self, data: bytes) -> Iterator[bytes]:
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole = bytes(self._unfinished) + line
            self._unfinished.clear()
            _refuse_long_line(len(whole))
            yield whole
        self._unfinished += rest
        _refuse_long_line(len(self._unfinished))

    def _take(self, line: bytes) -> Reply | None:
        if self._exit is not None:
            return None
        if self._frame is None:
            self._take_outside(line)
            return None
        return self._take_inside(self._frame, line)

    def _take_outside(self, line: bytes) -> None:
        word, _, rest = line.partition(b" ")
        if word == b"%exit":
            self._exit = rest.decode(errors="replace")
        elif word == b"%begin":
            begin = _BEGIN.fullmatch(line)
            if begin is None:
                message = "tmux sent a %begin that cannot be read"
                raise ProtocolError(message)
            self._frame = _Frame(begin[1], ours=begin[2][-1] in b"13579")
        elif word in (b"%end", b"%error"):
            message = f"tmux sent {word.decode()} without a %begin"
            raise ProtocolError(message)

    def _take_inside(self, frame: _Frame, line: bytes) -> Reply | None:
        if line in (b"%end " + frame.stamp, b"%error " + frame.stamp):
            self._frame = None
            return Reply(line.startswith(b"%end"), tuple(frame.lines), frame.ours)
        frame.size += len(line) + _LINE_OVERHEAD
        if frame.size > _MAX_REPLY:
            message = f"tmux sent a reply of more than {_MAX_REPLY >> 20} MiB"
            raise ProtocolError(message)
        frame.lines.append(line.decode(errors="replace"))
        return None


def _refuse_long_line(length: int) -> None:
    if length > _MAX_LINE:
        message = f"tmux sent a line of more than {_MAX_LINE >> 20} MiB"
        raise ProtocolError(message)
