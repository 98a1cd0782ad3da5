"""The secrets directory as somebody hostile, or somebody busy, may leave it: nothing raised, last good values kept."""

import os
import random
import socket
import string
import threading
from pathlib import Path

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from agentd.inputs.secrets import Secrets, read_secrets

_NAMES = st.one_of(
    st.sampled_from(["A", "B", "_", "PATH", "IFS", "LD_PRELOAD", "BASH_ENV", "TMUX", "TMUX_PANE", "AGENTD_RUN", ".x"]),
    st.binary(min_size=1, max_size=6)
    .filter(lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b".."})
    .map(os.fsdecode),
)
_CONTENTS = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"$(id)\r\n", b"`id`", b"a'b\"c\nd\n", b"x" * 131_072, b"\0", b"\xff", b"y" * 140_000]),
)
_KINDS = st.sampled_from(["file"] * 6 + ["dangling", "loop", "fifo", "socket", "directory", "device", "link"])
_TREES = st.dictionaries(_NAMES, st.tuples(_KINDS, _CONTENTS), max_size=8)


def _make(path: Path, kind: str, content: bytes) -> None:
    match kind:
        case "file":
            path.write_bytes(content)
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(os.fspath(path))
        case _:
            path.symlink_to({"dangling": "no/where", "loop": path.name, "device": "/dev/zero", "link": "A"}[kind])


@seed(5)
@settings(max_examples=150, deadline=None, database=None)
@given(_TREES, st.dictionaries(st.sampled_from(["A", "B", "PATH", "GONE"]), st.just("last"), max_size=4))
def test_random_directories(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, tuple[str, bytes]], last: dict[str, str]
) -> None:
    """Whatever is there, good values come through, what is bad keeps its last one, and no warning shows a value."""
    directory = tmp_path_factory.mktemp("s")
    for name, (kind, content) in tree.items():
        _make(directory / name, kind, content)
    found = read_secrets(directory, Secrets(last))
    for name, value in found.values.items():
        assert not name.startswith(("TMUX", "AGENTD_"))
        assert "\0" not in value
        assert len(f"{name}={value}".encode()) < 131_072
        assert name in tree
        assert value == last.get(name) or tree[name][0] in {"file", "link"}
    for name in last.keys() & tree.keys():
        assert name in found.values or tree[name][0] == "directory" or (directory / name).is_dir()
    for warning in found.warnings:
        assert warning.isprintable()
        assert len(warning) < 500
        assert "x" * 20 not in warning


def test_entries_that_change_while_they_are_read(tmp_path: Path) -> None:
    """Entries that come, go and are replaced under the reader never cost a steady one, and no value is half."""
    names = [f"N{letter}" for letter in string.ascii_uppercase]
    whole = {letter * size for letter in "abc" for size in (0, 10, 5000)}
    (tmp_path / "STEADY").write_text("here")
    over = threading.Event()
    changes = 0

    def churn() -> None:
        nonlocal changes
        choose = random.Random(5)  # noqa: S311 - the same changes each time
        while not over.is_set():
            path = tmp_path / choose.choice(names)
            fresh = tmp_path / ".fresh"
            match choose.randint(0, 3):
                case 0 | 1:
                    fresh.write_text(choose.choice(sorted(whole)) + "\n")
                    fresh.rename(path)
                case 2:
                    path.unlink(missing_ok=True)
                case _:
                    fresh.symlink_to("nowhere")
                    fresh.rename(path)
            changes += 1

    churner = threading.Thread(target=churn)
    churner.start()
    try:
        last = Secrets()
        while changes < 300:
            last = read_secrets(tmp_path, last)
            assert last.values["STEADY"] == "here"
            assert set(last.values.values()) <= whole | {"here"}
    finally:
        over.set()
        churner.join()


def test_five_thousand_entries(tmp_path: Path) -> None:
    """Of five thousand entries the first thousand are taken, and one warning tells of the others."""
    for number in range(5000):
        (tmp_path / f"N{number:04}").touch()
    found = read_secrets(tmp_path, Secrets())
    assert list(found.values) == [f"N{number:04}" for number in range(1000)]
    assert len(found.warnings) == 1
