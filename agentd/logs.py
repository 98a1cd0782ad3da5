"""The log: one event a line on stderr, which nobody's text can forge and whose trouble never becomes the daemon's."""

import logging
import os
import select
import sys
import time
from collections.abc import Iterator
from types import TracebackType

from agentd.wording import escape

_LEVELS = {"WARNING": "WARN", "CRITICAL": "FATAL"}
_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}
_DEBUG_PRIORITY = 7
_JOURNAL_PIECE = 8192
"""Characters; the journal cuts a line after 48 KiB, and obeys a priority where the rest begins: there is ours."""
_QUIET = ("hypercorn", "hypercorn.error", "hypercorn.access", "quart", "quart.app", "quart.serving", "asyncio")
_PIECE = 4096
"""A pipe that is ready for writing takes this many bytes (PIPE_BUF) without blocking."""
_PATIENCE_MS = 200

_log = logging.getLogger(__name__)


def configure(*, debug: bool, fd: int = 2) -> None:
    """Send the log to a descriptor, with debug messages or without; what nobody caught is logged as a bug.

    Where the descriptor is the journal's, lines have their priority in front, and no time or level of ours.
    """
    handler = _DescriptorHandler(fd)
    handler.setFormatter(_JournalFormatter() if _is_journal(fd) else _LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    sys.excepthook = _log_bug


class OncePer:
    """Remembers what was said last about each thing, so that nothing is repeated while a state lasts."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def __call__(self, key: str, message: str) -> bool:
        """Tell whether this message is news for that key."""
        if self._said.get(key) == message:
            return False
        self._said[key] = message
        return True

    def forget(self, key: str) -> None:
        """Let the next message for that key be news, whatever it is: the state is over."""
        self._said.pop(key, None)


class _LineFormatter(logging.Formatter):
    """`2026-11-22T14:15:00.123Z INFO  message`; a traceback follows on indented lines."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        level = _LEVELS.get(record.levelname, record.levelname)
        first, *traceback = self._lines(record)
        return "\n".join([f"{stamp}.{int(record.msecs):03d}Z {level:<5} {first}", *traceback]) + "\n"

    def _lines(self, record: logging.LogRecord) -> list[str]:
        lines = [escape(record.getMessage())]
        if record.exc_info:
            lines += ["  " + escape(line) for line in self.formatException(record.exc_info).splitlines()]
        return lines


class _JournalFormatter(_LineFormatter):
    """`<6>message`, as sd-daemon(3) has it; each line is an entry of the journal, which knows the time."""

    def format(self, record: logging.LogRecord) -> str:
        priorities = (number for level, number in _PRIORITIES.items() if record.levelno >= level)
        prefix = f"<{next(priorities, _DEBUG_PRIORITY)}>"
        return "".join(f"{prefix}{piece}\n" for line in self._lines(record) for piece in _pieces(line))


class _DescriptorHandler(logging.Handler):
    """Writes to a descriptor, but never waits long for its reader and never fails: then it counts what was lost."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._lost = 0
        self._torn = False

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if self._lost:
            # A line that was cut off half-way is ended first.
            text = "\n" * self._torn + self.format(_loss(self._lost)) + text
        if self._write(text.encode(errors="backslashreplace")):
            self._lost = 0
            self._torn = False
        else:
            self._lost += 1

    def _write(self, data: bytes) -> bool:
        # The descriptor is shared with whoever started us: setting it non-blocking would change it for them too.
        patience = 0 if self._lost else _PATIENCE_MS
        done = 0
        try:
            while done < len(data):
                if not self._poll.poll(patience):
                    break
                done += os.write(self._fd, data[done : done + _PIECE])
        except OSError:
            # The reader has gone, or the disk is full: there is nobody left to tell.
            pass
        if done:
            self._torn = not data[:done].endswith(b"\n")
        return done == len(data)


def _is_journal(fd: int) -> bool:
    """Whether systemd connected this descriptor to the journal, and nobody has redirected it since."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _pieces(line: str) -> Iterator[str]:
    for start in range(0, max(len(line), 1), _JOURNAL_PIECE):
        yield line[start : start + _JOURNAL_PIECE]


def _loss(count: int) -> logging.LogRecord:
    text = "%d log messages before this one were lost: stderr could not be written"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (count,), None)


def _log_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _log.critical("agentd has a bug and stops: %s", kind.__name__, exc_info=(kind, error, trace))
