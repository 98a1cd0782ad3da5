"""The socket that tmux leaves behind: removed when it is that one, and nothing else at its place."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.tmux.socket import remove_socket, socket_identity

_US = os.geteuid()


@pytest.fixture
def path(socket_dir: Path) -> Iterator[Path]:
    """Make a socket that nobody listens at."""
    path = socket_dir / "place" / "tmux"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        yield path


def test_socket_is_removed(path: Path) -> None:
    """The socket of the server that is gone is removed; once more is no trouble."""
    identity = socket_identity(path, _US)
    assert identity is not None
    for _ in range(2):
        remove_socket(path, _US, identity)
        assert not os.path.lexists(path)


@pytest.mark.parametrize("swap", ["socket", "file", "link", "link to the directory"])
def test_what_took_its_place_stays(path: Path, swap: str) -> None:
    """Whatever is there now stays: another socket, a file, a link to a socket, or all of it behind a link."""
    identity = socket_identity(path, _US)
    assert identity is not None
    kept = path.with_name("kept")
    if swap == "link to the directory":
        path.parent.rename(path.parent.with_name("moved"))
        path.parent.symlink_to("moved")
    else:
        path.rename(kept)
    if swap == "socket":
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    elif swap == "file":
        path.touch()
    elif swap == "link":
        path.symlink_to(kept)
    remove_socket(path, _US, identity)
    assert os.path.lexists(path)


def test_socket_of_somebody_else(path: Path) -> None:
    """Another user's socket is none of ours."""
    assert socket_identity(path, _US + 1) is None
