"""agentd itself: the lifetimes, nested so that the order of a stop holds on every path, failures included.

Signals are outermost, because they are obeyed as long as anything lives; then tmux's connection, because stops use it;
then the notifier, which asks systemd for more time until the tmux server has ended, too; then the services (the API),
which answer until the last agent is gone; innermost the agents (reconciler and runs). What ends is always the inner
one first.
"""

import logging
import math
import os
import signal
import socket
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType

import attrs
import trio

from agentd import __version__
from agentd.api.socket import bind_api_socket, remove_api_socket, socket_identity
from agentd.attempts.tmux_sessions import TmuxSessions
from agentd.errors import StartupError, is_shortage, shortage_words, threads_as_processes
from agentd.inputs.reader import InputReader
from agentd.inputs.watch import Watch
from agentd.looks import Looks
from agentd.processes.ending import Scanner
from agentd.reconciler import TICK, Reconciler
from agentd.run import Surroundings
from agentd.sdnotify import Notifier, open_notifier
from agentd.settings import Settings
from agentd.status import DaemonStatus, StatusStore
from agentd.tmux.connection import Tmux, open_tmux
from agentd.tmux.unit import ends_unit

LAUNCHES = 8
"""Launches under way at once: 100 agents come up without starving each other (measured, see docs/design.md)."""
CONNECT_PATIENCE = 5.0
"""Seconds for which a stop, even one in a hurry, still waits for the first connection to tmux.

It may be starting a server just then, which only who is connected to it can end.
"""
LAST_SWEEP_LIMIT = 40.0
"""Seconds for the sweep that follows the stops, when one of them was itself broken."""
END_SERVER_LIMIT = 15.0
"""Seconds for the end of the tmux server."""
SETTLING = 0.5
"""Seconds after a SIGHUP until what was written right before it has settled, so that a look takes it."""
IMPORT_PAUSE = 1.0
"""Seconds until an import for which there was not enough of something is tried again."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = logging.getLogger("agentd")


async def run(settings: Settings) -> None:
    """Run agentd until a signal stops it: the first gracefully, the second without waiting for grace periods.

    Raises:
        StartupError: if it cannot start.
    """
    hangup_stops = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    with open_notifier(os.environ) as notifier, _received_signals() as signals, _api_socket(settings) as listening:
        store = StatusStore(DaemonStatus(started=trio.current_time(), card=str(settings.config)))
        orders = _Orders(store, settings)
        async with trio.open_nursery() as listener:
            listener.start_soon(partial(_obey, signals, orders, hangup_stops=hangup_stops))
            with orders.connecting:
                try:
                    async with open_tmux(settings) as tmux:
                        orders.note_connected()
                        await _supervise(settings, tmux, listening, orders, notifier)
                except StartupError as error:
                    if not orders.agents.cancel_called:
                        raise
                    _log.warning("%s", error)  # it was to stop anyway
            if orders.connecting.cancelled_caught:
                _log.warning("tmux could not be reached until then; no agent was started")
            listener.cancel_scope.cancel()
    _log.info("stopped")


async def _supervise(
    settings: Settings, tmux: Tmux, listening: socket.socket, orders: "_Orders", notifier: Notifier
) -> None:
    """Serve until all agents are stopped, then end the tmux server; keep systemd informed to the end."""
    async with trio.open_nursery() as telling:
        telling.start_soon(notifier.tell, orders.store)
        try:
            await _serve(settings, tmux, listening, orders, notifier)
        finally:
            with trio.move_on_after(END_SERVER_LIMIT, shield=True):
                end = await tmux.end_server()
                if not end:
                    _log.info("the tmux server stays: %s", end.why_not)
        telling.cancel_scope.cancel()


async def _serve(
    settings: Settings, tmux: Tmux, listening: socket.socket, orders: "_Orders", notifier: Notifier
) -> None:
    """Keep the agents until they are to stop, and answer as long as there are any."""
    around = Surroundings(
        sessions=TmuxSessions(settings, tmux, Scanner(settings.agent_user.uid), time.time),
        store=orders.store,
        wall=time.time,
        launches=trio.CapacityLimiter(LAUNCHES),
        looks=Looks(),
        hurry=orders.hurry,
        keeps_agents=lambda: orders.keeps_agents,
    )
    watch = Watch()
    reconciler = Reconciler(
        InputReader(settings, watch).read, around, tick=min(TICK, notifier.beat_interval), beat=notifier.beat
    )
    async with trio.open_nursery() as services:
        looked = trio.Event()
        services.start_soon(_serve_api, listening, orders, looked, notifier.ready)
        try:
            with orders.agents:
                async with trio.open_nursery() as agents:
                    agents.start_soon(orders.note_stop)
                    agents.start_soon(watch.work, reconciler.knock)
                    agents.start_soon(reconciler.work, looked)
                    agents.start_soon(_reload, orders, reconciler.knock, around.looks, notifier)
        finally:
            with trio.move_on_after(LAST_SWEEP_LIMIT, shield=True):
                await reconciler.sweep()
            orders.no_agents.set()
            looked.set()  # who waits for the first look need not wait for one that never came


async def _reload(orders: "_Orders", knock: Callable[[], None], looks: Looks, notifier: Notifier) -> None:
    """Look again whenever that is ordered, and tell systemd when what was written before the order is in force."""
    await notifier.ready.wait()  # the end of a reload would be taken for the end of the start
    async for _ in orders.reloads:
        knock()
        await notifier.tell_reload()
        await trio.sleep(SETTLING)
        for _ in range(2):  # the look that ends next may have begun before
            knock()
            await looks.next()
        await notifier.tell_reloaded()


class _Orders:
    """What signals ask of the lifetimes within, however many of these there are by then."""

    def __init__(self, store: StatusStore, settings: Settings) -> None:
        self.store = store
        self.keeps_agents = settings.keep_agents
        self._settings = settings
        self.connecting = trio.CancelScope()
        self.agents = trio.CancelScope()
        self.hurry = trio.Event()
        self.no_agents = trio.Event()
        self._ask_reload, self.reloads = trio.open_memory_channel[None](1)
        self._connected = False

    def note_connected(self) -> None:
        """From now on a stop ends the agents, and waits for that however long it takes."""
        self._connected = True
        self.connecting.deadline = math.inf

    async def stop(self) -> None:
        """Stop all agents, or keep them and stop the rest, or stop the start of agentd itself."""
        if self.keeps_agents and self._settings.tmux_unit is not None and await ends_unit(self._settings):
            _log.info("systemd is about to end %s, so that no agent can be kept", self._settings.tmux_unit)
            self.keeps_agents = False
        self.agents.cancel("agentd was asked to stop")
        if not self._connected:
            self.connecting.deadline = trio.current_time() + CONNECT_PATIENCE

    def stop_at_once(self) -> None:
        """Wait for no grace periods."""
        self.hurry.set()

    async def note_stop(self) -> None:
        """Say that agentd stops as soon as the agents are cancelled, of which this is one, whatever the cause."""
        try:
            await trio.sleep_forever()
        finally:
            self.store.put_daemon(attrs.evolve(self.store.daemon, state="stopping"))

    def reload(self) -> None:
        """Look again; before there are agents, the first look is still to come."""
        with suppress(trio.WouldBlock):
            self._ask_reload.send_nowait(None)


async def _obey(signals: AsyncIterable[int], orders: _Orders, *, hangup_stops: bool) -> None:
    """Do what signals ask, for ever."""
    async for number in signals:
        name = signal.Signals(number).name
        if orders.hurry.is_set() or orders.no_agents.is_set():
            _log.debug("%s: is stopping already", name)
        elif number == signal.SIGHUP and not hangup_stops:
            _log.info("%s: looks again", name)
            orders.reload()
        elif not orders.agents.cancel_called:
            _log.info("%s: %s", name, "keeps the agents, and ends" if orders.keeps_agents else "stops the agents")
            await orders.stop()
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


async def _serve_api(listening: socket.socket, orders: _Orders, looked: trio.Event, ready: trio.Event) -> None:
    """Answer from the first look until no agent is left; set `ready` when answers come."""
    await looked.wait()
    if orders.no_agents.is_set():
        return
    serve = await _imported_api(orders.no_agents)
    if serve is not None:
        await serve(listening, orders.store, shutdown=orders.no_agents, task_status=_Started(ready.set))


async def _imported_api(no_agents: trio.Event) -> "Callable[..., Awaitable[None]] | None":
    """Import the API, which costs a third of a second: after the first launches, and beside the loop.

    Where there are no descriptors or threads for it, that is tried until there is nobody left to tell of.
    """
    told = False
    while not no_agents.is_set():
        try:
            with threads_as_processes():
                return await trio.to_thread.run_sync(_import_api)
        except OSError as error:
            if not is_shortage(error):
                raise
            if not told:
                told = True
                _log.warning("the API does not answer yet: %s", shortage_words(error))
        with trio.move_on_after(IMPORT_PAUSE):
            await no_agents.wait()
    return None


@attrs.frozen
class _Started:
    """What a service says that it serves to, as `nursery.start` would be; but one that never serves is no error."""

    _then: Callable[[], None]

    def started(self, value: None = None) -> None:  # noqa: ARG002 - part of the protocol
        self._then()


def _import_api() -> "Callable[..., Awaitable[None]]":
    from agentd.api.app import create_app
    from agentd.api.server import serve_api

    async def serve(
        listening: socket.socket, store: StatusStore, *, shutdown: trio.Event, task_status: _Started
    ) -> None:
        await serve_api(create_app(store, version=__version__), listening, shutdown=shutdown, task_status=task_status)

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
