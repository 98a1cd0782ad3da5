"""The log: what its lines look like, and what happens when nobody reads them."""

import fcntl
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agentd.logs import OncePer, configure
from agentd.wording import escape

_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ")
_log = logging.getLogger("agentd.test")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, sys.excepthook)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    root.handlers[:], sys.excepthook = before[0], before[2]
    root.setLevel(before[1])
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            continue


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text, é and ☃", "plain text, é and ☃"),
        ("", ""),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2J\x7f\x85", r"\x1b[2J\x7f\x85"),
        ("a\u2028b\u202ec", r"a\u2028b\u202ec"),
        ("not UTF-8: \udcff", r"not UTF-8: \udcff"),
        (r"C:\new", r"C:\new"),
    ],
)
def test_text_is_escaped_for_one_line(text: str, expected: str) -> None:
    """Everything that a terminal would not print as itself is escaped, and nothing else is."""
    assert escape(text) == expected


@pytest.mark.parametrize(
    ("level", "word"),
    [
        (logging.DEBUG, "DEBUG"),
        (logging.INFO, "INFO "),
        (logging.WARNING, "WARN "),
        (logging.ERROR, "ERROR"),
        (logging.CRITICAL, "FATAL"),
    ],
)
def test_line_has_time_level_and_message(pipe: tuple[int, int], level: int, word: str) -> None:
    """A line is the time in UTC with milliseconds, the level in five columns, and the message."""
    configure(debug=True, fd=pipe[1])
    _log.log(level, "agent %s", "a")
    line = os.read(pipe[0], 4096).decode()
    assert _STAMP.match(line)
    assert _STAMP.sub("", line) == f"{word} agent a\n"


def test_message_cannot_forge_a_line(pipe: tuple[int, int]) -> None:
    """A newline in an agent's text stays inside the line that quotes it."""
    configure(debug=False, fd=pipe[1])
    _log.info("it says %s", "x\n2026-11-22T14:15:00.123Z ERROR forged")
    assert os.read(pipe[0], 4096).count(b"\n") == 1


def test_traceback_is_indented(pipe: tuple[int, int]) -> None:
    """The lines of a traceback begin with blanks, so that none can pass for an event."""
    configure(debug=False, fd=pipe[1])
    text = "bad\nnews"
    try:
        raise ValueError(text)
    except ValueError:
        _log.exception("a bug")
    first, *rest = os.read(pipe[0], 4096).decode().splitlines()
    assert first.endswith("ERROR a bug")
    assert rest[-2:] == ["  ValueError: bad", "  news"]
    assert all(line.startswith("  ") for line in rest)


@pytest.mark.parametrize(("debug", "expected"), [(True, 1), (False, 0)])
def test_debug_messages_are_logged_on_request(pipe: tuple[int, int], debug: bool, expected: int) -> None:
    """Debug messages of agentd appear with -debug only."""
    configure(debug=debug, fd=pipe[1])
    _log.debug("detail")
    _log.info("end")
    assert os.read(pipe[0], 4096).count(b"detail") == expected


@pytest.mark.parametrize("name", ["hypercorn.error", "hypercorn.access", "quart.app", "quart.serving", "asyncio"])
def test_libraries_are_quiet(pipe: tuple[int, int], name: str) -> None:
    """The HTTP libraries log warnings and worse only, with -debug too."""
    configure(debug=True, fd=pipe[1])
    logging.getLogger(name).info("request")
    logging.getLogger(name).warning("trouble")
    assert os.read(pipe[0], 4096).decode().split(maxsplit=1)[1] == "WARN  trouble\n"


def test_reader_that_is_gone_is_no_error(pipe: tuple[int, int]) -> None:
    """Logging goes on without an error when the reader of stderr has gone."""
    configure(debug=False, fd=pipe[1])
    os.close(pipe[0])
    _log.error("first")
    _log.error("second")


def test_full_disk_is_no_error(pipe: tuple[int, int]) -> None:
    """Logging goes on without an error when the log's disk is full."""
    with open("/dev/full", "wb", buffering=0) as full:
        configure(debug=False, fd=full.fileno())
        _log.error("lost")


def test_reader_that_stopped_reading_holds_nobody_up(pipe: tuple[int, int]) -> None:
    """A reader that stops reading loses messages, and is told how many as soon as it reads again."""
    configure(debug=False, fd=pipe[1])
    _log.info("%s", "x" * 5000)
    for _ in range(9):
        _log.info("lost")
    os.read(pipe[0], 4096)
    _log.info("seen")
    torn, told, seen = os.read(pipe[0], 4096).decode().splitlines()
    assert torn == ""
    assert told.endswith("WARN  10 log messages before this one were lost: stderr could not be written")
    assert seen.endswith("INFO  seen")


def test_long_line_arrives_whole(pipe: tuple[int, int]) -> None:
    """A message longer than a pipe takes at once arrives whole when its reader reads."""
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 1 << 18)
    configure(debug=False, fd=pipe[1])
    _log.info("%s", "é" * 50_000)
    assert os.read(pipe[0], 1 << 18).decode().endswith(" " + "é" * 50_000 + "\n")


def test_bug_that_nobody_caught_is_logged() -> None:
    """An exception that nobody caught is logged with its traceback, and the exit code is 1."""
    program = "from agentd.logs import configure\nconfigure(debug=False)\n1 / 0"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "FATAL agentd has a bug and stops: ZeroDivisionError\n  Traceback" in done.stderr


def test_same_message_is_news_once() -> None:
    """A message is news for its key until another one comes, or the key is forgotten."""
    news = OncePer()
    assert [news("a", "x"), news("a", "x"), news("b", "x"), news("a", "y"), news("a", "x")] == [
        True,
        False,
        True,
        True,
        True,
    ]
    news.forget("a")
    assert news("a", "x")
    assert not news("b", "x")
    news.forget("never heard of")


# The journal


@pytest.fixture
def journal(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> int:
    """A pipe that systemd would have connected to the journal: what reads from it."""
    found = os.fstat(pipe[1])
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    configure(debug=True, fd=pipe[1])
    return pipe[0]


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.DEBUG - 1, 7),
        (logging.DEBUG, 7),
        (logging.INFO, 6),
        (logging.INFO + 1, 6),
        (logging.WARNING, 4),
        (logging.ERROR, 3),
        (logging.CRITICAL, 2),
        (logging.CRITICAL + 50, 2),
    ],
)
def test_journal_has_priorities(journal: int, level: int, priority: int) -> None:
    """The journal gets the priority of syslog and the message, without a time or a word for the level."""
    logging.getLogger().setLevel(0)
    _log.log(level, "agent %s", "a")
    assert os.read(journal, 4096).decode() == f"<{priority}>agent a\n"


def test_each_line_has_its_priority(journal: int) -> None:
    """Each line of a traceback has the same priority in front, and is indented as ever."""
    text = "bad\n<0>news"
    try:
        raise ValueError(text)
    except ValueError:
        _log.exception("a bug")
    first, *rest = os.read(journal, 4096).decode().splitlines()
    assert first == "<3>a bug"
    assert rest[-2:] == ["<3>  ValueError: bad", "<3>  <0>news"]
    assert all(line.startswith("<3>  ") for line in rest)


@pytest.mark.parametrize("text", ["<0>x", "x\n<0>forged", "x\r<0>forged", "x\0<0>forged", "x\u2028<0>forged"])
def test_text_cannot_forge_a_priority(journal: int, text: str) -> None:
    """No text gets to the beginning of a line, where the journal would obey it."""
    _log.info("%s", text)
    data = os.read(journal, 4096)
    assert data.startswith(b"<6>")
    assert data.count(b"\n") == 1
    assert not {b"\r", b"\0"} & {data[index : index + 1] for index in range(len(data))}


def test_long_text_cannot_forge_a_priority(pipe: tuple[int, int], journal: int) -> None:
    """A line that the journal would cut at 48 KiB is cut before that, each piece with its priority in front."""
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 1 << 20)
    _log.info("%s", "☃<0>" * 20_000)
    lines = os.read(journal, 1 << 20).splitlines()
    assert all(line.startswith(b"<6>") and len(line) < 48 << 10 for line in lines)
    assert b"".join(line[3:] for line in lines).decode() == "☃<0>" * 20_000


def test_lost_messages_are_told_to_the_journal(journal: int) -> None:
    """A journal that was stuck is told of what was lost, with its priority and on a line of its own."""
    _log.info("%s", "x" * 5000)
    os.read(journal, 4096)
    _log.info("seen")
    assert os.read(journal, 4096).decode().splitlines() == [
        "",
        "<4>1 log messages before this one were lost: stderr could not be written",
        "<6>seen",
    ]


@pytest.mark.parametrize("stream", ["", "junk", "1:2", "{dev}:", "{dev}:1", "{ino}:{dev}"])
def test_other_descriptors_are_not_the_journal(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    """Who is redirected elsewhere logs as ever, though the environment names a journal."""
    found = os.fstat(pipe[1])
    monkeypatch.setenv("JOURNAL_STREAM", stream.format(dev=found.st_dev, ino=found.st_ino))
    configure(debug=False, fd=pipe[1])
    _log.info("x")
    assert _STAMP.match(os.read(pipe[0], 4096).decode())


def test_closed_descriptor_is_not_the_journal(monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]) -> None:
    """A descriptor that is closed is no journal, and no error either."""
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    os.close(pipe[1])
    configure(debug=False, fd=pipe[1])
    _log.info("lost")
