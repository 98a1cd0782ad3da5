import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from agentd.attempts.lifeline import MOST, Lifeline, LifelineJunkError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "lifeline"
    os.mkfifo(path)
    return path


@pytest.fixture
async def lifeline(path: Path) -> AsyncIterator[Lifeline]:
    lifeline = Lifeline(path)
    yield lifeline
    lifeline.close()


def open_end(path: Path) -> int:
    """Open the other end as the launch script does."""
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


async def next_line(lifeline: Lifeline, *, reopen: bool = False) -> str | None:
    with trio.fail_after(5):
        return await lifeline.line(reopen=reopen)
    raise AssertionError


async def last_line(lifeline: Lifeline) -> None:
    while await next_line(lifeline):
        pass


async def test_lines(path: Path, lifeline: Lifeline) -> None:
    """What is said arrives a line at a time, in order, however it was cut when it was written."""
    end = open_end(path)
    for piece in (b"start 1", b" 2\nex", b"it 0\n"):
        os.write(end, piece)
    os.close(end)
    assert [await next_line(lifeline) for _ in range(3)] == ["start 1 2", "exit 0", None]


async def test_waits_for_the_first_writer(path: Path, lifeline: Lifeline) -> None:
    """Before anybody has opened the other end, the wait is a wait and no end."""
    for reopen in (True, False):
        with trio.move_on_after(0.05) as scope:
            await lifeline.line(reopen=reopen)
        assert scope.cancelled_caught
    end = open_end(path)
    os.write(end, b"x\n")
    assert await next_line(lifeline) == "x"
    os.close(end)


async def test_end_without_a_word(path: Path, lifeline: Lifeline) -> None:
    """When the last who held the other end is gone without a word, that is the end."""
    end = open_end(path)
    async with trio.open_nursery() as nursery:

        async def leave() -> None:
            await trio.testing.wait_all_tasks_blocked()
            os.close(end)

        nursery.start_soon(leave)
        assert await next_line(lifeline) is None


async def test_reopens(path: Path, lifeline: Lifeline) -> None:
    """Somebody who opens and leaves before the start is no end: the next one is heard."""
    os.close(open_end(path))
    async with trio.open_nursery() as nursery:

        async def come() -> None:
            await trio.testing.wait_all_tasks_blocked()
            end = open_end(path)
            os.write(end, b"start 1 2\n")
            await trio.testing.wait_all_tasks_blocked()
            os.close(end)

        nursery.start_soon(come)
        assert await next_line(lifeline, reopen=True) == "start 1 2"


async def test_gone_when_reopened(path: Path) -> None:
    """A lifeline whose FIFO was taken away cannot be opened again, which is an error, and can still be closed."""
    lifeline = Lifeline(path)
    end = open_end(path)
    os.unlink(path)
    os.close(end)
    with pytest.raises(FileNotFoundError):
        await next_line(lifeline, reopen=True)
    lifeline.close()
    lifeline.close()


@pytest.mark.parametrize("junk", [b"\xff\xfe\n", b"x" * (MOST + 1), b"x\n" * MOST], ids=["binary", "long", "many"])
async def test_junk(path: Path, lifeline: Lifeline, junk: bytes) -> None:
    """More than 4 KB in all, and what is not text, is junk."""
    end = open_end(path)
    os.write(end, junk)
    with pytest.raises(LifelineJunkError):
        await last_line(lifeline)
    os.close(end)


async def test_launcher_death_ends_it(path: Path, lifeline: Lifeline) -> None:
    """The launcher's death is the end, though somebody else holds the other end open; its last words are heard."""
    end = open_end(path)
    with subprocess.Popen(["sleep", "1000"]) as launcher:  # noqa: ASYNC220 - which takes no time
        lifeline.watch(os.pidfd_open(launcher.pid))
        with trio.move_on_after(0.05) as scope:
            await lifeline.line(reopen=False)
        assert scope.cancelled_caught
        os.write(end, b"exit 3\n")
        launcher.kill()
        launcher.wait()
    assert [await next_line(lifeline), await next_line(lifeline)] == ["exit 3", None]
    with trio.fail_after(5):
        await lifeline.speaker_gone()
    os.close(end)


@pytest.mark.parametrize("watched", [True, False])
async def test_deaf_and_flooded(path: Path, lifeline: Lifeline, watched: bool) -> None:
    """Deaf to words, it still reads them away, so that the launcher can say its own and end."""
    flood = f"head -c 100000 /dev/zero >&9; exec 9>&-; {'read x' if watched else 'true'}"
    command = ["sh", "-c", f"exec 9<>{path}; echo >&9; {flood}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as launcher:  # noqa: ASYNC220 - which takes no time
        if watched:
            lifeline.watch(os.pidfd_open(launcher.pid))
        assert await next_line(lifeline) == ""
        if watched:
            with trio.move_on_after(0.5) as scope:
                await lifeline.speaker_gone()
            assert scope.cancelled_caught
            assert launcher.poll() is None
            launcher.communicate(b"\n")
        with trio.fail_after(5):
            await lifeline.speaker_gone()
        assert launcher.wait(5) == 0


async def test_last_watched_counts(path: Path, lifeline: Lifeline) -> None:
    """Of two whose death would end it, only the one that was named last counts."""
    end = open_end(path)
    with (
        subprocess.Popen(["sleep", "1000"]) as shell,  # noqa: ASYNC220 - which takes no time
        subprocess.Popen(["sleep", "1000"]) as launcher,  # noqa: ASYNC220 - which takes no time
    ):
        lifeline.watch(os.pidfd_open(shell.pid))
        lifeline.watch(os.pidfd_open(launcher.pid))
        shell.kill()
        shell.wait()
        with trio.move_on_after(0.05) as scope:
            await lifeline.line(reopen=True)
        assert scope.cancelled_caught
        launcher.kill()
        assert await next_line(lifeline, reopen=True) is None
    os.close(end)


async def test_cancelled_wait_loses_nothing(path: Path, lifeline: Lifeline) -> None:
    """A cancelled wait loses nothing of what was said."""
    end = open_end(path)
    os.write(end, b"exi")
    with trio.move_on_after(0.05):
        await lifeline.line(reopen=False)
    os.write(end, b"t 0\n")
    assert await next_line(lifeline) == "exit 0"
    os.close(end)


async def test_has_writer(path: Path, lifeline: Lifeline) -> None:
    """Somebody there is told from nobody, and from one who has left words behind."""
    assert not lifeline.has_writer()
    end = open_end(path)
    assert lifeline.has_writer()
    os.write(end, b"x\n")
    os.close(end)
    assert lifeline.has_writer()
    assert not lifeline.has_writer()
    assert await next_line(lifeline) == "x"
