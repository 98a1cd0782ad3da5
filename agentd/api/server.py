"""Serving the API on a listening socket, and ending in bounded time whatever the clients do.

hypercorn and quart-trio, taken as they are, have faults that a supervisor cannot live with; each cure says which.
"""

import logging
import math
import os
import socket
import time
from functools import partial

import attrs
import hypercorn.trio.run
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope

from agentd.api.crowd import bound_crowd, cut_off_all
from agentd.api.socket import BACKLOG
from agentd.errors import is_shortage, shortage_words

_log = logging.getLogger(__name__)

# That it runs, and how to quit it, is nothing that hypercorn should tell an operator; what goes wrong in it is.
_hypercorn_log = _log.getChild("hypercorn")
_hypercorn_log.setLevel(logging.WARNING)


class _OnceWhileItLasts(logging.Filter):
    """trio says ten times a second, each time with a traceback, that there is no descriptor for another client."""

    _last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        began = now - self._last > 1
        self._last = now
        record.exc_info = None
        return began


logging.getLogger("trio.serve_listeners").addFilter(_OnceWhileItLasts())

_PAUSE = 0.5  # Before hypercorn is started again: clients wait in the backlog meanwhile.
_CUT_INTERVAL = 0.05
_CUT_TRIES = 100


@attrs.frozen(kw_only=True)
class Limits:
    """How long a client may take, in seconds, and how many requests one connection may carry."""

    idle: float = 7.0
    """From connecting, or from the last answer, to a complete request.

    Longer than the 5 s at which `stereosd` polls: its connection is not closed under it just as it asks.
    """
    read: int = 5
    """Between two pieces of what a client sends; hypercorn does not apply `idle` to all that it speaks."""
    body: int = 1 << 20
    """How many bytes of a request's body are waited for; none is of any use."""
    requests: int = 1000
    """The last of its answers says `Connection: close`."""
    connections: int = 1000
    """And no more than a quarter of the descriptors that agentd may have: they are needed for agents."""


async def serve_api(  # noqa: PLR0913 - only the first three are ever given by the daemon
    app: ASGIFramework,
    sock: socket.socket,
    *,
    shutdown: trio.Event,
    graceful: float = 1.0,
    limits: Limits = Limits(),
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer on this listening socket, which stays the caller's, until `shutdown` is set or this is cancelled.

    After `shutdown`, clients have `graceful` seconds to take the answers that they asked for, and are then cut off.
    """
    exchange = _Exchange(app, graceful=graceful, limits=limits)
    announced = short = False
    while not shutdown.is_set():
        try:
            async with trio.open_nursery() as nursery:
                config = _hypercorn_config(os.dup(sock.fileno()), graceful, limits)
                await nursery.start(partial(_serve_once, exchange, config, sock, limits.connections, shutdown))
                if not announced:
                    task_status.started()
                    announced = True
        # A client that breaks HTTP in one of several ways raises something in hypercorn that nobody there catches, of
        # any type (KeyError, UnicodeDecodeError, h11's own): that must neither end agentd nor its API.
        except* Exception as failure:
            if (shortage := _shortage(failure)) is not None:
                if not short:
                    _log.warning("the API does not answer just now: %s", shortage_words(shortage))
                short = True
            elif announced:
                _log.exception("the API's server failed, probably at what a client sent; it is started again")
            else:
                raise
        with trio.move_on_after(_PAUSE):
            await shutdown.wait()


def _shortage(failure: BaseException) -> OSError | None:
    """Return what a failure is for want of, if that is all."""
    if isinstance(failure, BaseExceptionGroup):
        found = [_shortage(error) for error in failure.exceptions]
        return found[0] if all(found) else None
    return failure if isinstance(failure, OSError) and is_shortage(failure) else None


class _Exchange:
    """An application, and around it what makes one request and its whole answer come after each other.

    quart-trio cancels its request as soon as it handed over the last piece, when hypercorn is still inside that
    `send()` and about to close or to recycle the connection: so none is ever closed, and no idle timeout begins.
    And when a request goes wrong while it is being answered, hypercorn speaks from two tasks at once and fails.
    """

    def __init__(self, app: ASGIFramework, *, graceful: float, limits: Limits) -> None:
        self._app = app
        self._graceful = graceful
        self._limits = limits

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        cut_off = False

        async def send_whole(message: ASGISendEvent) -> None:
            nonlocal cut_off
            if cut_off:
                return  # hypercorn calls a next piece unexpected, and our application's mistake
            # The bound holds for hypercorn's own waits; its writes are shielded in there, see `_cut_off_late`.
            with trio.move_on_after(self._graceful, shield=True) as bound:
                await send(message)
            cut_off = bound.cancelled_caught

        if scope["type"] == "http":
            if not await self._read_away(receive):
                return
            if not scope["path"].startswith("/"):
                # Quart raises at some of these (`GET [ HTTP/1.1`); none of them names anything here.
                scope = {**scope, "path": f"/{scope['path']}"}
        await self._app(scope, receive, send_whole)
        if cut_off:
            # hypercorn holds back the next request of the connection until this answer is whole, for ever and whether
            # the client is there or not: its nursery ends, of which this is a task.
            connection = trio.lowlevel.current_task().parent_nursery
            assert connection is not None, "only trio's own root has none"
            connection.cancel_scope.cancel("an answer was cut off")

    async def _read_away(self, receive: ASGIReceiveCallable) -> bool:
        """Wait for the end of a request, whose body says nothing here, and tell whether there is anybody to answer.

        One that is too long or too slow gets its answer before its end, after which hypercorn closes the connection.
        """
        size = 0
        with trio.move_on_after(self._limits.idle):
            while size <= self._limits.body:
                message = await receive()
                if message["type"] != "http.request":
                    return False
                if not message["more_body"]:
                    break
                size += len(message["body"])
        return True


async def _serve_once(  # noqa: PLR0913 - what one server needs to know
    app: ASGIFramework,
    config: Config,
    sock: socket.socket,
    most: int,
    shutdown: trio.Event,
    *,
    task_status: trio.TaskStatus[list[str]],
) -> None:
    """Run hypercorn until `shutdown`, or until it fails."""
    ending, ended = trio.Event(), trio.Event()

    async def end() -> None:
        try:
            await shutdown.wait()
        finally:
            ending.set()  # hypercorn cancels this when it fails: its clients must not hold it up then either.

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cut_off_late, sock, ending, ended, config.graceful_timeout)
        nursery.start_soon(bound_crowd, sock, most)
        try:
            await serve(app, config, shutdown_trigger=end, mode="asgi", task_status=task_status)
        finally:
            ending.set()
            ended.set()
            nursery.cancel_scope.cancel()


class _Connection(TCPServer):
    """A connection that ends when its client left, and not when it has been idle for long enough after that.

    Nothing public in hypercorn leads there, and clients that come and go took a descriptor each for seven seconds.
    """

    _left = False

    async def _read_data(self) -> None:
        await super()._read_data()
        self._left = True
        await self.idle_task.stop()

    async def _idle_timeout(self) -> None:
        if not self._left:  # its last answer may come after that
            await super()._idle_timeout()


hypercorn.trio.run.TCPServer = _Connection  # type: ignore[attr-defined]


def _hypercorn_config(descriptor: int, graceful: float, limits: Limits) -> Config:
    """Tell hypercorn everything that it should know; it closes the descriptor."""
    config = Config()
    config.bind = [f"fd://{descriptor}"]
    config.backlog = BACKLOG
    config.accesslog = None
    config.errorlog = _hypercorn_log
    config.include_server_header = False
    config.graceful_timeout = graceful
    config.keep_alive_timeout = limits.idle
    config.keep_alive_max_requests = limits.requests
    config.read_timeout = limits.read
    return config


async def _cut_off_late(sock: socket.socket, ending: trio.Event, ended: trio.Event, graceful: float) -> None:
    """Cut off the clients that hold up the end: hypercorn waits for ever on one that does not read its answer."""
    try:
        await ending.wait()
    finally:
        with trio.CancelScope(shield=True):
            with trio.move_on_after(graceful):
                await ended.wait()
            for _ in range(_CUT_TRIES):
                if ended.is_set():
                    break
                cut_off_all(sock)
                with trio.move_on_after(_CUT_INTERVAL):
                    await ended.wait()
            else:
                _log.error("the API's server does not end although all its clients were cut off")
