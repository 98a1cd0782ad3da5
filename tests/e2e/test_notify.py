"""What agentd, as a process, tells systemd; systemd is a socket that the test owns."""

import os
import re
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from tests.e2e.outside import PATIENCE, World, wait_for

MANY = 40


class Systemd:
    """The other end: every message that has arrived, in order."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self.messages: list[str] = []

    def wait(self, line: str, *, after: int = 0) -> int:
        """Wait for a message with that line, and return how many have arrived with it."""
        deadline = time.monotonic() + PATIENCE
        index = after
        while True:
            while index < len(self.messages):
                index += 1
                if line in self.messages[index - 1].split("\n"):
                    return index
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                self.messages.append(self._socket.recv(4096).decode())
            except TimeoutError:
                pytest.fail(f"in vain: {line} after {self.messages}")

    def read_all(self) -> list[str]:
        """Read what has arrived, and return every message so far."""
        self._socket.setblocking(False)
        while True:
            try:
                self.messages.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return self.messages

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def systemd(world: World, request: pytest.FixtureRequest) -> Iterator[Systemd]:
    address = str(world.top / "notify") if request.param == "path" else f"@{world.top}/notify"
    systemd = Systemd(address)
    world.env["NOTIFY_SOCKET"] = address
    yield systemd
    systemd.close()


only_by_path = pytest.mark.parametrize("systemd", ["path"], indirect=True)


def test_life(world: World, systemd: Systemd) -> None:
    """systemd is told when agentd is ready, what is going on, that it stops and needs more time, and the end."""
    world.write_card(world.agent("a", env={"LINGER": "0.5"}), world.agent("b", workdir=f"{world.top}/nowhere"))
    world.spawn()
    ready = systemd.wait("READY=1")
    assert set(world.agents()) == {"a", "b"}, "the API answers, and the first look is done"
    world.wait_ready("a")
    seen = systemd.wait("STATUS=1 waiting, 1 running")
    world.write_card_text("[[agents]\n")
    status = f"STATUS=1 waiting, 1 running; card {world.card}: line 1, column "
    wait_for(lambda: any(message.startswith(status) for message in systemd.read_all()), "the error in the card")
    assert seen >= ready
    world.signal(signal.SIGTERM)
    stopping = systemd.wait("STOPPING=1")
    assert re.fullmatch(r"STOPPING=1\nEXTEND_TIMEOUT_USEC=\d{8}", systemd.messages[stopping - 1])
    assert world.process is not None
    assert world.process.wait(PATIENCE) == 0
    systemd.wait("STATUS=stopped", after=stopping)
    messages = systemd.read_all()
    assert sum("READY=1" in message for message in messages) == 1
    assert any(message.startswith("STATUS=stopping: ") for message in messages)
    assert not any("WATCHDOG" in message for message in messages)


@only_by_path
def test_ready_without_a_card(world: World, systemd: Systemd) -> None:
    """Without a card agentd is ready all the same, and its status says what is missing."""
    world.spawn()
    systemd.wait(f"STATUS=no agents; card {world.card}: the card is missing")
    systemd.wait("READY=1")


@only_by_path
def test_many_agents_are_few_messages(world: World, systemd: Systemd) -> None:
    """While many agents start, systemd hears a few times a second of it, and in the end that all of them run."""
    world.write_card(*(world.agent(f"a{number}") for number in range(MANY)))
    began = time.monotonic()
    world.spawn()
    systemd.wait(f"STATUS={MANY} running")
    assert len(systemd.read_all()) <= 5 * (time.monotonic() - began) + 3


@only_by_path
@pytest.mark.parametrize("pid", [None, "1"])
def test_watchdog(world: World, systemd: Systemd, pid: str | None) -> None:
    """The watchdog is fed in time, while agentd stops, too, and only where it is meant for this process."""
    world.env |= {"WATCHDOG_USEC": "600000"} | ({} if pid is None else {"WATCHDOG_PID": pid})
    world.write_card(world.agent("a", grace_period="5s", env={"LINGER": "1.5"}))
    world.start()
    start = world.wait_ready("a")
    gaps = []
    if pid is None:
        for _ in range(2):
            seen, began = len(systemd.read_all()), time.monotonic()
            for _ in range(4):
                seen = systemd.wait("WATCHDOG=1", after=seen)
                gaps.append(time.monotonic() - began)
                began = time.monotonic()
            world.signal(signal.SIGTERM)  # the second time it is being stopped
    assert all(gap < 0.6 for gap in gaps), gaps
    assert world.stop() == 0
    assert ("WATCHDOG=1" in systemd.read_all()) == (pid is None)
    assert {name for name in start.env if name.startswith(("WATCHDOG", "NOTIFY"))} == set()


@only_by_path
def test_reload(world: World, systemd: Systemd) -> None:
    """A reload lasts until what was written right before it is in force."""
    world.write_card(world.agent("a"))
    world.spawn()
    ready = systemd.wait("READY=1")
    for number in range(3):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        world.write_card(world.agent("a"), world.agent(f"b{number}", workdir=f"{world.top}/nowhere"))
        world.look()
        reloading = systemd.wait("RELOADING=1", after=ready)
        stamp = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", systemd.messages[reloading - 1])
        assert stamp is not None
        assert before <= int(stamp[1]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        ready = systemd.wait("READY=1", after=reloading)
        assert f"b{number}" in world.agents()


@only_by_path
def test_reload_while_starting(world: World, systemd: Systemd) -> None:
    """A reload that is ordered while agentd starts comes after the start, so that its end is not taken for that."""
    world.write_card(world.agent("a"))
    world.spawn()
    systemd.wait("STATUS=starting")
    world.look()
    ready = systemd.wait("READY=1")
    assert not any("RELOADING=1" in message for message in systemd.messages[:ready])
    assert "a" in world.agents()
    reloading = systemd.wait("RELOADING=1", after=ready)
    systemd.wait("READY=1", after=reloading)


@only_by_path
def test_stop_while_reloading(world: World, systemd: Systemd) -> None:
    """A stop in the middle of a reload is a stop like any other."""
    world.write_card(world.agent("a"))
    world.spawn()
    world.wait_api()
    world.look()
    reloading = systemd.wait("RELOADING=1")
    world.signal(signal.SIGTERM)
    systemd.wait("STOPPING=1", after=reloading)
    assert world.stop() == 0
    assert systemd.read_all()[-1] == "STATUS=stopped"


@pytest.mark.parametrize("listened", [False, True])
def test_nobody_listens(world: World, listened: bool) -> None:
    """A notification socket that is gone is one warning, and agentd goes on as without."""
    path = world.top / "notify"
    if listened:
        Systemd(os.fspath(path)).close()
    world.env |= {"NOTIFY_SOCKET": os.fspath(path), "WATCHDOG_USEC": "600000"}
    world.write_card(world.agent("a"))
    world.start()
    world.wait_ready("a")
    world.look()
    assert world.stop() == 0
    assert sum("NOTIFY_SOCKET" in line for line in world.log_lines) == 1
