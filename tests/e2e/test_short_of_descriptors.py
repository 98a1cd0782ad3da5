"""No descriptor is left, no run directory, no readable log: agentd goes on, and recovers."""

import errno
import os
import resource
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.outside import World, lives, wait_for

SHORT = "o more files may be opened"  # the first word may begin a sentence
OWN_SOCKETS = 3
"""The API's, and the two by which trio wakes itself."""


def _limit(world: World, spare: int) -> tuple[int, int]:
    """Leave agentd so many descriptors; return what it was limited to."""
    assert world.process is not None
    pid = world.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used(pid) + spare, before[1]))
    return before


def used(pid: int) -> int:
    """How many descriptors agentd has, without the API's connections, which are kept for a while."""
    names = []
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed just now
            names.append(os.readlink(one))
    return sum(not name.startswith("socket:") for name in names) + OWN_SOCKETS


@contextmanager
def few_descriptors(world: World, spare: int) -> Iterator[None]:
    """Leave agentd, for a while, so many descriptors."""
    before = _limit(world, spare)
    try:
        yield
    finally:
        assert world.process is not None
        if world.process.poll() is None:
            resource.prlimit(world.process.pid, resource.RLIMIT_NOFILE, before)


def said(world: World, *words: str) -> int:
    """In how many lines of the log all of these words are."""
    return sum(all(word in line for word in words) for line in world.log_lines)


@pytest.mark.parametrize("spare", [-3, 1, 2])
def test_no_descriptors(world: World, spare: int) -> None:
    """Without descriptors nothing that runs is lost, nothing is read as gone, and all that was to happen happens later.

    However many there still are: each of them is what another thing fails for.
    """
    (world.secrets / "TOKEN").write_text("one")
    prompt = world.top / "prompt.md"
    prompt.write_text("Do it.")
    world.write_card(
        world.agent("a", prompt_file=str(prompt), args=["{prompt}"]),
        world.agent("b", restart="always"),
        world.agent("c"),
    )
    world.start()
    a, b, c = (world.wait_ready(name) for name in "abc")
    with few_descriptors(world, spare):
        os.kill(b.pid, signal.SIGKILL)
        world.write_card(
            world.agent("a", prompt_file=str(prompt), args=["{prompt}"]),
            world.agent("b", restart="always"),
            world.agent("d"),
        )
        world.look()
        wait_for(lambda: said(world, "WARN", SHORT), "the warning")
    world.wait_status("b", state="running", attempt=2, seconds=10)
    second = world.wait_ready("b", 2)
    assert (second.env["TOKEN"], a.env["TOKEN"]) == ("one", "one")
    wait_for(lambda: "c" not in world.agents(), "the removal")
    assert c.left() == {}
    world.wait_ready("d")
    assert world.status("a")["pid"] == a.pid
    assert [len(world.starts(name)) for name in "abcd"] == [1, 2, 1, 1]
    lines = [line.partition(" ")[2] for line in world.log_lines if SHORT in line or os.strerror(errno.EMFILE) in line]
    assert len(lines) == len(set(lines)), lines
    assert said(world, "bug") == 0


def test_stop_without_descriptors(world: World) -> None:
    """A stop interrupts its agents, and ends them, though agentd cannot look at anything for a while."""
    world.write_card(world.agent("a", grace_period="20s"))
    world.start()
    start = world.wait_ready("a")
    with few_descriptors(world, -3):
        world.signal(signal.SIGTERM)
        wait_for(lambda: [what for _, what in start.events] == ["INT"], "the interrupt")
        wait_for(lambda: not lives(start.pid), "its end")
    assert world.stop() == 0
    assert said(world, "bug") == 0


def test_many_clients(world: World) -> None:
    """Clients that take all descriptors are told of once, agents go on, and the API answers when they have gone."""
    world.write_card(world.agent("a", restart="always"))
    world.start()
    first = world.wait_ready("a")
    with few_descriptors(world, 20):
        clients = [socket.socket(socket.AF_UNIX) for _ in range(60)]
        for client in clients:
            client.connect(str(world.api_socket))
        wait_for(lambda: said(world, "accept returned EMFILE"), "the log line")
        os.kill(first.pid, signal.SIGKILL)
        for client in clients:
            client.close()
    world.wait_ready("a", 2)
    assert said(world, "accept returned EMFILE") == 1


def test_run_directory_is_gone(world: World) -> None:
    """A run directory that somebody removes costs nothing: it is there again, and so is what was noted in it."""
    world.write_card(world.agent("a", env={"EXIT": "4"}, restart="no"), world.agent("b"))
    world.start()
    a, b = world.wait_ready("a"), world.wait_ready("b")
    mode = world.run_dir.stat().st_mode
    shutil.rmtree(world.run_dir)
    world.look()
    wait_for(lambda: len(list(world.run_dir.glob("*.json"))) == 2, "the notes")
    assert world.run_dir.stat().st_mode == mode
    world.crash()
    world.start()
    assert {name: status["pid"] for name, status in world.agents().items()} == {"a": a.pid, "b": b.pid}
    shutil.rmtree(world.run_dir)
    os.kill(a.pid, signal.SIGINT)
    assert world.wait_status("a", state="failed")["exit"]["code"] == 4
    world.write_card(world.agent("b"), world.agent("c"))
    world.wait_ready("c")
    assert world.status("b")["pid"] == b.pid


def test_taken_over_without_descriptors(world: World) -> None:
    """An agentd that has not enough descriptors for the agents of a dead one loses none, and knows how each ended."""
    names = [f"a{number}" for number in range(8)]
    world.write_card(*(world.agent(name, restart="no", env={"EXIT": "5"}) for name in names))
    world.start()
    starts = {name: world.wait_ready(name) for name in names}
    assert world.process is not None
    before = used(world.process.pid)
    world.crash()
    few = before - 3 * len(names) + 6  # what starting tmux's client takes for a moment is enough for two agents
    lock = world.tmux_socket.with_name(f".{world.tmux_socket.name}.agentd")
    lock.unlink()
    world.spawn()
    wait_for(lock.exists, "its lock, which comes after its own raise of the limit, and long before it opens more")
    pid = world.process.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, hard))
    world.wait_log("no more files may be opened")
    os.kill(starts["a0"].pid, signal.SIGINT)
    os.kill(starts["a7"].pid, signal.SIGINT)
    wait_for(lambda: not lives(starts["a7"].launcher), "the end of one that nobody can watch")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
    world.wait_api()
    for name in names:
        if name in {"a0", "a7"}:
            assert world.wait_status(name, state="failed")["exit"]["code"] == 5
        else:
            assert world.status(name)["pid"] == starts[name].pid
    assert [len(world.starts(name)) for name in names] == [1] * len(names)
    assert not any("bug" in line for line in world.log_lines)
