"""agentd itself: the lifetimes, nested so that the order of a stop holds on every path, failures included.

tmux's connection is outermost, because stops use it; then the services (API, signals), which answer until the last
agent is gone; innermost the agents (reconciler and runs). What ends is always the inner one first.
"""

import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager
from functools import partial

import attrs
import trio

from agentd import __version__
from agentd.api_socket import bind_api_socket, remove_api_socket, socket_identity
from agentd.inputs import InputReader
from agentd.launch import TmuxSessions
from agentd.proc_scan import read_stat
from agentd.processes import Scanner
from agentd.reconciler import Reconciler
from agentd.run import Looks, Surroundings
from agentd.settings import Settings
from agentd.status import DaemonStatus, StatusStore
from agentd.tmux import open_tmux

LAUNCHES = 8
"""Launches under way at once: 100 agents come up without starving each other (measured, see docs/design.md)."""
LAST_SWEEP_LIMIT = 40.0
"""Seconds for the sweep that follows the stops, when one of them was itself broken."""
END_SERVER_LIMIT = 15.0
"""Seconds for the end of the tmux server."""

_log = logging.getLogger("agentd")


async def run(settings: Settings) -> None:
    """Run agentd until a signal stops it: the first gracefully, the second without waiting for grace periods.

    Raises:
        StartupError: if it cannot start.
    """
    with (
        trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals,
        _api_socket(settings) as listening,
    ):
        async with open_tmux(settings) as tmux:
            store = StatusStore(DaemonStatus(started=trio.current_time(), card=str(settings.config)))
            hurry = trio.Event()
            around = Surroundings(
                sessions=TmuxSessions(settings, tmux, Scanner(settings.agent_user.uid), time.time),
                store=store,
                wall=time.time,
                launches=trio.CapacityLimiter(LAUNCHES),
                looks=Looks(),
                hurry=hurry,
            )
            reconciler = Reconciler(InputReader(settings).read, around)
            try:
                async with trio.open_nursery() as services:
                    looked = trio.Event()
                    no_agents = trio.Event()
                    services.start_soon(_serve_api, listening, store, looked, no_agents)
                    try:
                        with trio.CancelScope() as agents:
                            stop = partial(_stop, agents, store, hurry)
                            services.start_soon(_obey, signals, stop, reconciler.knock, no_agents)
                            await reconciler.work(looked)
                    finally:
                        with trio.move_on_after(LAST_SWEEP_LIMIT, shield=True):
                            await reconciler.sweep()
                        no_agents.set()
                        looked.set()  # who waits for the first look need not wait for one that never came
            finally:
                with trio.move_on_after(END_SERVER_LIMIT, shield=True):
                    if not await tmux.end_server():
                        _log.info("the tmux server stays: somebody else has a session in it")
    _log.info("stopped")


def _stop(agents: trio.CancelScope, store: StatusStore, hurry: trio.Event) -> None:
    """Stop all agents; asked a second time, do not wait for their grace periods."""
    if agents.cancel_called:
        hurry.set()
    store.put_daemon(attrs.evolve(store.daemon, state="stopping"))
    agents.cancel("agentd was asked to stop")


async def _obey(
    signals: AsyncIterator[int],
    stop: Callable[[], None],
    look_again: Callable[[], None],
    no_agents: trio.Event,
) -> None:
    """Do what signals ask until no agent is left."""
    hangup_stops = _has_terminal()
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            async for number in signals:
                name = signal.Signals(number).name
                if number == signal.SIGHUP and not hangup_stops:
                    _log.info("%s: looks again", name)
                    look_again()
                else:
                    _log.info("%s: stops the agents", name)
                    stop()

        nursery.start_soon(listen)
        await no_agents.wait()
        nursery.cancel_scope.cancel()


def _has_terminal() -> bool:
    """Whether a hang-up means that somebody closed the terminal in which agentd runs."""
    stat = read_stat(os.getpid())
    return stat is not None and stat.tty_nr != 0


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
