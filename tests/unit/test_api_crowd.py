"""Clients in crowds, and clients of every bad kind at once: the API answers, and descriptors come back."""

import contextlib
import logging
import os
import random
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from agentd.api.server import Limits
from tests.unit.test_api_server import GET, SOON, Server, fail, serving

_HEALTH = GET.replace(b"agents", b"health")
_HEAD = GET[:-2]
_BAD = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(range(256)),
    _HEAD + b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n",
    _HEAD + b"Upgrade: h2c\r\nHTTP2-Settings: !!\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n",
    _HEAD + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    _HEAD + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://x/v1/health HTTP/1.1\r\nHost: x\r\n\r\n",
    _HEAD + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    _HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    _HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    _HEAD + b"Content-Length: 99999999999999999999\r\n\r\nx",
    _HEAD + b"Content-Length: -1\r\n\r\n",
    _HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"GET /%ff%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: \xff\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\0" * 1000,
    b"\r\n" * 1000,
    _HEAD + b"X: " + b"a" * (1 << 20) + b"\r\n\r\n",
    _HEAD + b"X: a\r\n" * 100_000 + b"\r\n",
    GET * 300,
    b"",
    GET[:20],
)


def _open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def _connect(server: Server) -> trio.SocketStream:
    """Connect as soon as the backlog has room."""
    while True:
        try:
            return await trio.open_unix_socket(os.fspath(server.path))
        except BlockingIOError:
            await trio.sleep(0.01)


async def _health(server: Server) -> float:
    """Ask on a connection of its own; return how many seconds the answer took."""
    began = trio.current_time()
    async with await _connect(server) as stream:
        await stream.send_all(_HEALTH)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
    return trio.current_time() - began


@asynccontextmanager
async def _polled(server: Server) -> AsyncIterator[list[float]]:
    """Ask for the health all the time; the list has how many seconds each answer took."""
    took: list[float] = []

    async def poll() -> None:
        while True:
            took.append(await _health(server))
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll)
        yield took
        nursery.cancel_scope.cancel()


async def _until(true: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not true():  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.01)


async def _say(stream: trio.SocketStream, said: bytes) -> None:
    """Say so much of it as the other side takes."""
    with trio.move_on_after(0.3), contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(said)


async def test_bad_clients_of_every_kind_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With half, endless, broken and unread requests at once, health answers, a stop is quick, nothing is left over."""
    before = _open_descriptors()
    async with serving(tmp_path, graceful=0.3) as server, _polled(server) as took:
        streams = [await _connect(server) for _ in _BAD]
        async with trio.open_nursery() as nursery:
            for stream, said in zip(streams, _BAD, strict=True):
                nursery.start_soon(_say, stream, said)
        await _until(lambda: len(took) > 5)
        assert max(took) < 2 * SOON
        assert await _health(server) < 2 * SOON
        assert await server.stop() < 0.3 + 2 * SOON
    for stream in streams:
        await stream.aclose()
    assert _open_descriptors() == before
    assert caplog.records == []


async def test_random_requests(tmp_path: Path) -> None:
    """After hundreds of damaged requests, and clients that reset their connection, health answers as before."""
    choose = random.Random(5)  # noqa: S311 - the same requests each time
    before = _open_descriptors()
    async with serving(tmp_path, graceful=0.3, limits=Limits(idle=0.3, read=1)) as server:
        for _ in range(300):
            said = bytearray(choose.choice(_BAD)[:500])
            for _ in range(choose.randint(0, 4)):
                at = choose.randint(0, len(said))
                said[at : at + choose.randint(0, 5)] = choose.randbytes(choose.randint(0, 4))
            stream = await _connect(server)
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(said)
                if choose.random() < 0.5:
                    with trio.move_on_after(0.01):
                        await stream.receive_some()
            if choose.random() < 0.3:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await stream.aclose()
        # It may be starting again after a failure of hypercorn.
        assert await _health(server) < 0.5 + 0.3 + 2 * SOON
        await server.stop()
    assert _open_descriptors() == before


async def test_pipelined_requests(tmp_path: Path) -> None:
    """A hundred requests in one packet have a hundred answers."""
    async with serving(tmp_path) as server, server.client() as client:
        await client.stream.send_all(_HEALTH * 100)
        for _ in range(100):
            assert (await client.answer()).status == 200


async def test_five_hundred_idle_clients(tmp_path: Path) -> None:
    """Five hundred idle clients keep their connections, and neither health nor a stop takes longer for them."""
    before = _open_descriptors()
    async with contextlib.AsyncExitStack() as stack, serving(tmp_path, graceful=0.5) as server:
        async with _polled(server) as took:
            streams = [await stack.enter_async_context(await _connect(server)) for _ in range(500)]
            assert max(took) < 2 * SOON
        with trio.move_on_after(0.2):
            assert await streams[0].receive_some(), "the oldest connection was closed"
        assert await _health(server) < 2 * SOON
        assert await server.stop() < 0.5 + 2 * SOON
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert _open_descriptors() == before


async def test_too_many_clients(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of too many connections those of clients that left are closed, then the oldest; a newcomer is answered."""
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(tmp_path, limits=Limits(connections=10)))
        alone = _open_descriptors()
        oldest = await stack.enter_async_context(server.client())
        await oldest.ask()
        for _ in range(100):
            assert await _health(server) < 2 * SOON
        await oldest.ask()
        crowd = [await stack.enter_async_context(await _connect(server)) for _ in range(30)]
        assert await _health(server) < 2 * SOON
        assert await oldest.until_closed() < 2 * SOON
        # Both ends of ten connections are here, and those of the clients' that were closed.
        await _until(lambda: _open_descriptors() <= alone + 1 + len(crowd) + 10)
        await crowd[-1].send_all(_HEALTH)
        assert (await crowd[-1].receive_some()).startswith(b"HTTP/1.1 200")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the API has more than 10 connections" in caplog.text


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """Let the process have 20 more descriptors than are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 20
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_no_descriptor_for_another_client(
    tmp_path: Path, few_descriptors: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While descriptors are exhausted by others that is said once, and the API answers again when there are some."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    refused: list[logging.LogRecord] = []
    accepting = logging.getLogger("trio.serve_listeners")
    said_once = accepting.filter

    def note(record: logging.LogRecord) -> bool | logging.LogRecord:
        refused.append(record)
        return said_once(record)

    monkeypatch.setattr(accepting, "filter", note)
    async with serving(tmp_path) as server, server.client() as client:
        await client.ask()
        waiting = socket.socket(socket.AF_UNIX)
        with contextlib.ExitStack() as held, waiting:
            resource.setrlimit(resource.RLIMIT_NOFILE, (few_descriptors, hard))
            with contextlib.suppress(OSError):
                while True:
                    held.callback(os.close, os.dup(0))
            waiting.setblocking(False)
            waiting.connect(os.fspath(server.path))
            await _until(lambda: len(refused) > 3)
            assert (await client.ask()).status == 200
            held.close()
            waiting.send(_HEALTH)
            with trio.fail_after(5):
                await trio.lowlevel.wait_readable(waiting)
            assert waiting.recv(100).startswith(b"HTTP/1.1 200")
        await fail(server)
    said = [record for record in caplog.records if record.name == "trio.serve_listeners"]
    assert [record.exc_info for record in said] == [None]
