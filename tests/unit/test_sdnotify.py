"""What systemd is told, and when, on the virtual clock; systemd is a socket that the test owns."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from agentd.lifecycle import State
from agentd.sdnotify import EXTEND_EVERY, PAUSE, Notifier, open_notifier, status_text
from agentd.status import AgentStatus, DaemonStatus, StatusStore

CARD = "/etc/stereos/jcard.toml"


class Systemd:
    """The other end: what has arrived, and when."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(path))
        self._socket.setblocking(False)

    def take(self) -> list[str]:
        """What has arrived since the last time."""
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return messages

    def be_flooded(self) -> None:
        """Have it hold as many messages as it can."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(BlockingIOError):
            while True:
                sender.sendto(b"flood", socket.MSG_DONTWAIT, os.fspath(self.path))

    def close(self) -> None:
        """Close the socket; its path stays, as that of a systemd that is gone."""
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    systemd = Systemd(tmp_path / "notify")
    yield systemd
    systemd.close()


@pytest.fixture
def store() -> StatusStore:
    return StatusStore(DaemonStatus(started=0.0, card=CARD))


@pytest.fixture
def opened() -> Iterator[Callable[..., Notifier]]:
    """Open a notifier with the variables that systemd sets."""
    with ExitStack() as stack:

        def open_with(systemd: Systemd, **more: str) -> Notifier:
            return stack.enter_context(open_notifier({"NOTIFY_SOCKET": str(systemd.path), **more}))

        yield open_with


def _agent(name: str, state: State) -> AgentStatus:
    return AgentStatus(
        name=name, session=name, type="native", harness="custom", wanted="running", state=state, since=1.0
    )


def _stop(store: StatusStore) -> None:
    store.put_daemon(attrs.evolve(store.daemon, state="stopping"))


# What a status says


@pytest.mark.parametrize(
    ("states", "changes", "ready", "expected"),
    [
        ("", {}, True, "no agents"),
        ("", {}, False, "starting"),
        ("", {"state": "stopping"}, True, "stopping"),
        ("running", {}, True, "1 running"),
        ("backoff running running running", {}, True, "3 running, 1 backoff"),
        (" ".join(reversed(State)), {}, True, ", ".join(f"1 {state}" for state in State)),
        ("starting waiting", {}, False, "starting: 1 waiting, 1 starting"),
        ("stopping completed stopping", {"state": "stopping"}, True, "stopping: 2 stopping, 1 completed"),
        ("", {"card_error": "the card is missing"}, True, f"no agents; card {CARD}: the card is missing"),
        (
            "running",
            {"card_error": "line 1, column 2: no\n  x\n  ^"},
            True,
            f"1 running; card {CARD}: line 1, column 2: no",
        ),
        ("", {"card": "/a\nREADY=1", "card_error": "\x1b\udcff"}, True, r"no agents; card /a\nREADY=1: \x1b\udcff"),
    ],
)
def test_status_text(states: str, changes: dict[str, Any], ready: bool, expected: str) -> None:
    """A status counts agents by state in the order of their life, and says what is wrong with the card, on one line."""
    agents = [_agent(str(number), State(state)) for number, state in enumerate(states.split())]
    daemon = attrs.evolve(DaemonStatus(started=0.0, card=CARD), **changes)
    assert status_text(daemon, agents, ready=ready) == expected


def test_status_text_is_short() -> None:
    """A status of any length fits into one message."""
    daemon = DaemonStatus(started=0.0, card=CARD, card_error="☃" * 9000)
    text = status_text(daemon, (), ready=True)
    assert len(text) == 300
    assert text.endswith("☃…")


# The environment


@pytest.mark.parametrize("address", ["/nowhere", ""])
def test_variables_are_taken(address: str) -> None:
    """What systemd asks for is taken out of the environment, whether it can be used or not, and nothing else is."""
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "junk", "WATCHDOG_PID": "1", "WATCHDOG": "mine"}
    with open_notifier(environ):
        assert environ == {"WATCHDOG": "mine"}


async def test_without_systemd(autojump_clock: MockClock, store: StatusStore) -> None:
    """Without NOTIFY_SOCKET there is nothing to tell, and nothing to do."""
    with open_notifier({"WATCHDOG_USEC": "1000000"}) as notifier:
        assert notifier.beat_interval == float("inf")
        notifier.beat()
        await notifier.tell_reload()
        await notifier.tell_reloaded()
        await notifier.tell(store)


@pytest.mark.parametrize(
    ("more", "interval"),
    [
        ({}, float("inf")),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, float("inf")),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "me"}, float("inf")),
        ({"WATCHDOG_USEC": "0"}, float("inf")),
        ({"WATCHDOG_USEC": "-5"}, float("inf")),
        ({"WATCHDOG_USEC": "5 s"}, float("inf")),
    ],
)
async def test_watchdog(
    autojump_clock: MockClock,
    systemd: Systemd,
    opened: Callable[..., Notifier],
    more: dict[str, str],
    interval: float,
) -> None:
    """A beat is sent where systemd waits for one from this process, and is due after half of the time it waits."""
    notifier = opened(systemd, **more)
    assert notifier.beat_interval == interval
    notifier.beat()
    assert systemd.take() == ["WATCHDOG=1"] * (interval < float("inf"))


@pytest.mark.parametrize(("usec", "pause"), [("120000000", 1.0), ("400000", 0.1)])
async def test_beats_are_bounded(
    autojump_clock: MockClock, systemd: Systemd, opened: Callable[..., Notifier], usec: str, pause: float
) -> None:
    """However often it beats, systemd hears of it once a second, or more often where it waits for a short time only."""
    notifier = opened(systemd, WATCHDOG_USEC=usec)
    for _ in range(100):
        notifier.beat()
        await trio.sleep(pause / 10)
    assert len(systemd.take()) == 10


async def test_abstract_socket(autojump_clock: MockClock) -> None:
    """An address that begins with @ is an abstract one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.bind("")  # the kernel chooses an abstract address
        name = theirs.getsockname()[1:].decode()
        with open_notifier({"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "1000000"}) as notifier:
            notifier.beat()
        assert theirs.recv(100) == b"WATCHDOG=1"


# Ready, and what is going on


async def test_ready(
    autojump_clock: MockClock, systemd: Systemd, store: StatusStore, opened: Callable[..., Notifier]
) -> None:
    """systemd is told what is being started, then once that agentd is ready, with its status in the same message."""
    notifier = opened(systemd)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.tell, store)
        await wait_all_tasks_blocked()
        assert systemd.take() == ["STATUS=starting"]
        await trio.sleep(10)
        store.put(_agent("a", State.STARTING))
        await wait_all_tasks_blocked()
        assert systemd.take() == ["STATUS=starting: 1 starting"]
        notifier.ready.set()
        await trio.sleep(10)
        assert systemd.take() == ["READY=1\nSTATUS=1 starting"]
        nursery.cancel_scope.cancel()


async def test_statuses_are_bounded(
    autojump_clock: MockClock, systemd: Systemd, store: StatusStore, opened: Callable[..., Notifier]
) -> None:
    """A thousand changes in a second are a handful of statuses; the first is sent at once, the last one always."""
    notifier = opened(systemd)
    notifier.ready.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.tell, store)
        await trio.sleep(10)
        systemd.take()
        store.put(_agent("0", State.RUNNING))
        await wait_all_tasks_blocked()
        assert systemd.take() == ["STATUS=1 running"]
        for number in range(1, 1000):
            await trio.sleep(0.001)
            store.put(_agent(str(number), State.RUNNING))
        await trio.sleep(PAUSE)
        statuses = systemd.take()
        assert 4 <= len(statuses) <= 6
        assert statuses[-1] == "STATUS=1000 running"
        nursery.cancel_scope.cancel()


async def test_same_status_is_not_repeated(
    autojump_clock: MockClock, systemd: Systemd, store: StatusStore, opened: Callable[..., Notifier]
) -> None:
    """A change that alters no number is not told, nor is anything while nothing changes."""
    notifier = opened(systemd)
    store.put(_agent("a", State.RUNNING))
    notifier.ready.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.tell, store)
        await trio.sleep(1)
        assert systemd.take()[-1] == "READY=1\nSTATUS=1 running"
        store.put(attrs.evolve(_agent("a", State.RUNNING), pid=7))
        await trio.sleep(1000)
        assert systemd.take() == []
        nursery.cancel_scope.cancel()


async def test_reload(autojump_clock: MockClock, systemd: Systemd, opened: Callable[..., Notifier]) -> None:
    """A reload is told with the kernel's monotonic time, as `Type=notify-reload` needs it, and then its end."""
    notifier = opened(systemd)
    await notifier.tell_reload()
    await notifier.tell_reloaded()
    reloading, ready = systemd.take()
    first, second = reloading.split("\n")
    assert (first, ready) == ("RELOADING=1", "READY=1")
    assert second.startswith("MONOTONIC_USEC=")
    assert 0 < int(second.partition("=")[2]) < 1e6 * 1e9


# The stop


async def test_stop(
    autojump_clock: MockClock, systemd: Systemd, store: StatusStore, opened: Callable[..., Notifier]
) -> None:
    """From the beginning of a stop to its end, more time is asked for every 5 s, and the watchdog is fed."""
    notifier = opened(systemd, WATCHDOG_USEC="120000000")
    notifier.ready.set()
    store.put(_agent("a", State.STOPPING))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.tell, store)
        await trio.sleep(1)
        systemd.take()
        _stop(store)
        await wait_all_tasks_blocked()
        extend = "EXTEND_TIMEOUT_USEC=20000000"
        assert set(systemd.take()) == {f"STOPPING=1\n{extend}", "STATUS=stopping: 1 stopping", "WATCHDOG=1"}
        for _ in range(20):
            await trio.sleep(EXTEND_EVERY)
            await wait_all_tasks_blocked()
            assert systemd.take() == [extend, "WATCHDOG=1"]
        nursery.cancel_scope.cancel()
    assert systemd.take() == ["STATUS=stopped"]


async def test_stop_with_a_short_watchdog(
    autojump_clock: MockClock, systemd: Systemd, store: StatusStore, opened: Callable[..., Notifier]
) -> None:
    """While agentd stops, the watchdog is fed in half of the time for which it waits."""
    notifier = opened(systemd, WATCHDOG_USEC="3000000")
    _stop(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.tell, store)
        await wait_all_tasks_blocked()
        systemd.take()
        for _ in range(10):
            await trio.sleep(1.5)
            await wait_all_tasks_blocked()
            assert "WATCHDOG=1" in systemd.take()
        nursery.cancel_scope.cancel()


# A systemd that does not listen


async def test_full_socket(
    autojump_clock: MockClock, systemd: Systemd, store: StatusStore, opened: Callable[..., Notifier]
) -> None:
    """Where systemd reads nothing nobody waits for it; when it reads again, it learns what it has to know."""
    notifier = opened(systemd)
    systemd.be_flooded()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.tell, store)
        store.put(_agent("a", State.RUNNING))
        notifier.ready.set()
        await trio.sleep(10)
        assert set(systemd.take()) == {"flood"}
        await trio.sleep(PAUSE * 2)
        assert systemd.take()[-1] == "READY=1\nSTATUS=1 running"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["gone", "nowhere", "x" * 200])
async def test_dead_socket(
    autojump_clock: MockClock,
    store: StatusStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    """A socket that is gone, was never there or cannot be is one warning with its path, and nothing else."""
    if name == "gone":
        Systemd(tmp_path / name).close()
    with open_notifier({"NOTIFY_SOCKET": str(tmp_path / name), "WATCHDOG_USEC": "1000000"}) as notifier:
        notifier.ready.set()
        _stop(store)
        with trio.move_on_after(100):
            await notifier.tell(store)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(tmp_path / name) in record.getMessage()
