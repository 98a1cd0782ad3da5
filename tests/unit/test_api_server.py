"""The API's socket and server: real Unix sockets, the real clock, clients in the same event loop, measured bounds."""

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from agentd.api.app import create_app
from agentd.api.server import Limits, serve_api
from agentd.api.socket import bind_api_socket, remove_api_socket, socket_identity
from agentd.errors import StartupError
from agentd.lifecycle import State
from agentd.status import AgentStatus, DaemonStatus, StatusStore

SOON = 0.5  # What counts as at once on a busy machine.
GET = b"GET /v1/agents HTTP/1.1\r\nHost: x\r\n\r\n"
GET_AND_CLOSE = b"GET /v1/agents HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST /v1/agents HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
FAILING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex(
    "000000040000000000"  # settings
    "00000a010500000001" + "8286" + "4403" + b"/\xff\xfe".hex() + "410178"  # GET of a path that is not ASCII
)
"""An HTTP/2 request at which hypercorn raises a UnicodeDecodeError that nobody there catches."""


def store_of_many() -> StatusStore:
    store = StatusStore(DaemonStatus(started=trio.current_time(), card="/card"))
    for name in ("é ☃", *map(str, range(100))):
        store.put(
            AgentStatus(
                name=name,
                session=name,
                type="native",
                harness="custom",
                wanted="running",
                state=State.RUNNING,
                since=0,
            )
        )
    return store


@attrs.frozen
class Answer:
    """One answer as it came over the socket."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection to the API, which reads no more than it is told to."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._read = bytearray()

    async def ask(self, request: bytes = GET) -> Answer:
        """Send one request and read its answer."""
        await self.stream.send_all(request)
        return await self.answer(with_body=not request.startswith(b"HEAD"))

    async def answer(self, *, with_body: bool = True) -> Answer:
        """Read one answer."""
        while b"\r\n\r\n" not in self._read:
            await self._read_more()
        head, _, rest = bytes(self._read).partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {key.lower(): value for key, value in (line.split(": ", 1) for line in lines)}
        length = int(headers["content-length"]) if with_body else 0
        self._read = bytearray(rest)
        while len(self._read) < length:
            await self._read_more()
        body = bytes(self._read[:length])
        del self._read[:length]
        return Answer(int(status.split()[1]), headers, body)

    async def until_closed(self) -> float:
        """Read to the end, and return how many seconds that took; a connection that was reset is closed too."""
        begun = trio.current_time()
        with contextlib.suppress(trio.BrokenResourceError):
            while await self.stream.receive_some():
                pass
        return trio.current_time() - begun

    async def _read_more(self) -> None:
        data = await self.stream.receive_some()
        assert data, "the connection was closed before the answer was whole"
        self._read += data


@attrs.frozen
class Server:
    """A running API server."""

    path: Path
    shutdown: trio.Event
    ended: trio.Event
    scope: trio.CancelScope

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """Connect to it."""
        async with await trio.open_unix_socket(os.fspath(self.path)) as stream:
            yield Client(stream)

    async def stop(self) -> float:
        """Stop it as agentd does, and return how many seconds that took."""
        begun = trio.current_time()
        self.shutdown.set()
        await self.ended.wait()
        return trio.current_time() - begun


@asynccontextmanager
async def serving(tmp_path: Path, *, graceful: float = 1.0, limits: Limits | None = None) -> AsyncIterator[Server]:
    """Serve an app with a hundred agents; everything in the body has ten seconds."""
    path = tmp_path / "api.sock"
    server = Server(path, trio.Event(), trio.Event(), trio.CancelScope())
    app = create_app(store_of_many(), version="1")

    async def serve_to_the_end(task_status: trio.TaskStatus[None]) -> None:
        try:
            with server.scope:
                await serve_api(
                    app,
                    sock,
                    shutdown=server.shutdown,
                    graceful=graceful,
                    limits=limits or Limits(),
                    task_status=task_status,
                )
        finally:
            server.ended.set()

    with bind_api_socket(path, gid=None) as sock, trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_to_the_end)
            yield server
            server.shutdown.set()


async def stop_reading(client: Client) -> None:
    """Ask for far more than the socket's buffers hold, read nothing, and wait until the server is stuck with it."""
    await client.stream.send_all(GET * 200)
    await trio.testing.wait_all_tasks_blocked(0.05)


async def fail(server: Server) -> None:
    """Make hypercorn fail, and wait until it has."""
    async with server.client() as client:
        await client.stream.send_all(FAILING)
        await client.until_closed()
        await trio.testing.wait_all_tasks_blocked(0.02)


# --- Answering ---


async def test_the_api_answers_on_its_socket(tmp_path: Path) -> None:
    """One connection carries several requests, and each has its whole answer in JSON."""
    async with serving(tmp_path) as server, server.client() as client:
        for _ in range(3):
            answer = await client.ask()
            assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
            assert len(json.loads(answer.body)) == 101


async def test_clients_may_connect_before_anybody_serves(tmp_path: Path) -> None:
    """A client that connects between the binding and the serving waits and is answered."""
    path = tmp_path / "early.sock"
    shutdown = trio.Event()
    with bind_api_socket(path, gid=None) as sock, trio.fail_after(10):
        async with await trio.open_unix_socket(os.fspath(path)) as stream, trio.open_nursery() as nursery:
            await stream.send_all(GET)
            app = create_app(store_of_many(), version="1")
            await nursery.start(partial(serve_api, app, sock, shutdown=shutdown))
            assert (await Client(stream).answer()).status == 200
            shutdown.set()


async def test_head_has_no_body(tmp_path: Path) -> None:
    """The answer to HEAD is that of GET without its body, and the next answer on the connection is in its place."""
    async with serving(tmp_path) as server, server.client() as client:
        by_head = await client.ask(GET.replace(b"GET", b"HEAD"))
        by_get = await client.ask()
        assert (by_head.status, by_head.body) == (200, b"")
        assert by_head.headers["content-length"] == by_get.headers["content-length"] == str(len(by_get.body))


@pytest.mark.parametrize("method", [b"POST", b"DELETE", b"OPTIONS"])
async def test_other_methods_are_refused_on_the_wire(tmp_path: Path, method: bytes) -> None:
    """The 405 on the wire has `Allow: GET, HEAD` and a JSON error, and the connection goes on."""
    async with serving(tmp_path) as server, server.client() as client:
        answer = await client.ask(GET.replace(b"GET", method))
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
        assert "read-only" in json.loads(answer.body)["error"]
        assert (await client.ask()).status == 200


async def test_a_name_in_unicode_comes_through(tmp_path: Path) -> None:
    """A percent-encoded name is found, and comes back as UTF-8."""
    async with serving(tmp_path) as server, server.client() as client:
        answer = await client.ask(GET.replace(b"agents", b"agents/%C3%89%20%E2%98%83"))
        assert answer.status == 200
        assert '"name":"é ☃"' in answer.body.decode()


@pytest.mark.parametrize("target", [b"[", b"?", b"*", b"http://[", b"http://x/v1/agents"])
async def test_a_strange_target_is_404(tmp_path: Path, target: bytes) -> None:
    """A request whose target is no path is answered by 404 in JSON, not by a failure."""
    async with serving(tmp_path) as server, server.client() as client:
        answer = await client.ask(GET.replace(b"/v1/agents", target))
        assert answer.status == 404
        assert "error" in json.loads(answer.body)


@pytest.mark.parametrize("size", [1, 100_000, 3_000_000])
async def test_a_body_is_of_no_interest(tmp_path: Path, size: int) -> None:
    """A request with a body, however long, is answered like one without, and others are answered meanwhile."""
    async with serving(tmp_path) as server, server.client() as client, trio.open_nursery() as nursery:

        async def send() -> None:
            with contextlib.suppress(trio.BrokenResourceError):  # A body far too long is not read to its end.
                await client.stream.send_all(POST.replace(b"100000", b"%d" % size) + b"x" * size)

        nursery.start_soon(send)
        assert (await client.answer()).status == 405
        async with server.client() as other:
            assert (await other.ask()).status == 200


async def test_a_web_socket_is_refused(tmp_path: Path) -> None:
    """A WebSocket handshake is answered by an error in JSON."""
    upgrade = (
        b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    async with serving(tmp_path) as server, server.client() as client:
        answer = await client.ask(GET.replace(b"\r\n\r\n", upgrade))
        assert answer.status == 400
        assert "error" in json.loads(answer.body)
        assert await client.until_closed() < SOON


# --- Ends of connections ---


async def test_connection_close_is_honoured(tmp_path: Path) -> None:
    """A client that asks for `Connection: close` has its answer and then the end of the connection, at once."""
    async with serving(tmp_path) as server, server.client() as client:
        answer = await client.ask(GET_AND_CLOSE)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.until_closed() < SOON


async def test_an_old_client_has_its_connection_closed(tmp_path: Path) -> None:
    """HTTP/1.0 works, and closes after the answer."""
    async with serving(tmp_path) as server, server.client() as client:
        assert (await client.ask(b"GET /v1/agents HTTP/1.0\r\n\r\n")).status == 200
        assert await client.until_closed() < SOON


@pytest.mark.parametrize("requests", [0, 1, 3])
async def test_an_idle_connection_is_closed(tmp_path: Path, requests: int) -> None:
    """The idle timeout counts from connecting, and from each answer: after it the connection is closed."""
    async with serving(tmp_path, limits=Limits(idle=0.3)) as server, server.client() as client:
        for _ in range(requests):
            await client.ask()
        assert 0.2 < await client.until_closed() < 0.3 + SOON


@pytest.mark.parametrize(
    "half",
    [GET[:20], GET + GET[:20], POST, POST + b"x" * 99, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
    ids=["head", "second", "no body", "body", "http2"],
)
async def test_half_a_request_is_not_waited_for(tmp_path: Path, half: bytes) -> None:
    """A client that stops in the middle of a request loses its connection after the limits."""
    async with serving(tmp_path, limits=Limits(idle=0.3, read=1)) as server, server.client() as client:
        await client.stream.send_all(half)
        assert 0.2 < await client.until_closed() < 1 + SOON


async def test_a_request_that_trickles_in_is_not_waited_for(tmp_path: Path) -> None:
    """A body that comes piece by piece, each in time, has no more time than the idle timeout as a whole."""
    limits = Limits(idle=0.3)
    async with serving(tmp_path, limits=limits) as server, server.client() as client, trio.open_nursery() as nursery:

        async def trickle() -> None:
            await client.stream.send_all(POST)
            with contextlib.suppress(trio.BrokenResourceError):
                while True:
                    await client.stream.send_all(b"x")
                    await trio.sleep(0.05)

        nursery.start_soon(trickle)
        assert 0.2 < await client.until_closed() < 0.3 + SOON


async def test_a_client_that_left_costs_no_descriptor(tmp_path: Path) -> None:
    """Clients that left, with their answer, without waiting for it or without a word, are gone at once."""
    async with serving(tmp_path) as server:
        before = len(os.listdir("/proc/self/fd"))
        for said in (b"", GET, GET[:20], POST):
            async with server.client() as client:
                await client.stream.send_all(said)
                if said == GET:
                    await client.answer()
        for tenth in range(40):  # at each moment while the answer is made
            async with server.client() as client:
                await client.stream.send_all(GET)
                await trio.sleep(tenth / 10_000)
        with trio.fail_after(SOON):
            while len(os.listdir("/proc/self/fd")) > before:  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(0.01)


async def test_a_connection_carries_only_so_many_requests(tmp_path: Path) -> None:
    """The last answer that a connection may carry says `Connection: close`, and then it is closed."""
    async with serving(tmp_path, limits=Limits(requests=3)) as server, server.client() as client:
        answers = [await client.ask() for _ in range(3)]
        assert [answer.headers.get("connection") for answer in answers] == [None, None, "close"]
        assert await client.until_closed() < SOON


# --- Stopping ---


@pytest.mark.parametrize(
    "said", [b"", GET, GET[:20], GET + GET[:20], POST], ids=["nothing", "request", "half", "second half", "no body"]
)
async def test_an_idle_client_does_not_delay_a_stop(tmp_path: Path, said: bytes) -> None:
    """A stop waits neither for idle clients nor for half a request."""
    async with serving(tmp_path, graceful=0.2) as server, server.client() as client:
        await client.stream.send_all(said)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert await server.stop() < 0.2 + SOON
        assert await client.until_closed() < SOON


async def test_a_client_between_two_requests_costs_a_stop_nothing(tmp_path: Path) -> None:
    """With a client that has its answer and keeps its connection, a stop is over long before the graceful time."""
    async with serving(tmp_path, graceful=5.0) as server, server.client() as client:
        await client.ask()
        assert await server.stop() < SOON


async def test_a_client_that_stops_reading_delays_a_stop_by_the_graceful_time(tmp_path: Path) -> None:
    """A client that does not read its answers is cut off when the graceful time is over."""
    async with serving(tmp_path, graceful=0.3) as server, server.client() as client:
        await stop_reading(client)
        assert 0.2 < await server.stop() < 0.3 + SOON


async def test_a_slow_client_gets_its_answers_in_the_graceful_time(tmp_path: Path) -> None:
    """A client that begins to read after the stop began, but within the graceful time, still gets its whole answer."""
    async with serving(tmp_path, graceful=1.0) as server, server.client() as client:
        await stop_reading(client)
        server.shutdown.set()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert len(json.loads((await client.answer()).body)) == 101
        await client.until_closed()
        await server.ended.wait()


async def test_a_cancelled_server_ends_too(tmp_path: Path) -> None:
    """When it is cancelled instead of stopped, a client that does not read is cut off in the same time."""
    async with serving(tmp_path, graceful=0.3) as server, server.client() as client:
        await stop_reading(client)
        begun = trio.current_time()
        server.scope.cancel()
        await server.ended.wait()
        assert trio.current_time() - begun < 0.3 + SOON


async def test_only_the_apis_connections_are_cut_off(tmp_path: Path) -> None:
    """Other Unix sockets of the process, the listening one of the API included, stay as they are."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with serving(tmp_path, graceful=0.1) as server, server.client() as client:
            await stop_reading(client)
            await server.stop()
            async with server.client():
                pass  # It still listens, as it is the caller's.
        ours.send(b"x")
        assert theirs.recv(1) == b"x"


async def test_descriptors_come_back(tmp_path: Path) -> None:
    """After clients of every kind, a failure of hypercorn and a stop, no descriptor is left over."""
    before = len(os.listdir("/proc/self/fd"))
    async with serving(tmp_path, graceful=0.1) as server:
        async with server.client() as stuck, server.client() as idle, server.client() as gone:
            await stop_reading(stuck)
            await idle.ask()
            await gone.stream.send_all(POST)
        await fail(server)
        async with server.client() as client:
            await client.ask()
        await server.stop()
    assert len(os.listdir("/proc/self/fd")) == before


# --- Failures ---


async def test_a_client_that_pipelines_and_does_not_read_costs_no_descriptor(tmp_path: Path) -> None:
    """A client that asks much at once, reads nothing for longer than the graceful time, and leaves, is gone then."""
    async with serving(tmp_path, graceful=0.2) as server:
        before = len(os.listdir("/proc/self/fd"))
        async with server.client() as client:
            await stop_reading(client)
            await trio.sleep(0.5)
        with trio.fail_after(5):
            while len(os.listdir("/proc/self/fd")) > before:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.05)


async def test_a_client_that_makes_hypercorn_fail_does_not_end_the_api(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure of hypercorn is logged with its traceback, and the next client is answered."""
    async with serving(tmp_path) as server:
        await fail(server)
        async with server.client() as client:
            assert (await client.ask()).status == 200
    assert "the API's server failed" in caplog.text
    assert "UnicodeDecodeError" in caplog.text


async def test_a_client_that_does_not_read_cannot_hold_up_the_next_server(tmp_path: Path) -> None:
    """After a failure the clients of the failed server have the graceful time, and then the API answers again."""
    async with serving(tmp_path, graceful=0.2) as server, server.client() as stuck:
        await stop_reading(stuck)
        begun = trio.current_time()
        await fail(server)
        async with server.client() as client:
            assert (await client.ask()).status == 200
        assert trio.current_time() - begun < 0.2 + 0.5 + SOON


async def test_a_client_that_leaves_in_the_middle_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients that go away at any point of a request leave no word in the log."""
    async with serving(tmp_path, limits=Limits(idle=0.1)) as server:
        for said in (b"", GET[:20], GET, GET * 100, POST, POST + b"x" * 50_000):
            async with server.client() as client:
                await client.stream.send_all(said)
            async with server.client() as client:
                await client.stream.send_all(said)
                await client.stream.send_eof()
                await client.until_closed()
    assert caplog.records == []


async def test_a_server_that_cannot_start_is_loud() -> None:
    """What fails before the first client could be served is raised to the caller."""
    closed = socket.socket(socket.AF_UNIX)
    closed.close()
    with pytest.raises(ExceptionGroup):
        await serve_api(create_app(store_of_many(), version="1"), closed, shutdown=trio.Event())


# --- The socket ---


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """Give a directory, and let the process not be root while the test runs."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        root = os.geteuid() == 0
        if root:
            os.chown(directory, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(directory)
        finally:
            if root:
                os.seteuid(0)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_the_socket_has_its_mode_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    """The socket is 0660, and of our own group unless told otherwise."""
    with umask(mask), bind_api_socket(tmp_path / "s", gid=None):
        found = (tmp_path / "s").stat()
        assert (oct(found.st_mode & 0o777), found.st_gid) == ("0o660", os.getegid())


def test_the_socket_never_has_another_mode(tmp_path: Path) -> None:
    """Not even for a moment, and not with an empty umask, may anybody else connect."""
    path = tmp_path / "s"
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            with contextlib.suppress(FileNotFoundError):
                seen.add(path.stat().st_mode & 0o777)

    watcher = threading.Thread(target=watch)
    watcher.start()
    deadline = time.monotonic() + 20
    times = 0
    with umask(0):
        # On a busy machine the watcher may not be there in time for any of the first.
        while times < 300 or (not seen and time.monotonic() < deadline):
            bind_api_socket(path, gid=None).close()
            path.unlink()
            times += 1
    done.set()
    watcher.join()
    assert {oct(mode) for mode in seen} == {"0o660"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give to any group")
def test_the_socket_is_given_to_the_group(tmp_path: Path) -> None:
    """The socket belongs to the group that it is told."""
    with bind_api_socket(tmp_path / "s", gid=54321):
        assert (tmp_path / "s").stat().st_gid == 54321


def test_a_group_of_others_is_refused(unprivileged: Path) -> None:
    """Who is no member of the group is told so, and no socket is left behind."""
    with pytest.raises(StartupError, match="group 54321, of which this user is no member: see -admin-group"):
        bind_api_socket(unprivileged / "s", gid=54321)
    assert os.listdir(unprivileged) == []


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    """A socket on which nobody listens any more makes room."""
    path = tmp_path / "s"
    bind_api_socket(path, gid=None).close()
    with bind_api_socket(path, gid=None), socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))


def test_a_live_socket_is_not_taken_over(tmp_path: Path) -> None:
    """A socket on which somebody listens, even with a full backlog, is refused and goes on working."""
    path = tmp_path / "s"
    with contextlib.ExitStack() as stack:
        owner = stack.enter_context(bind_api_socket(path, gid=None))
        owner.listen(0)
        for _ in range(2):
            with pytest.raises(StartupError, match=r"another agentd or program owns the API socket .*/s: stop it"):
                bind_api_socket(path, gid=None)
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(0)
            client.connect_ex(os.fspath(path))
        owner.settimeout(1)
        owner.accept()[0].close()


def test_a_socket_of_another_kind_is_not_taken_over(tmp_path: Path) -> None:
    """A socket of which nobody can tell whether somebody uses it is refused."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(os.fspath(tmp_path / "s"))
        with pytest.raises(StartupError, match="cannot tell who owns the socket"):
            bind_api_socket(tmp_path / "s", gid=None)


@pytest.mark.parametrize(
    "make",
    [lambda path: path.write_text("mine"), lambda path: path.mkdir(), lambda path: path.symlink_to("elsewhere")],
    ids=["file", "directory", "symlink"],
)
def test_what_is_no_socket_stays_untouched(tmp_path: Path, make: Callable[[Path], object]) -> None:
    """Anything but a socket at the path is refused and left as it is, links included."""
    path = tmp_path / "s"
    make(path)
    before = path.lstat()
    with pytest.raises(StartupError, match="taken by something that is no socket: move it away"):
        bind_api_socket(path, gid=None)
    assert path.lstat() == before


def test_a_path_that_is_too_long_is_said_before_binding(tmp_path: Path) -> None:
    """107 bytes are a socket's path, 108 are an error that says so, and bytes are counted, not characters."""
    directory = Path("/tmp") / ("é" * 48)
    assert len(os.fsencode(directory / "12345")) == 107
    with pytest.raises(StartupError, match="is missing"):
        bind_api_socket(directory / "12345", gid=None)
    with pytest.raises(StartupError, match="has 108 bytes where the system takes 107: choose a shorter -api-socket"):
        bind_api_socket(directory / "123456", gid=None)


@pytest.mark.parametrize("parent", ["missing", "file"])
def test_a_missing_directory_is_named(tmp_path: Path, parent: str) -> None:
    """Where the directory is missing, or is none, the error names it."""
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match=rf"directory .*/{parent} is missing: make it or choose another -api-socket"):
        bind_api_socket(tmp_path / parent / "s", gid=None)


def test_a_directory_that_cannot_be_written_to_is_named(unprivileged: Path) -> None:
    """Where the directory cannot be written to, the error names it."""
    unprivileged.chmod(0o500)
    with pytest.raises(StartupError, match=f"directory {unprivileged} cannot be written to"):
        bind_api_socket(unprivileged / "s", gid=None)


def test_a_refused_path_costs_no_descriptor(tmp_path: Path) -> None:
    """An attempt to bind that fails leaves no descriptor open."""
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path, tmp_path / "missing" / "s", tmp_path / ("x" * 200)):
        with pytest.raises(StartupError):
            bind_api_socket(path, gid=None)
    assert len(os.listdir("/proc/self/fd")) == before


def test_only_our_own_socket_is_removed(tmp_path: Path) -> None:
    """At the end our socket goes; one that somebody put in its place stays, and none at all is fine."""
    path = tmp_path / "s"
    with bind_api_socket(path, gid=None):
        identity = socket_identity(path)
        path.unlink()
        remove_api_socket(path, identity)
        with bind_api_socket(path, gid=None):
            remove_api_socket(path, identity)
            assert path.is_socket()
            remove_api_socket(path, socket_identity(path))
            assert not path.exists()
