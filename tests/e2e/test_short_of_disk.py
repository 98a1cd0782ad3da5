"""No space where agentd writes: a file system of its own for the run directory, in a mount namespace (as root)."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.outside import World, lives, wait_for


class Disk:
    """A tmpfs that only agentd and what it starts see."""

    def __init__(self, world: World, place: Path) -> None:
        self.world = world
        self.place = place
        self.keeper: subprocess.Popen[bytes] | None = None

    def inside(self) -> Path:
        """The tmpfs, as agentd sees it."""
        assert self.keeper is not None
        return Path(f"/proc/{self.keeper.pid}/root{self.place}")

    def remount(self, mode: str) -> None:
        """Let it be written, or not."""
        assert self.keeper is not None
        mount = (
            "nsenter",
            f"--mount=/proc/{self.keeper.pid}/ns/mnt",
            "mount",
            "-o",
            f"remount,bind,{mode}",
            self.place,
        )
        subprocess.run(mount, check=True)

    def fill(self, what: str) -> None:
        """Use up all bytes, or all inodes."""
        stuffing = self.inside() / "stuffing"
        stuffing.mkdir()
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):  # noqa: PT012 - whichever is the last
            if what == "bytes":
                with (stuffing / "file").open("wb", buffering=0) as file:
                    while True:
                        file.write(b"x" * 4096)
            for number in range(100_000):
                (stuffing / str(number)).touch()

    def empty(self) -> None:
        """Give all that back."""
        stuffing = self.inside() / "stuffing"
        for path in stuffing.iterdir():
            path.unlink()
        stuffing.rmdir()


@contextmanager
def disk_at(world: World, place: Path, options: str) -> Iterator[Disk]:
    """A tmpfs at that place, for whatever the world starts."""
    disk = Disk(world, place)
    place.mkdir(mode=0o711)
    script = 'mount -t tmpfs -o "$1" tmpfs "$2" && echo ready && exec sleep infinity'
    disk.keeper = subprocess.Popen(
        ("unshare", "--mount", "--", "sh", "-c", script, "sh", options, place), stdout=subprocess.PIPE
    )
    try:
        assert disk.keeper.stdout is not None
        assert disk.keeper.stdout.readline() == b"ready\n"
        world.within = ("nsenter", f"--mount=/proc/{disk.keeper.pid}/ns/mnt", "--")
        yield disk
        assert world.stop() == 0
        assert not [path.name for path in disk.inside().iterdir()]
    finally:
        world.stop()
        disk.keeper.kill()
        disk.keeper.communicate()


def said(world: World, *words: str) -> int:
    """In how many lines of the log all of these words are."""
    return sum(all(word in line for word in words) for line in world.log_lines)


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_full_run_directory(world: World, what: str) -> None:
    """On a full disk what runs goes on, what is to start waits, said once; with space again, all is made up for."""
    with disk_at(world, world.run_dir, "size=256k,nr_inodes=64,mode=711") as disk:
        world.write_card(world.agent("a"))
        world.start()
        first = world.wait_ready("a")
        disk.fill(what)
        world.write_card(world.agent("a"), world.agent("b"))
        world.look()
        status = world.wait_status("b", state="waiting", reason="run_dir")
        assert os.strerror(errno.ENOSPC) in status["message"]
        world.wait_looks(lambda: status["attempt"] + 2 <= world.status("b")["attempt"], "two tries more")
        assert world.status("b")["state"] in {"waiting", "starting"}
        assert [os.strerror(errno.ENOSPC) in warning for warning in world.warnings()] == [True]
        assert said(world, "agent=b", "reason=run_dir") == 1
        assert said(world, "WARN", "crash of agentd") == 1
        assert world.status("b")["restarts"] == 0
        disk.empty()
        second = world.wait_ready("b", seconds=7)
        wait_for(lambda: not world.warnings(), "the end of the warnings")
        world.crash()
        world.start()
        assert {name: status["pid"] for name, status in world.agents().items()} == {"a": first.pid, "b": second.pid}


def test_note_that_could_not_be_written(world: World) -> None:
    """What was not written down on a full disk is as soon as there is space, with nothing new to write down."""
    with disk_at(world, world.run_dir, "size=256k,nr_inodes=64,mode=711") as disk:
        world.write_card(world.agent("a", env={"EXIT": "3"}, restart="always"))
        world.start()
        first = world.wait_ready("a")
        disk.fill("bytes")
        os.kill(first.pid, 2)
        world.wait_looks(lambda: said(world, "crash of agentd"), "the warning")
        disk.empty()
        second = world.wait_ready("a", 2)
        world.wait_looks(lambda: not world.warnings(), "the end of the warnings")
        world.crash()
        world.start()
        assert (world.status("a")["pid"], world.status("a")["restarts"]) == (second.pid, 1)
        assert "EXIT" in second.env


def test_read_only_run_directory(world: World) -> None:
    """Where nothing can be changed, agents go on, end and are stopped; what they left is taken away later."""
    with disk_at(world, world.run_dir, "size=1m,mode=711") as disk:
        world.write_card(world.agent("a"), world.agent("b", restart="no"), world.agent("c"))
        world.start()
        a, b, c = (world.wait_ready(name) for name in "abc")
        disk.remount("ro")
        os.kill(b.pid, 9)
        status = world.wait_status("b", state="failed")
        assert status["exit"]["code"] == 137
        world.write_card(world.agent("b", restart="no"), world.agent("c"), world.agent("d"))
        world.look()
        world.wait_status("d", state="waiting", reason="run_dir")
        wait_for(lambda: "a" not in world.agents(), "the removal")
        assert a.left() == {}
        assert lives(c.pid)
        assert any(os.strerror(errno.EROFS) in warning for warning in world.warnings())
        assert said(world, "bug") == 0
        disk.remount("rw")
        world.wait_ready("d", seconds=7)
        wait_for(lambda: not world.warnings(), "the end of the warnings")
        runs = {path.name.split("-")[1].partition(".")[0] for path in disk.inside().iterdir()}
        assert len(runs) == 3
        assert world.status("c")["pid"] == c.pid


def test_no_place_for_the_api_socket(world: World) -> None:
    """A socket for which there is no space is a clear error at the start."""
    place = world.top / "sockets"
    with disk_at(world, place, "size=64k,nr_inodes=8,mode=755") as disk:
        disk.fill("inodes")
        world.api_socket = place / "api.sock"
        done = world.try_command(*world.within, *world.command("-agent-user", "root"))
        assert done.returncode == 1
        assert f"cannot make the API socket {world.api_socket}: {os.strerror(errno.ENOSPC)}" in done.stderr
        disk.empty()
        for path in disk.inside().iterdir():
            path.unlink()
