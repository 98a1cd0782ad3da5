"""agentd itself: the lifetimes, nested so that the order of a stop holds on every path, failures included.

Signals are outermost, because they are obeyed as long as anything lives; then tmux's connection, because stops use it;
then the services (the API), which answer until the last agent is gone; innermost the agents (reconciler and runs).
What ends is always the inner one first.
"""

import logging
import math
import signal
import socket
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Generator
from contextlib import contextmanager
from functools import partial
from types import FrameType

import attrs
import trio

from agentd import __version__
from agentd.api_socket import bind_api_socket, remove_api_socket, socket_identity
from agentd.inputs import InputReader
from agentd.processes import Scanner
from agentd.reconciler import Reconciler
from agentd.run import Looks, Surroundings
from agentd.settings import Settings
from agentd.status import DaemonStatus, StatusStore
from agentd.tmux import Tmux, open_tmux
from agentd.tmux_sessions import TmuxSessions
from agentd.watch import Watch

LAUNCHES = 8
"""Launches under way at once: 100 agents come up without starving each other (measured, see docs/design.md)."""
CONNECT_PATIENCE = 2.0
"""Seconds for which a stop still waits for the first connection to tmux: with it, what it has started can be ended."""
LAST_SWEEP_LIMIT = 40.0
"""Seconds for the sweep that follows the stops, when one of them was itself broken."""
END_SERVER_LIMIT = 15.0
"""Seconds for the end of the tmux server."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = logging.getLogger("agentd")


async def run(settings: Settings) -> None:
    """Run agentd until a signal stops it: the first gracefully, the second without waiting for grace periods.

    Raises:
        StartupError: if it cannot start.
    """
    hangup_stops = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    with _received_signals() as signals, _api_socket(settings) as listening:
        store = StatusStore(DaemonStatus(started=trio.current_time(), card=str(settings.config)))
        orders = _Orders(store)
        async with trio.open_nursery() as listener:
            listener.start_soon(partial(_obey, signals, orders, hangup_stops=hangup_stops))
            with orders.connecting:
                async with open_tmux(settings) as tmux:
                    orders.note_connected()
                    await _supervise(settings, tmux, listening, orders)
            if orders.connecting.cancelled_caught:
                _log.warning("tmux could not be reached until then; nothing was started")
            listener.cancel_scope.cancel()
    _log.info("stopped")


async def _supervise(settings: Settings, tmux: Tmux, listening: socket.socket, orders: "_Orders") -> None:
    """Keep the agents until they are to stop; then end the tmux server, too."""
    around = Surroundings(
        sessions=TmuxSessions(settings, tmux, Scanner(settings.agent_user.uid), time.time),
        store=orders.store,
        wall=time.time,
        launches=trio.CapacityLimiter(LAUNCHES),
        looks=Looks(),
        hurry=orders.hurry,
    )
    watch = Watch()
    reconciler = Reconciler(InputReader(settings, watch).read, around)
    orders.look_again = reconciler.knock
    try:
        async with trio.open_nursery() as services:
            looked = trio.Event()
            services.start_soon(_serve_api, listening, orders.store, looked, orders.no_agents)
            try:
                with orders.agents:
                    async with trio.open_nursery() as agents:
                        agents.start_soon(watch.work, reconciler.knock)
                        agents.start_soon(reconciler.work, looked)
            finally:
                with trio.move_on_after(LAST_SWEEP_LIMIT, shield=True):
                    await reconciler.sweep()
                orders.no_agents.set()
                looked.set()  # who waits for the first look need not wait for one that never came
    finally:
        with trio.move_on_after(END_SERVER_LIMIT, shield=True):
            end = await tmux.end_server()
            if not end:
                _log.info("the tmux server stays: %s", end.why_not)


class _Orders:
    """What signals ask of the lifetimes within, however many of these there are by then."""

    def __init__(self, store: StatusStore) -> None:
        self.store = store
        self.connecting = trio.CancelScope()
        self.agents = trio.CancelScope()
        self.hurry = trio.Event()
        self.no_agents = trio.Event()
        self.look_again: Callable[[], None] = lambda: None  # until there are agents, the first look is still to come
        self._connected = False

    def note_connected(self) -> None:
        """From now on a stop ends the agents, and waits for that however long it takes."""
        self._connected = True
        self.connecting.deadline = math.inf

    def stop(self) -> None:
        """Stop all agents, or the start of agentd itself."""
        self.store.put_daemon(attrs.evolve(self.store.daemon, state="stopping"))
        self.agents.cancel("agentd was asked to stop")
        if not self._connected:
            self.connecting.deadline = trio.current_time() + CONNECT_PATIENCE

    def stop_at_once(self) -> None:
        """Wait for no grace periods, nor for tmux."""
        self.hurry.set()
        if not self._connected:
            self.connecting.cancel("agentd was asked to stop at once")


async def _obey(signals: AsyncIterable[int], orders: _Orders, *, hangup_stops: bool) -> None:
    """Do what signals ask, for ever."""
    async for number in signals:
        name = signal.Signals(number).name
        if orders.hurry.is_set() or orders.no_agents.is_set():
            _log.debug("%s: is stopping already", name)
        elif number == signal.SIGHUP and not hangup_stops:
            _log.info("%s: looks again", name)
            orders.look_again()
        elif not orders.agents.cancel_called:
            _log.info("%s: stops the agents", name)
            orders.stop()
        elif number != signal.SIGHUP:  # a terminal that is closed says so twice: the kernel, then the shell
            _log.info("%s: stops the agents without waiting for grace periods", name)
            orders.stop_at_once()


@contextmanager
def _received_signals() -> Generator[AsyncIterable[int]]:
    """Receive signals, from here to the end of the process: those that come later are ignored.

    trio's own receiver raises at its end what it still holds, with the default that it puts back: the process would die
    of a second SIGTERM when all is done.
    """
    send, receive = trio.open_memory_channel[int](math.inf)
    token = trio.lowlevel.current_trio_token()

    def handle(number: int, _frame: FrameType | None) -> None:
        token.run_sync_soon(send.send_nowait, number, idempotent=True)

    for number in _SIGNALS:
        signal.signal(number, handle)
    try:
        yield receive
    finally:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)


async def _serve_api(listening: socket.socket, store: StatusStore, looked: trio.Event, no_agents: trio.Event) -> None:
    """Answer from the first look until no agent is left."""
    await looked.wait()
    if no_agents.is_set():
        return
    # The API's imports cost a third of a second: after the first launches, and beside the loop.
    serve = await trio.to_thread.run_sync(_import_api)
    await serve(listening, store, no_agents)


def _import_api() -> "Callable[[socket.socket, StatusStore, trio.Event], Awaitable[None]]":
    from agentd.api import create_app
    from agentd.api_server import serve_api

    async def serve(listening: socket.socket, store: StatusStore, over: trio.Event) -> None:
        await serve_api(create_app(store, version=__version__), listening, shutdown=over)

    return serve


@contextmanager
def _api_socket(settings: Settings) -> Generator[socket.socket]:
    """The API's socket, bound before anything is launched: who cannot have it does not start."""
    path = settings.api_socket
    listening = bind_api_socket(path, gid=settings.admin_gid)
    identity = socket_identity(path)
    try:
        yield listening
    finally:
        remove_api_socket(path, identity)
        listening.close()
