"""Where a cgroup is in the file system: what the kernel's files say, as they are on different machines."""

from pathlib import Path

import pytest

from agentd.processes import cgroup

HYBRID = "36 25 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
UNIFIED = "42 32 0:39 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
BESIDE = "42 32 0:39 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n"
CONTAINER = "42 32 0:39 /docker/ab /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
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
