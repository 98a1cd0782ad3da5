"""One client of the tmux server, in control mode: its process, always the agent user's, and what is said through it."""

import contextlib
import logging
import math
import os
import signal
import subprocess
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import trio

from agentd.errors import TmuxError, TmuxUnknownError, threads_as_processes
from agentd.process_context import OPEN_GATE, UMASK, agents_environment, gated, give_context
from agentd.processes.scan import read_uid
from agentd.settings import Settings
from agentd.tmux.protocol import FrameParser, ProtocolError, Reply, command_line

CONTROL_SESSION = "_agentd"
"""The session that the client itself is attached to; nobody's agent."""

# Seconds.
_LONGEST_SILENCE = 30.0
_LAST_WORDS = 0.5
_END_TIMEOUT = 2.0
_SIGNAL_TIMEOUT = 1.0

_MAX_ERRORS = 4096
_MAX_WORDS = 300

_log = logging.getLogger(__name__)


class Request:
    """One command on its way: unsent, sent, answered or given up. No repr shows its arguments: they can be secret."""

    def __init__(self, *args: str) -> None:
        self.line = command_line(*args)
        self.name = args[0]
        self.sent_at: float | None = None
        self.reply: Reply | None = None
        self.given_up = False
        self.over = trio.Event()


class Client:
    """A client from its start to its end: commands go in by one task, replies come out in the same order."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._stdin = cast("trio.abc.SendStream", process.stdin)
        self._stdout = cast("trio.abc.ReceiveStream", process.stdout)
        self._stderr = cast("trio.abc.ReceiveStream", process.stderr)
        self._parser = FrameParser()
        self._outbox, self._to_write = trio.open_memory_channel[Request](math.inf)
        self._waiting: set[Request] = set()
        self._unanswered: deque[Request] = deque()
        self._answered_at = trio.current_time()
        self._errors = b""
        self._attached = trio.Event()
        self._output_over = trio.Event()
        self._errors_over = trio.Event()
        self.lost = trio.Event()
        self.words = ""
        """Why it was lost."""

    async def wait_attached(self) -> None:
        """Wait until the client is in its session, as it must be for commands, or lost."""
        await self._attached.wait()

    async def ask(self, request: Request) -> tuple[str, ...]:
        """Send one command and return its reply's lines; TmuxError is tmux's no, TmuxUnknownError the client's end.

        A cancelled caller's command is not sent if it was not sent yet; else its reply is awaited for nobody, so that
        the next one's is not taken for it.
        """
        if not self.lost.is_set():
            self._waiting.add(request)
            self._outbox.send_nowait(request)
            try:
                await request.over.wait()
            finally:
                self._waiting.remove(request)
                request.given_up = True
        if request.reply is None:
            message = f"tmux {request.name} was not answered: {self.words}"
            raise TmuxUnknownError(message)
        if not request.reply.ok:
            message = f"tmux {request.name}: {printable(' '.join(request.reply.lines))}"
            raise TmuxError(message)
        return request.reply.lines

    def end_if_silent(self) -> None:
        """Give up a client that has not been answered for long: its queue may be stuck, a new one starts empty."""
        if self._unanswered and self._unanswered[0].sent_at is not None:
            silence = trio.current_time() - max(self._unanswered[0].sent_at, self._answered_at)
            if silence > _LONGEST_SILENCE:
                self._lose(f"nothing was answered for {silence:.0f} s")

    def resume(self) -> None:
        """Undo a stop of the client, which is any agent's to send, and which sudo passes on to itself."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGCONT)

    async def write(self) -> None:
        """Send what is asked, in order."""
        async for request in self._to_write:
            if request.given_up:
                continue
            request.sent_at = trio.current_time()
            self._unanswered.append(request)
            try:
                await self._stdin.send_all(request.line)
            except trio.BrokenResourceError:
                return  # The readers learn of the same end, and why.

    async def read(self) -> None:
        """Give replies to those who asked."""
        try:
            async for data in self._stdout:
                for reply in self._parser.feed(bytes(data)):
                    self._receive(reply)
                if self._parser.exit is not None:
                    break
        except ProtocolError as error:
            self._lose(str(error))
        self._output_over.set()
        await self._end()

    async def read_errors(self) -> None:
        """Keep the first of what the client, or sudo, says on stderr."""
        async for data in self._stderr:
            self._errors += data[: _MAX_ERRORS - len(self._errors)]
        self._errors_over.set()

    async def watch_process(self) -> None:
        """Notice a client that ended while its server, stopped, keeps the pipes open."""
        await self._process.wait()
        with trio.move_on_after(_LAST_WORDS):
            await self._output_over.wait()
        await self._end()

    async def close(self) -> None:
        """End the client: by EOF, else by signals; bounded."""
        self._lose("it was closed")
        await self._stdin.aclose()
        patience_by_signal = {None: _END_TIMEOUT, signal.SIGTERM: _SIGNAL_TIMEOUT, signal.SIGKILL: _SIGNAL_TIMEOUT}
        for number, patience in patience_by_signal.items():
            if self._process.returncode is not None:
                break
            if number is not None:
                # The group, because sudo is not the client; it is still ours, because its leader is not reaped.
                os.killpg(self._process.pid, number)
            with trio.move_on_after(patience):
                async for _ in self._stdout:
                    pass  # The server lets a client go when it has taken everything.
                await self._process.wait()
        await self._stdout.aclose()
        await self._stderr.aclose()

    def _receive(self, reply: Reply) -> None:
        if not reply.ours:
            # The first of these is the attach itself, later ones are what hooks do.
            if not reply.ok and not self._attached.is_set():
                self._lose(printable(" ".join(reply.lines)))
            self._attached.set()
        elif self._unanswered:
            request = self._unanswered.popleft()
            request.reply = reply
            request.over.set()
            self._answered_at = trio.current_time()
        else:
            message = "tmux sent a reply to no command"
            raise ProtocolError(message)

    async def _end(self) -> None:
        with trio.move_on_after(_LAST_WORDS):
            await self._errors_over.wait()
        errors = self._errors.decode(errors="replace")
        self._lose(printable(errors) or printable(self._parser.exit or "") or "its client ended")

    def _lose(self, words: str) -> None:
        if self.lost.is_set():
            return
        self.words = words
        self.lost.set()
        self._attached.set()
        self._outbox.close()
        for request in self._waiting:
            request.over.set()


@asynccontextmanager
async def open_client(settings: Settings) -> AsyncIterator[Client]:
    """Start a client, and without a unit for it the server if there is none; leaving ends the client.

    OSError: if the client cannot be started.
    """
    with threads_as_processes():
        process = await trio.lowlevel.open_process(
            gated(_command(settings)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=agents_environment(os.environ, switch_user=settings.switch_user),
            umask=UMASK,
            # Without our terminal: its Ctrl-C is for agentd alone, and sudo makes no pseudo-terminal.
            start_new_session=True,
        )
    client = Client(process)
    try:
        _give_context(process, settings)
        async with trio.open_nursery() as nursery:
            for task in (client.write, client.read, client.read_errors, client.watch_process):
                nursery.start_soon(task)
            try:
                yield client
            finally:
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):  # Everything in it is bounded.
            await client.close()


def kill_left_clients(settings: Settings) -> None:
    """Kill what is left of earlier clients: the killed agentd's (locks say that there is no other), the killed sudo's.

    A client ends by itself at the end of its input, unless something was still to be written to who read its output:
    tmux waits for ever to write it, and neither this client nor, once it was told to end, its server ends; such a
    server takes no connection any more that could tell of its clients, so that the kernel is asked.
    """
    words = b"\0".join(os.fsencode(word) for word in ("", *_attachment(settings), ""))
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        _signal(int(pid), settings.agent_user.uid, "tmux: client", words, signal.SIGKILL)


def renew_socket(settings: Settings, server: int) -> None:
    """Have the server make its socket anew; that this pid is the server's is the agents' word."""
    _signal(server, settings.agent_user.uid, "tmux: server", b"", signal.SIGUSR1)


def resume_server(settings: Settings, server: int) -> None:
    """Have a stopped server go on; that this pid is the server's is the agents' word."""
    _signal(server, settings.agent_user.uid, "tmux: server", b"", signal.SIGCONT)


def renew_sockets(settings: Settings) -> bool:
    """Have every server that was started for this socket make it anew; return whether there is any."""
    words = b"\0-S\0" + os.fsencode(settings.tmux_socket) + b"\0"
    uid = settings.agent_user.uid
    pids = map(int, filter(str.isdecimal, os.listdir("/proc")))
    return sum(_signal(pid, uid, "tmux: server", words, signal.SIGUSR1) for pid in pids) > 0


def _signal(pid: int, uid: int, name: str, words: bytes, number: int) -> bool:
    """Signal a process if it is the agent user's, has this name, and these words in its command line."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)  # First, so that the signal is for the one of whom the rest is read.
        try:
            about = Path("/proc", str(pid))
            if (
                about.joinpath("comm").read_text(errors="replace") == f"{name}\n"
                and read_uid(pid) == uid
                and words in _beginning(about / "cmdline")
            ):
                signal.pidfd_send_signal(pidfd, number)
                return True
        finally:
            os.close(pidfd)
    return False


def _beginning(path: Path) -> bytes:
    """Read what is enough for our command line; others have megabytes, and there may be thousands of them."""
    with path.open("rb", buffering=0) as file:
        return file.read(_MAX_ERRORS)


def _give_context(process: trio.Process, settings: Settings) -> None:
    """Give a gated client what a server that is born of it shall have, and let it go.

    Where a unit has the server, too: the client is the agent user's, and so are its limits if he takes it over.
    """
    failed = give_context(process.pid, settings.limits, switch_user=settings.switch_user)
    if failed:
        _log.debug("what tmux is started with cannot all be reset: %s", ", ".join(failed))
    # One byte into an empty pipe does not block. Who is gone already is noticed by those who wait for it.
    with contextlib.suppress(BrokenPipeError):
        os.write(cast("trio.lowlevel.FdStream", process.stdin).fileno(), OPEN_GATE)


def _command(settings: Settings) -> list[str]:
    """Begin with sudo for another user: a server can make its client run things, so the client is never root's."""
    switch = [settings.sudo or "sudo", "-n", "-H", "-u", settings.agent_user.name, "--"] if settings.switch_user else []
    # Two words, so that tmux needs no shell for them: nologin runs nothing, a restricted shell refuses `exec`.
    session = ["-x", "200", "-y", "50", "sleep", "infinity"]
    never_start = [] if settings.tmux_unit is None else ["-N"]
    return [*switch, settings.tmux, *never_start, "-f", "/dev/null", "-u", *_attachment(settings), *session]


def _attachment(settings: Settings) -> list[str]:
    """Say what all of our clients of this socket, and nobody else's, have in their command line."""
    return ["-S", str(settings.tmux_socket), "-C", "new-session", "-A", "-s", CONTROL_SESSION]


def printable(text: str) -> str:
    """Make the server's words fit for one line of a log, whatever they are."""
    line = " ".join(text[:_MAX_ERRORS].split())[:_MAX_WORDS]
    return "".join(character if character.isprintable() else "?" for character in line)
