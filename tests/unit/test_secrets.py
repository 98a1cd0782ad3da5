"""Secrets: what becomes a variable, what is skipped, what is warned of, and what keeps its last value."""

import os
import socket
from pathlib import Path

import pytest

from agentd.inputs.regular_file import read_regular
from agentd.inputs.secrets import Secrets, read_secrets

_LIMIT = 131_072


def _write(directory: Path, **contents: str | bytes) -> None:
    for name, content in contents.items():
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def _read(directory: Path, last: Secrets | None = None) -> Secrets:
    return read_secrets(directory, last or Secrets())


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("s3cret", "s3cret"),
        ("s3cret\n", "s3cret"),
        ("s3cret\n\n\n", "s3cret"),
        ("s3cret\r\n", "s3cret"),
        ("s3cret\r\n\n\r\n", "s3cret"),
        ("s3cret\r", "s3cret\r"),
        ("s3cret\r\r\n", "s3cret\r"),
        (" s3cret \t\n", " s3cret \t"),
        ("\n\nkey\nbody\r\nend\n", "\n\nkey\nbody\r\nend"),
        ('it\'s "q" $HOME `id` \\n é☃ \x1b[0m = ;', 'it\'s "q" $HOME `id` \\n é☃ \x1b[0m = ;'),
        ("", ""),
        ("\n", ""),
        ("\r\n", ""),
    ],
)
def test_value(tmp_path: Path, content: str, value: str) -> None:
    """A file's content without its trailing newlines is the value, and all else of it is kept."""
    _write(tmp_path, TOKEN=content)
    assert _read(tmp_path) == Secrets({"TOKEN": value})


def test_many_newlines(tmp_path: Path) -> None:
    """A file full of newlines is no slower to trim than another."""
    _write(tmp_path, TOKEN="\n" * 131_000, OTHER="\n" * 131_000 + "x")
    assert _read(tmp_path).values == {"TOKEN": "", "OTHER": "\n" * 131_000 + "x"}


def test_skipped(tmp_path: Path) -> None:
    """Hidden files and directories, whatever their names, are skipped without a word."""
    _write(tmp_path, TOKEN="t")
    (tmp_path / ".hidden").write_text("h")
    (tmp_path / "a directory").mkdir()
    (tmp_path / "LINKED").symlink_to(tmp_path / "a directory")
    assert _read(tmp_path) == Secrets({"TOKEN": "t"})


def test_no_directory(tmp_path: Path) -> None:
    """Without a directory there are no secrets, those of before included, and no warning."""
    assert _read(tmp_path / "none", Secrets({"TOKEN": "t"})) == Secrets()


def test_symlinks(tmp_path: Path) -> None:
    """Symlinks are followed, the directory's own included."""
    real = tmp_path / "real"
    real.mkdir()
    _write(tmp_path, source="t\n")
    (real / "TOKEN").symlink_to("../source")
    (tmp_path / "link").symlink_to("real")
    assert _read(tmp_path / "link") == Secrets({"TOKEN": "t"})


@pytest.mark.parametrize("name", ["1ST", "MY-TOKEN", "MY.TOKEN", "MY TOKEN", "a=b", "É", "x\ny", "TOKEN~", "x\uff11"])
def test_bad_name(tmp_path: Path, name: str) -> None:
    """A file whose name is no variable name is a warning that names it and costs no other."""
    _write(tmp_path, **{name: "bad", "TOKEN": "t"})
    secrets = _read(tmp_path)
    assert secrets.values == {"TOKEN": "t"}
    assert [repr(name) in warning for warning in secrets.warnings] == [True]


def test_undecodable_name(tmp_path: Path) -> None:
    """A file name that is not UTF-8 is a warning that can be printed."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/T\xff")).write_text("bad")
    (warning,) = _read(tmp_path).warnings
    assert "T\\udcff" in warning.encode().decode()


@pytest.mark.parametrize("name", ["TMUX", "TMUX_PANE", "TMUXX", "AGENTD_ATTEMPT"])
def test_reserved_name(tmp_path: Path, name: str) -> None:
    """A variable of tmux's or agentd's own is a warning that names it and costs no other."""
    _write(tmp_path, **{name: "bad", "TOKEN": "t"})
    secrets = _read(tmp_path)
    assert secrets.values == {"TOKEN": "t"}
    assert [name in warning and "reserved" in warning for warning in secrets.warnings] == [True]


@pytest.mark.parametrize("name", ["AGENTD", "XTMUX", "tmux", "_", "a1"])
def test_good_name(tmp_path: Path, name: str) -> None:
    """A name that only resembles a reserved one is a variable like any other."""
    _write(tmp_path, **{name: "t"})
    assert _read(tmp_path) == Secrets({name: "t"})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"hush\0hush", "NUL"),
        (b"hush\xff", "UTF-8 (byte 4)"),
        (b"hush\xed\xa0\x80", "UTF-8 (byte 4)"),
        (b"h" * (_LIMIT - len("BAD=")), f"{_LIMIT - len('BAD=') - 1} bytes"),
        (b"h" * 1_000_000, "131072 bytes"),
    ],
)
@pytest.mark.parametrize(("last", "fate"), [({}, "is left out"), ({"BAD": "good"}, "keeps its last good value")])
def test_bad_content(tmp_path: Path, content: bytes, problem: str, last: dict[str, str], fate: str) -> None:
    """What no variable can hold is a warning that tells why but none of the content, and the last good value stays."""
    _write(tmp_path, BAD=content, TOKEN="t")
    secrets = _read(tmp_path, Secrets(last))
    assert secrets.values == last | {"TOKEN": "t"}
    (warning,) = secrets.warnings
    assert f"secret BAD {fate}" in warning
    assert problem in warning
    assert "hush" not in warning


def test_largest_value(tmp_path: Path) -> None:
    """A value is taken up to the kernel's limit on a variable, trailing newline or not."""
    largest = "v" * (_LIMIT - len("TOKEN=\0"))
    _write(tmp_path, TOKEN=largest + "\r\n")
    assert _read(tmp_path) == Secrets({"TOKEN": largest})


@pytest.mark.parametrize("kind", ["fifo", "dangling", "loop", "socket", "device"])
@pytest.mark.parametrize(("last", "fate"), [({}, "is left out"), ({"BAD": "good"}, "keeps its last good value")])
def test_unreadable(tmp_path: Path, kind: str, last: dict[str, str], fate: str) -> None:
    """An entry that is there but is no readable file keeps its last good value with a warning, and nothing waits."""
    bad = tmp_path / "BAD"
    with socket.socket(socket.AF_UNIX) as server:
        match kind:
            case "fifo":
                os.mkfifo(bad)
            case "dangling":
                bad.symlink_to("nowhere")
            case "loop":
                bad.symlink_to("BAD")
            case "socket":
                server.bind(str(bad))
            case "device":
                bad.symlink_to("/dev/zero")
        _write(tmp_path, TOKEN="t")
        secrets = _read(tmp_path, Secrets(last))
    assert secrets.values == last | {"TOKEN": "t"}
    assert [f"secret BAD {fate}" in warning for warning in secrets.warnings] == [True]


def test_gone(tmp_path: Path) -> None:
    """An entry that is gone is gone, without a warning."""
    _write(tmp_path, TOKEN="t")
    assert _read(tmp_path, Secrets({"TOKEN": "t", "OLD": "o"})) == Secrets({"TOKEN": "t"})


@pytest.mark.parametrize("kind", ["file", "dangling", "loop", "fifo"])
def test_unreadable_directory(tmp_path: Path, kind: str) -> None:
    """A directory that is there but cannot be read is one warning that names it, and everything stays."""
    directory = tmp_path / "secrets"
    match kind:
        case "file":
            directory.write_text("no directory")
        case "dangling":
            directory.symlink_to("nowhere")
        case "loop":
            directory.symlink_to("secrets")
        case "fifo":
            os.mkfifo(directory)
    secrets = _read(directory, Secrets({"TOKEN": "t"}, ("an old warning",)))
    assert secrets.values == {"TOKEN": "t"}
    assert [str(directory) in warning for warning in secrets.warnings] == [True]


def test_too_many(tmp_path: Path) -> None:
    """Of very many entries the first thousand by name are read, with a warning that says so."""
    _write(tmp_path, **{f"V{number:04}": "v" for number in range(1001)})
    secrets = _read(tmp_path)
    assert list(secrets.values) == [f"V{number:04}" for number in range(1000)]
    assert ["1001 entries" in warning for warning in secrets.warnings] == [True]


def test_no_leak(tmp_path: Path) -> None:
    """No descriptor stays open, whatever is found."""
    _write(tmp_path, TOKEN="t", BAD=b"\xff", LARGE=b"x" * 200_000)
    os.mkfifo(tmp_path / "FIFO")
    (tmp_path / "GONE").symlink_to("nowhere")
    (tmp_path / "directory").mkdir()
    before = _descriptors()
    _read(tmp_path)
    _read(tmp_path / "TOKEN")
    for entry in ("directory", "FIFO", "LARGE"):
        with pytest.raises(OSError, match=r"directory|FIFO|larger"):
            read_regular(tmp_path / entry, 100)
    assert _descriptors() == before


def test_hidden_in_repr(tmp_path: Path) -> None:
    """Printing the secrets shows no value."""
    _write(tmp_path, TOKEN="hush")
    assert "hush" not in repr(_read(tmp_path))
