"""The tmux server in which the agents live, spoken to over one control connection that outlasts its clients."""

import logging
import os
import signal
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from agentd.errors import StartupError, TmuxError, TmuxUnknownError
from agentd.proc_scan import read_uid
from agentd.settings import Settings
from agentd.tmux_client import CONTROL_SESSION, Client, Request, open_client

_PREPARATION = (
    ("refresh-client", "-f", "no-output"),
    ("set-option", "-s", "exit-empty", "off"),
    ("set-option", "-s", "escape-time", "10"),
    ("set-option", "-g", "destroy-unattached", "off"),
    ("set-option", "-g", "history-limit", "20000"),
    ("set-option", "-g", "update-environment", ""),
    # sudo describes itself to what it starts, and tmux hands what it was started with to every session.
    *(("set-environment", "-g", "-u", f"SUDO_{name}") for name in ("COMMAND", "USER", "UID", "GID")),
)
_CLIENT = "#{client_pid} #{client_control_mode}"
_PID_DIGITS = 10
_SOCKET_MODE = 0o770

# Seconds.
_FIRST_PATIENCE = 3.0  # A server that was just killed refuses clients for half a second.
_CONNECT_TIMEOUT = 10.0
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0
_END_TIMEOUT = 2.0

_log = logging.getLogger(__name__)


class Tmux:
    """The tmux server; everything that it answers is the agents' word, since they own it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Client | None = None
        self._changed = trio.Event()
        self._generation = 0
        self._ending = False
        self._closed = False
        self._socket_warning = ""

    @property
    def connected(self) -> bool:
        """Whether there is a connection just now."""
        return self._client is not None and not self._client.lost.is_set()

    @property
    def generation(self) -> int:
        """How many connections there have been, the present one included; a new one may be to a new server."""
        return self._generation

    async def wait_connected(self) -> int:
        """Wait until there is a connection, and return its generation; TmuxUnknownError if there will be none."""
        await self._wait_client()
        return self._generation

    async def wait_lost(self, generation: int) -> None:
        """Wait until the connection of this generation is gone."""
        if self._client is not None and self._generation == generation:
            await self._client.lost.wait()

    async def command(self, *args: str, timeout: float = 10.0) -> tuple[str, ...]:  # noqa: ASYNC109 it is a failure
        """Have tmux run one command, after all that were asked before, and return the lines that it prints.

        TmuxError is tmux's no. TmuxUnknownError (no connection, or no answer in time) does not say whether the command
        was carried out, or will be yet: after one that changes something, as after its cancellation, the caller must
        observe the agent's session anew before it sends anything else for that agent.
        """
        request = Request(*args)
        client: Client | None = None
        with trio.move_on_after(timeout):
            client = await self._wait_client()
            return await client.ask(request)
        if client is not None:
            client.end_if_silent()
        verb = "sent" if request.sent_at is None else "answered"
        message = f"tmux {request.name} was not {verb} within {timeout:g} s"
        raise TmuxUnknownError(message)

    async def end_server(self) -> bool:
        """End the server, unless a session other than the control session lives in it, and say whether it ended."""
        client = self._client
        if client is None:
            return False
        try:
            sessions = await self.command("list-sessions", "-F", "#{session_name}", timeout=_END_TIMEOUT)
            if set(sessions) - {CONTROL_SESSION}:
                return False
            # Not kill-server: like this, a session that somebody makes just now survives.
            await self.command("set-option", "-s", "exit-empty", "on", timeout=_END_TIMEOUT)
            self._ending = True
            await self.command("kill-session", "-t", f"={CONTROL_SESSION}", timeout=_END_TIMEOUT)
        except (TmuxError, TmuxUnknownError) as error:
            # The end of the server may come before its answer.
            _log.debug("the answer of the ending tmux server: %s", error)
        if self._ending:
            with trio.move_on_after(_END_TIMEOUT):
                await client.lost.wait()
        self._ending = self._ending and client.lost.is_set()
        return self._ending

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connection until cancelled, for `open_tmux`; StartupError if there cannot be a first one."""
        first = trio.current_time()
        delay = _FIRST_DELAY
        try:
            while True:
                began = trio.current_time()
                connected, words = await self._converse(task_status)
                now = trio.current_time()
                if self._ending:
                    return
                if connected:
                    _log.warning("lost the connection to tmux at %s, connecting again: %s", self._where, words)
                    delay = _FIRST_DELAY if now - began > _LONGEST_DELAY else delay
                elif self._generation == 0 and now - first > _FIRST_PATIENCE:
                    message = f"tmux at {self._where} cannot be used: {words}"
                    raise StartupError(message)
                elif delay < _LONGEST_DELAY <= delay * 2:
                    _log.warning("still no connection to tmux at %s: %s", self._where, words)
                await trio.sleep(delay)
                delay = min(delay * 2, _LONGEST_DELAY)
        finally:
            self._closed = True
            self._tell()

    @property
    def _where(self) -> str:
        return str(self._settings.tmux_socket)

    async def _wait_client(self) -> Client:
        while self._client is None or self._client.lost.is_set():
            if self._closed:
                message = "the connection to tmux was closed"
                raise TmuxUnknownError(message)
            await self._changed.wait()
        return self._client

    def _tell(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _converse(self, task_status: trio.TaskStatus[None]) -> tuple[bool, str]:
        """Hold one connection for as long as it lasts; return whether it was one, and why it ended."""
        try:
            async with open_client(self._settings) as client:
                problem = await _prepare(client, self._settings.agent_user.uid)
                if problem:
                    return False, problem
                self._share_socket()
                self._client = client
                self._generation += 1
                self._tell()
                if self._generation == 1:
                    task_status.started()
                else:
                    _log.info("connected to tmux at %s again", self._where)
                try:
                    await client.lost.wait()
                finally:
                    self._client = None
                return True, client.words
        except OSError as error:
            return False, f"{error.filename or self._settings.tmux} does not start: {error.strerror}"

    def _share_socket(self) -> None:
        """Let the admin group in, if we are root."""
        if not self._settings.switch_user and os.geteuid() != 0:
            return
        try:
            warning = _share(self._where, self._settings.agent_user.uid, self._settings.admin_gid)
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
    _refuse_other_file(settings.tmux_socket)
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


async def _prepare(client: Client, uid: int) -> str:
    """Set the server up as design.md has it; return what stands against it, or nothing."""
    try:
        with trio.fail_after(_CONNECT_TIMEOUT):
            await client.wait_attached()
            for words in _PREPARATION:
                await client.ask(Request(*words))
            ours = await client.ask(Request("display-message", "-p", _CLIENT))
            for line in await client.ask(Request("list-clients", "-t", CONTROL_SESSION, "-F", _CLIENT)):
                pid, _, control = line.partition(" ")
                if line not in ours and control == "1" and pid.isdecimal() and len(pid) < _PID_DIGITS:
                    _kill_client(int(pid), uid)
    except trio.TooSlowError:
        return f"no answer within {_CONNECT_TIMEOUT:g} s"
    except (TmuxError, TmuxUnknownError) as error:
        return client.words or str(error)
    return ""


def _kill_client(pid: int, uid: int) -> None:
    """Kill the control client of an agentd that is dead: locks say that there is no other one.

    It ends by itself at the end of its input, unless something was still to be written to the agentd that was killed:
    then tmux waits for ever to write it, and neither client nor server ends. The pid is the agents' word, so that it
    must be the agent user's, and a tmux.
    """
    with suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            if read_uid(pid) == uid and Path(f"/proc/{pid}/comm").read_text().startswith("tmux"):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def _share(path: str, owner: int, group: int | None) -> str:
    """Give a socket that belongs to `owner` our mode and group; return what stands against it, or nothing.

    Through a descriptor, because the agents own the place and can swap the file.
    """
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISSOCK(found.st_mode):
            return f"{path} is not a socket"
        if found.st_uid != owner:
            return f"{path} belongs to uid {found.st_uid}, not to uid {owner}"
        same = f"/proc/self/fd/{descriptor}"
        if group is not None:
            os.chown(same, -1, group)
        os.chmod(same, _SOCKET_MODE)
    finally:
        os.close(descriptor)
    return ""


def _refuse_other_file(path: Path) -> None:
    """Spare what is no socket: tmux would delete it to put its own there."""
    with suppress(OSError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            message = f"{path} is not a socket; remove it, or give another -tmux-socket"
            raise StartupError(message)
