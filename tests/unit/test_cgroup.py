"""A cgroup as files: where it is on different machines, and what cannot be looked into."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentd.processes import cgroup

HYBRID = "36 25 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
UNIFIED = "42 32 0:39 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
BESIDE = "42 32 0:39 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n"
CONTAINER = "42 32 0:39 /docker/ab /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
OUTSIDE = "42 32 0:39 /.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
ODD = "42 32 0:39 / /odd\\040place rw - cgroup2 none rw\n"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroup, "_MOUNTS", tmp_path / "mountinfo")
    monkeypatch.setattr(cgroup, "_OURS", tmp_path / "cgroup")
    return tmp_path


@pytest.mark.parametrize(
    ("mounts", "ours", "expected"),
    [
        (UNIFIED, "0::/system.slice/a.service\n", "/sys/fs/cgroup/system.slice/a.service"),
        (UNIFIED, "0::/\n", "/sys/fs/cgroup"),
        (HYBRID + BESIDE, "1:name=systemd:/b\n0::/a\n", "/sys/fs/cgroup/unified/a"),
        (CONTAINER, "0::/docker/ab/x\n", "/sys/fs/cgroup/x"),
        (CONTAINER, "0::/docker/abc\n", None),
        (UNIFIED, "0::/../a\n", None),
        (OUTSIDE, "0::/../a\n", "/sys/fs/cgroup/a"),
        (OUTSIDE, "0::/\n", None),
        (ODD, "0::/a\n", "/odd place/a"),
        (HYBRID, "1:name=systemd:/b\n0::/a\n", None),
        (HYBRID + BESIDE, "1:name=systemd:/b\n", None),
        ("", "", None),
    ],
)
def test_own_cgroup(kernel: Path, mounts: str, ours: str, expected: str | None) -> None:
    """Our own cgroup is found wherever version 2 is mounted, whole or in part; else there is none."""
    (kernel / "mountinfo").write_text(mounts)
    (kernel / "cgroup").write_text(ours)
    assert cgroup.own_cgroup() == (None if expected is None else Path(expected))


def test_without_the_kernels_files(kernel: Path) -> None:
    """Where the kernel knows no cgroups at all there is none."""
    assert cgroup.own_cgroup() is None


def test_what_is_not_there(tmp_path: Path) -> None:
    """A cgroup that is gone has no members, can be killed and removed, and lets nobody in."""
    gone = cgroup.Cgroup(tmp_path / "gone")
    gone.kill()
    assert (gone.members(), gone.remove()) == (frozenset(), True)
    with pytest.raises(FileNotFoundError):
        gone.admit(1)


@pytest.mark.parametrize("name", ["", "a", "a/cgroup.procs"])
def test_what_its_owner_has_closed(tmp_path: Path, name: str) -> None:
    """A part that an agent of our own user closes to itself, and so to us, is opened again and looked into."""
    for part, pids in (("", "1\n"), ("a", "2\n")):
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / "cgroup.procs").write_text(pids)
    (tmp_path / name).chmod(0)
    assert cgroup.Cgroup(tmp_path).members() == {1, 2}


def test_where_none_is_mounted(tmp_path: Path) -> None:
    """Where cgroups are not mounted any more none is made, and no plain file takes the place of the kernel's."""
    one = cgroup.Cgroup(tmp_path / "one")
    with pytest.raises(FileNotFoundError):
        one.make(None)
    with pytest.raises(FileNotFoundError):
        cgroup.Cgroup(tmp_path).admit(1)
    cgroup.Cgroup(tmp_path).kill()
    assert list(tmp_path.iterdir()) == []


def _failing(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The same, but that there is no descriptor left for what has this name."""

    def fail(path: Any, *rest: Any, **keys: Any) -> Any:
        if os.path.basename(os.fspath(path)) == name:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return function(path, *rest, **keys)

    return fail


def test_members_of_all_parts(tmp_path: Path) -> None:
    """The members are those of the cgroup and of all that its owner has made of it."""
    for part, pids in (("", "1\n2\n"), ("a", ""), ("a/b", "3\n0\n")):
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / "cgroup.procs").write_text(pids)
    assert cgroup.Cgroup(tmp_path).members() == {1, 2, 3}


@pytest.mark.parametrize(
    ("text", "expected"), [("populated 1\nfrozen 0\n", True), ("populated 0\n", False), (None, False)]
)
def test_whether_anything_lives_in_it(tmp_path: Path, text: str | None, expected: bool) -> None:
    """The kernel says whether anything lives in a cgroup; in one that is gone nothing does."""
    if text is not None:
        (tmp_path / "cgroup.events").write_text(text)
    assert cgroup.Cgroup(tmp_path).is_populated() == expected


@pytest.mark.parametrize("name", ["a", "cgroup.procs"])
def test_what_cannot_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A cgroup that cannot be looked into is never an empty one; and it is not taken away."""
    (tmp_path / "a").mkdir()
    for part in ("", "a"):
        (tmp_path / part / "cgroup.procs").write_text("1\n")
    monkeypatch.setattr("os.scandir", _failing(os.scandir, name))
    monkeypatch.setattr("io.open", _failing(open, name))
    with pytest.raises(OSError, match="Too many open files"):
        cgroup.Cgroup(tmp_path).members()
    assert not cgroup.Cgroup(tmp_path).remove()
