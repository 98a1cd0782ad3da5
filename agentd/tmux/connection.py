"""The tmux server in which the agents live, spoken to over one control connection that outlasts its clients."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import trio

from agentd.errors import (
    StartupError,
    TmuxError,
    TmuxHaltedError,
    TmuxServerGoneError,
    TmuxUnknownError,
    is_shortage,
    shortage_words,
)
from agentd.process_context import ONLY_OURS
from agentd.processes.scan import is_gone, is_halted
from agentd.settings import Settings
from agentd.tmux.admins import admit_admins
from agentd.tmux.client import (
    CONTROL_SESSION,
    Client,
    Request,
    kill_left_clients,
    open_client,
    printable,
    renew_socket,
    renew_sockets,
    resume_server,
)
from agentd.tmux.later import Later
from agentd.tmux.socket import is_missing, make_way, refuse_other_file, remove_socket, share_socket, socket_identity
from agentd.tmux.unit import start_unit, unit_cgroup, withdraw_start

_PREPARATION = (
    ("refresh-client", "-f", "no-output"),
    ("set-option", "-s", "exit-empty", "off"),
    ("set-option", "-s", "escape-time", "10"),
    ("set-option", "-g", "destroy-unattached", "off"),
    ("set-option", "-g", "history-limit", "20000"),
    ("set-option", "-g", "update-environment", ""),
    *(("set-environment", "-g", "-u", name) for name in ONLY_OURS),
)
_PID_DIGITS = 10

# Seconds.
_FIRST_PATIENCE = 3.0  # A server that was just killed refuses clients for half a second.
_UNIT_PATIENCE = 10.0  # systemd has other things to start, too.
_CONNECT_TIMEOUT = 10.0
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0
_END_TIMEOUT = 2.0
_SOCKET_LOOK = 5.0
_SOCKET_PATIENCE = 0.2
_SOCKET_RETURN = 4.0
_SOCKET_POLL = 0.02

_log = logging.getLogger(__name__)


@attrs.frozen
class ServerEnd:
    """How the end of the server went: true if it is gone, or why it is not, as far as anybody knows."""

    why_not: str = ""

    def __bool__(self) -> bool:
        return not self.why_not


class Tmux:
    """The tmux server; everything that it answers is the agents' word, since they own it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Client | None = None
        self._changed = trio.Event()
        self._generation = 0
        self._served = False
        self._refused = False
        self._server = 0
        self._ending = False
        self._closed = False
        self._asked_for_unit = False
        self._cgroup: Path | None = None
        self._socket_missing = False
        self._socket_warning = ""
        self._server_halted = False
        self.later = Later(lambda: is_halted(self._server))

    @property
    def connected(self) -> bool:
        """Whether there is a connection just now."""
        return self._client is not None and not self._client.lost.is_set()

    @property
    def answers(self) -> bool:
        """Whether there is a connection just now, to a server that was not stopped."""
        return self.connected and not is_halted(self._server)

    @property
    def cgroup(self) -> Path | None:
        """The cgroup of the unit that holds the server, by systemd's word; None where there is none, or no answer."""
        return self._cgroup

    async def command(
        self,
        *args: str,
        server: int | None = None,
        timeout: float = 10.0,  # noqa: ASYNC109 it is a failure
    ) -> tuple[str, ...]:
        """Have tmux run one command, after all that were asked before, and return the lines that it prints.

        With the pid of a `server` it is for that one only: a new server counts its ids from 0 again. Of one that is
        gone, or stopped, nobody waits for an answer.

        TmuxError is tmux's no. TmuxUnknownError (no connection, or no answer in time) does not say whether the command
        was carried out, or will be yet: after one that changes something, as after its cancellation, the caller must
        observe the agent's session anew before it sends anything else for that agent.
        """
        request = Request(*args)
        client: Client | None = None
        if server is not None and is_gone(server):
            message = f"tmux {request.name}: its server (pid {server}) is gone"
            raise TmuxServerGoneError(message)
        if server is not None and is_halted(server):
            message = f"tmux {request.name} was not sent: its server (pid {server}) is stopped"
            raise TmuxHaltedError(message)
        with trio.move_on_after(timeout):
            client = await self._wait_client()
            if server not in (None, self._server):
                message = f"tmux {request.name}: its server (pid {server}) is gone"
                raise TmuxServerGoneError(message)
            return await client.ask(request)
        if client is not None:
            client.end_if_silent()
        verb = "sent" if request.sent_at is None else "answered"
        message = f"tmux {request.name} was not {verb} within {timeout:g} s"
        raise TmuxUnknownError(message)

    async def end_server(self) -> ServerEnd:
        """End the server, unless sessions other than the control session live in it, and wait until it is gone."""
        if self._ending:
            return ServerEnd()
        end = ServerEnd()
        for _ in range(2):
            try:
                return await self._end_server()
            except TmuxError as error:
                return ServerEnd(str(error))
            except TmuxUnknownError as error:
                end = ServerEnd(str(error))
                if self.connected and not is_halted(self._server):
                    break
                # The connection was lost, and will be there again in a moment; or the server was just stopped.
        return end

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connection until cancelled, for `open_tmux`; StartupError if there cannot be a first one.

        Where the server is another user's, who can stop or replace it at any time, agentd goes on without one: else
        any agent could keep the next agentd from its start, and nobody would know why.
        """
        first = trio.current_time()
        delay = _FIRST_DELAY
        try:
            while True:
                began = trio.current_time()
                connected, words = await self._converse(task_status)
                self._refused = not connected
                now = trio.current_time()
                if self._ending:
                    return
                if connected:
                    _log.warning("lost the connection to tmux at %s, connecting again: %s", self._where, words)
                    delay = _FIRST_DELAY if now - began > _LONGEST_DELAY else delay
                elif not self._served and now - first > self._first_patience:
                    message = f"tmux at {self._where} cannot be used: {words}"
                    if not self._settings.switch_user:
                        raise StartupError(message)
                    _log.error("%s; no agent is started until it can", message)
                    self._begin(task_status)
                elif delay < _LONGEST_DELAY <= delay * 2:
                    _log.warning("still no connection to tmux at %s: %s", self._where, words)
                await trio.sleep(delay)
                delay = min(delay * 2, _LONGEST_DELAY)
        finally:
            with suppress(OSError):
                kill_left_clients(self._settings)
            self._closed = True
            self._tell()
            if self._asked_for_unit:
                with trio.CancelScope(shield=True):  # It is bounded.
                    await withdraw_start(self._settings)

    @property
    def _first_patience(self) -> float:
        return _FIRST_PATIENCE if self._settings.tmux_unit is None else _UNIT_PATIENCE

    @property
    def _where(self) -> str:
        socket, unit = self._settings.tmux_socket, self._settings.tmux_unit
        return str(socket) if unit is None else f"{socket} (see systemctl status {unit})"

    async def _wait_client(self) -> Client:
        while self._client is None or self._client.lost.is_set():
            if self._closed:
                message = "the connection to tmux was closed"
                raise TmuxUnknownError(message)
            await self._changed.wait()
        return self._client

    def _begin(self, task_status: trio.TaskStatus[None]) -> None:
        if not self._served:
            self._served = True
            task_status.started()

    def _tell(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _end_server(self) -> ServerEnd:
        if is_halted(self._server):
            _log.warning("the tmux server (pid %d) is stopped: has it go on, so that it can end", self._server)
            resume_server(self._settings, self._server)
        with trio.move_on_after(_END_TIMEOUT):
            await self.later.finish()
        sessions = await self.command("list-sessions", "-F", "#{session_name}", timeout=_END_TIMEOUT)
        others = [name for name in sessions if name != CONTROL_SESSION]
        if others:
            return ServerEnd(printable(f"it has the sessions {', '.join(others)}"))
        server = self._server  # By its own word, which cannot do more than make us wait for another process.
        try:
            pidfd = os.pidfd_open(server)
        except OSError as error:
            return ServerEnd(f"its process {server} cannot be watched: {error.strerror}")
        gone = False
        identity = socket_identity(self._settings.tmux_socket, self._settings.agent_user.uid)
        try:
            # Not kill-server: like this, a session that somebody makes just now survives.
            await self.command("set-option", "-s", "exit-empty", "on", server=server, timeout=_END_TIMEOUT)
            self._ending = True
            # The end of the server may come before its answer.
            with suppress(TmuxError, TmuxUnknownError):
                await self.command("kill-session", "-t", f"={CONTROL_SESSION}", server=server, timeout=_END_TIMEOUT)
            with trio.move_on_after(_END_TIMEOUT):
                await trio.lowlevel.wait_readable(pidfd)
                gone = True
                if identity is not None:
                    remove_socket(self._settings.tmux_socket, self._settings.agent_user.uid, identity)
        finally:
            self._ending = gone
            os.close(pidfd)
        return ServerEnd() if gone else ServerEnd(f"its process {server} did not end within {_END_TIMEOUT:g} s")

    async def _converse(self, task_status: trio.TaskStatus[None]) -> tuple[bool, str]:
        """Hold one connection for as long as it lasts; return whether it was one, and why it ended."""
        try:
            kill_left_clients(self._settings)
            await self._seek_server()
            unit_words = await self._start_unit()
            async with open_client(self._settings) as client:
                try:
                    self._server = await _prepare(client)
                except (TmuxError, TmuxUnknownError) as error:
                    return False, unit_words or client.words or str(error)
                self._asked_for_unit = False
                self._cgroup = None if self._settings.tmux_unit is None else await unit_cgroup(self._settings)
                self._share_socket()
                self._client = client
                self._generation += 1
                self._tell()
                if self._generation > 1:
                    _log.info("connected to tmux at %s again", self._where)
                self._begin(task_status)
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(admit_admins, self._settings, client)
                        nursery.start_soon(self.later.work)
                        while not client.lost.is_set():
                            with trio.move_on_after(_SOCKET_LOOK):
                                await client.lost.wait()
                            client.resume()
                            self._mind_server()
                            if not self._ending:
                                await self._mind_socket()
                        nursery.cancel_scope.cancel()
                finally:
                    self._client = None
                return True, client.words
        except OSError as error:
            if is_shortage(error):
                return False, f"its client does not start: {shortage_words(error)}"
            return False, f"{error.filename or self._settings.tmux} does not start: {error.strerror}"

    async def _start_unit(self) -> str:
        """Have the unit run that holds the server, if there is one for it; return what stands against it.

        Always, and not only where nobody answers at the socket: systemd is told in 7 ms what it knows already, and root
        connects to nothing at a place of the agents.
        """
        if self._settings.tmux_unit is None or self._ending:
            return ""
        self._asked_for_unit = True
        return await start_unit(self._settings)

    async def _seek_server(self) -> None:
        """Have a server whose socket was deleted, or replaced, while nobody could mind it make it anew."""
        path, owner = self._settings.tmux_socket, self._settings.agent_user.uid
        if self._settings.switch_user and (done := make_way(path, owner)):
            _log.warning("somebody kept tmux from its socket: %s", done)
        before = socket_identity(path, owner)
        if (is_missing(path) or self._refused) and renew_sockets(self._settings):
            # On a busy machine that takes it a while; with a second server, nobody would reach the agents of the first.
            with trio.move_on_after(_SOCKET_RETURN):
                while socket_identity(path, owner) in {None, before}:  # noqa: ASYNC110 - nobody tells
                    await trio.sleep(_SOCKET_POLL)

    async def _mind_socket(self) -> None:
        """See to it that a socket that was deleted is there again: without it nobody can attach, we cannot return."""
        missing = self._is_socket_missing()
        if missing:
            if not self._socket_missing:
                _log.warning("the tmux socket %s was deleted: has tmux make it again", self._settings.tmux_socket)
            renew_socket(self._settings, self._server)
            await trio.sleep(_SOCKET_PATIENCE)
            self._share_socket()
        self._socket_missing = missing

    def _mind_server(self) -> None:
        """Say when the server was stopped, and when it goes on: until then it answers nobody, and agents live on."""
        halted = is_halted(self._server)
        if halted and not self._server_halted:
            _log.warning("the tmux server (pid %d) is stopped: agents go on, and none is started", self._server)
        elif self._server_halted and not halted:
            _log.info("the tmux server (pid %d) goes on", self._server)
        self._server_halted = halted

    def _is_socket_missing(self) -> bool:
        return not os.path.lexists(self._settings.tmux_socket)

    def _share_socket(self) -> None:
        """Let the admin group in, if we are root."""
        if not self._settings.switch_user and os.geteuid() != 0:
            return
        try:
            warning = share_socket(self._settings.tmux_socket, self._settings.agent_user.uid, self._settings.admin_gid)
        except OSError as error:
            warning = str(error)
        if warning and warning != self._socket_warning:
            _log.warning("the tmux socket stays as it is, so that admins may be unable to attach: %s", warning)
        self._socket_warning = warning


@asynccontextmanager
async def open_tmux(settings: Settings) -> AsyncIterator[Tmux]:
    """Start or find the server and hold the connection to it; leaving ends the connection, not the server.

    StartupError if it cannot be had at the start. As of any nursery, what the body raises comes in an exception group.
    """
    refuse_other_file(settings.tmux_socket, settings.agent_user.uid if settings.switch_user else None)
    tmux = Tmux(settings)
    failure: StartupError | None = None
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(tmux.serve)
        except StartupError as error:
            failure = error
        else:
            try:
                yield tmux
            finally:
                nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _prepare(client: Client) -> int:
    """Set the server up as design.md has it, and return its pid, as it says; TmuxError or TmuxUnknownError if not."""
    with trio.move_on_after(_CONNECT_TIMEOUT):
        await client.wait_attached()
        for words in _PREPARATION:
            await client.ask(Request(*words))
        lines = await client.ask(Request("display-message", "-p", "#{pid}"))
        if len(lines) == 1 and lines[0].isdecimal() and len(lines[0]) < _PID_DIGITS:
            return int(lines[0])
        message = "tmux did not say what its pid is"
        raise TmuxError(message)
    message = f"no answer within {_CONNECT_TIMEOUT:g} s"
    raise TmuxUnknownError(message)
