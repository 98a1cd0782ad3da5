"""Who asks the API all the time, and who abuses it."""

import json
import random
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException

from tests.e2e.outside import World
from tests.soak.ledger import Ledger

_PATHS = ("/v1/health", "/v1/agents", "/v1/agents/a01", "/v1/agents/nobody")


class Callers:
    """Threads that ask and abuse until they are paused; that agentd is away is nothing to them."""

    def __init__(self, world: World, ledger: Ledger) -> None:
        self._world = world
        self._ledger = ledger
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to call."""
        self._over.clear()
        self._threads = [
            threading.Thread(target=self._repeat, args=job) for job in ((self._ask, 0.1), (self._abuse, 0.3))
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Call no more, and hold no connection."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, what: Callable[[], None], pause: float) -> None:
        while not self._over.wait(pause):
            with suppress(OSError, HTTPException):
                what()

    def _ask(self) -> None:
        path = random.choice(_PATHS)
        reply = self._world.get(path)
        try:
            reply.json  # noqa: B018 - whether it is JSON
        except json.JSONDecodeError:
            self._ledger.wrong("wrong answers of the API", f"{path}: {reply.body[:200]!r}")
        if reply.status not in {200, 404}:
            self._ledger.wrong("wrong answers of the API", f"{path}: {reply.status} {reply.body[:200]!r}")
        self._ledger.counts["API requests answered"] += 1

    def _abuse(self) -> None:
        what = random.choice((self._be_idle, self._send_half, self._send_garbage, self._never_read, self._leave))
        what()
        self._ledger.counts["API connections abused"] += 1

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(1)
        try:
            connection.connect(str(self._world.api_socket))
        except OSError:
            connection.close()
            raise
        return connection

    def _be_idle(self) -> None:
        held: list[socket.socket] = []
        try:
            held.extend(self._connect() for _ in range(30))
            self._over.wait(random.random())
        finally:
            for connection in held:
                connection.close()

    def _send_half(self) -> None:
        with self._connect() as connection:
            connection.sendall(b"GET /v1/agents HTTP/1.1\r\nHost: x\r\nX: ")
            self._over.wait(random.random() * 2)

    def _send_garbage(self) -> None:
        with self._connect() as connection:
            connection.sendall(random.randbytes(random.randint(1, 100_000)))
            connection.recv(1000)

    def _never_read(self) -> None:
        with self._connect() as connection:
            connection.sendall(b"GET /v1/agents HTTP/1.1\r\nHost: x\r\n\r\n" * 50)  # more answers than a socket holds
            self._over.wait(random.random() * 3)

    def _leave(self) -> None:
        with self._connect() as connection:
            connection.sendall(b"GET /v1/agents HTTP/1.1\r\nHost: x\r\n\r\n")
            connection.recv(random.randint(1, 100))
