"""systemd's notification protocol, sd_notify(3): agentd is ready, is alive, stops and needs its time, and what it does.

Without NOTIFY_SOCKET nothing is sent. No message is waited for, and none that fails is the daemon's trouble.
"""

import logging
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Final

import trio

from agentd.errors import is_shortage
from agentd.lifecycle import State
from agentd.status import AgentStatus, DaemonStatus, StatusStore
from agentd.wording import escape

PAUSE: Final = 0.2
"""Seconds between two statuses: a thousand agents that start are not thousands of messages."""
EXTENSION: Final = 20.0
"""Seconds that a stop may take from each extension on: so soon systemd kills an agentd that hangs, and no other."""
EXTEND_EVERY: Final = 5.0
_BEAT_PAUSE: Final = 1.0
_LONGEST_STATUS: Final = 300
"""Characters; systemd takes messages of up to 4,096 bytes, whole or not at all."""

_log = logging.getLogger(__name__)


class Notifier:
    """Tells systemd what the status store knows."""

    def __init__(self, sender: socket.socket | None, address: bytes, watchdog: float) -> None:
        self._sender = sender
        self._address = address
        self._watchdog = watchdog
        self._next_beat = -math.inf if watchdog < math.inf else math.inf
        self._status = ""
        self._warned = False
        self.ready = trio.Event()
        """To be set when the API answers and the first look is done."""

    @property
    def beat_interval(self) -> float:
        """Seconds after which the next beat should come: half of what systemd waits for; inf without a watchdog."""
        return self._watchdog / 2

    def beat(self) -> None:
        """Tell that what calls this lives, and so feed the watchdog; as often as you like."""
        now = trio.current_time()
        if now >= self._next_beat and self._send("WATCHDOG=1"):
            self._next_beat = now + min(_BEAT_PAUSE, self._watchdog / 4)

    async def tell(self, store: StatusStore) -> None:
        """Tell of each change of the store, that agentd is ready, and that it stops, until cancelled: then all is over.

        A store that says `stopping` has more time asked for, and the watchdog fed, as long as the event loop lives.
        """
        if self._sender is None:
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_status, store)
                nursery.start_soon(self._tell_ready, store)
                nursery.start_soon(self._tell_stop, store)
        finally:
            self._send("STATUS=stopped")

    async def tell_reload(self) -> None:
        """Tell that the configuration is being read again; `tell_reloaded` follows."""
        await self._insist("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    async def tell_reloaded(self) -> None:
        """Tell that what was written before the reload is in force."""
        await self._insist("READY=1")

    async def _tell_status(self, store: StatusStore) -> None:
        while True:
            seen = store.revision
            status = status_text(store.daemon, store.agents, ready=self.ready.is_set())
            sent = status == self._status or self._send(f"STATUS={status}")
            if sent:
                self._status = status
            await trio.sleep(PAUSE)
            if sent:
                await store.wait_for_change(seen)

    async def _tell_ready(self, store: StatusStore) -> None:
        await self.ready.wait()
        self._status = status_text(store.daemon, store.agents, ready=True)
        await self._insist("READY=1", f"STATUS={self._status}")

    async def _tell_stop(self, store: StatusStore) -> None:
        while store.daemon.state != "stopping":
            await store.wait_for_change(store.revision)
        extend = f"EXTEND_TIMEOUT_USEC={EXTENSION * 1e6:.0f}"
        await self._insist("STOPPING=1", extend)
        while True:
            self.beat()
            await trio.sleep(min(EXTEND_EVERY, self.beat_interval))
            self._send(extend)

    async def _insist(self, *lines: str) -> None:
        """Send what must not be lost: systemd would wait for it."""
        while not self._send(*lines):  # noqa: ASYNC110 - systemd's reading is no event of ours
            await trio.sleep(PAUSE)

    def _send(self, *lines: str) -> bool:
        """Send one message, and return whether nothing more can be done for it."""
        if self._sender is None:
            return True
        try:
            self._sender.sendto("\n".join(lines).encode(), socket.MSG_DONTWAIT, self._address)
        except BlockingIOError:
            return False  # systemd has many unread ones
        except OSError as error:
            if is_shortage(error):
                return False
            if not self._warned:
                where = escape(os.fsdecode(self._address).replace("\0", "@", 1))
                _log.warning("systemd cannot be told anything at NOTIFY_SOCKET %s: %s", where, error.strerror or error)
            self._warned = True
        return True


@contextmanager
def open_notifier(environ: MutableMapping[str, str]) -> Iterator[Notifier]:
    """Take what systemd asks for out of the environment, so that no child of ours has it, and speak to it."""
    address = environ.pop("NOTIFY_SOCKET", "")
    usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    if not address:
        yield Notifier(None, b"", math.inf)
        return
    ours = pid in {"", str(os.getpid())}
    watchdog = int(usec) / 1e6 if ours and usec.isdecimal() and int(usec) else math.inf
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        # A first @ is how systemd spells the zero byte of an abstract address.
        yield Notifier(sender, os.fsencode("\0" + address[1:] if address[0] == "@" else address), watchdog)


def status_text(daemon: DaemonStatus, agents: Iterable[AgentStatus], *, ready: bool) -> str:
    """Say in one line how many agents are in which state, and what is wrong with the card."""
    counts = Counter(agent.state for agent in agents)
    states = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
    phase = "stopping" if daemon.state == "stopping" else "" if ready else "starting"
    text = ": ".join(filter(None, (phase, states))) or "no agents"
    if daemon.card_error:
        text += f"; card {daemon.card}: {daemon.card_error.partition(chr(10))[0]}"
    text = escape(text)
    return text if len(text) <= _LONGEST_STATUS else f"{text[: _LONGEST_STATUS - 1]}…"
