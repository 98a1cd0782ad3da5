"""An agent's tmux session: find, create, respawn, type, interrupt, kill."""

import contextlib
import os
from collections.abc import Mapping

import attrs
import trio

from agentd.errors import TmuxError, TmuxServerGoneError, TmuxUnknownError, is_shortage
from agentd.processes.scan import is_gone, read_stat
from agentd.tmux.connection import Tmux
from agentd.tmux.protocol import escape_format

WIDTH, HEIGHT = "200", "50"
MARK = "AGENTD_SESSION"
"""A variable of every session that agentd makes, from its first moment: whose it is, agentd's and the run's."""

LAST_LINES, LAST_CHARACTERS = 5, 400
"""How much of the screen tells why a harness never started."""

LOSS_LIMIT = 2.0
"""Seconds for the question what is gone."""
SERVER_END_LIMIT = 0.5
"""Seconds that a server takes to end, once its sessions or clients have."""
_SERVER_GONE = "the tmux server is gone"

_EXIT = "@agentd_exit"
"""A session option in which the launch script leaves how the harness ended, in case that nobody listens."""
NOBODY = 0
"""The shell of a pane that has none: no process has this pid."""
_FIELDS = "#{pid} #{session_id} #{pane_id} #{pane_pid}"


def is_fork_failure(error: TmuxError) -> bool:
    """Whether tmux could start nothing in a pane, be it for want of processes, memory or terminals."""
    return "fork failed" in str(error)


@attrs.frozen(kw_only=True)
class Inside:
    """What runs in a pane: the agent user's own shell, or a command of that shell. The environment is secret."""

    workdir: str
    env: Mapping[str, str] = attrs.field(repr=False)
    command: str | None = None

    def words(self) -> tuple[str, ...]:
        """The same for a tmux command that makes or fills a pane; they come last in it."""
        variables = (word for name, value in self.env.items() for word in ("-e", f"{name}={value}"))
        return ("-c", escape_format(self.workdir), *variables, *(() if self.command is None else (self.command,)))


@attrs.frozen(kw_only=True)
class Place:
    """Where an attempt lives: tmux's ids, and the pane's shell as tmux names it and the kernel confirms it."""

    server: int
    session: str
    pane: str
    shell: int
    shell_ticks: int | None
    sid: int | None
    tty_nr: int


@attrs.frozen(kw_only=True)
class Found:
    """A session that is there: its panes, and whose run made it, by its mark; without one it is somebody else's."""

    places: tuple[Place, ...]
    run: str | None

    @property
    def place(self) -> Place:
        """The first pane, which is agentd's own unless somebody has closed it."""
        return self.places[0]

    def place_like(self, before: Place | None) -> Place | None:
        """The pane that was known before, as it is now; without any before, the first."""
        if before is None:
            return self.place
        now = next((place for place in self.places if place.pane == before.pane), None)
        if now is None or (now.server, now.session) != (before.server, before.session):
            return None
        # What the kernel has told of the shell once stays true when the shell is gone.
        return before if now.shell == before.shell else now


async def find(tmux: Tmux, name: str, mark: str) -> Found | None:
    """The session of exactly that name, or None.

    Raises:
        TmuxUnknownError: if nobody knows.
    """
    try:
        lines = await tmux.command("list-panes", "-s", "-t", f"={name}:", "-F", _FIELDS)
    except TmuxError as error:
        if "can't find" in str(error):
            return None
        raise
    found = await _found(tmux, lines, mark)
    return found[0] if found else None


async def find_all(tmux: Tmux, mark: str) -> list[Found]:
    """All sessions of ours.

    Raises:
        TmuxUnknownError: if nobody knows.
    """
    found = await _found(tmux, await tmux.command("list-panes", "-a", "-F", _FIELDS), mark)
    return [one for one in found if one.run is not None]


async def _found(tmux: Tmux, lines: tuple[str, ...], mark: str) -> list[Found]:
    sessions: dict[str, list[Place]] = {}
    for place in map(_read_pane, lines):
        sessions.setdefault(place.session, []).append(place)
    return [Found(places=tuple(places), run=await _run_of(tmux, places[0], mark)) for places in sessions.values()]


async def _run_of(tmux: Tmux, place: Place, mark: str) -> str | None:
    try:
        shown = await tmux.command("show-environment", "-t", place.session, MARK)
    except TmuxError:
        return None
    prefix = f"{MARK}={mark}/"
    return shown[0].removeprefix(prefix) if shown and shown[0].startswith(prefix) else None


async def exit_said(tmux: Tmux, place: Place, tag: str) -> str | None:
    """The exit code that the attempt of that tag has left in its session, as it says, or None.

    Raises:
        TmuxUnknownError: if nobody knows.
    """
    try:
        lines = await _command(tmux, place, "show-options", "-q", "-v", "-t", place.session, _EXIT)
    except TmuxError:
        return None
    said, _, code = (lines[0] if lines else "").partition(" ")
    return code if said == tag else None


async def create(tmux: Tmux, name: str, mark: str, inside: Inside) -> Place:
    """Make the session.

    Raises:
        TmuxError: if tmux refuses, for example because the name is taken.
    """
    lines = await tmux.command(
        *("new-session", "-d", "-P", "-F", _FIELDS, "-s", escape_format(name)),
        *("-x", WIDTH, "-y", HEIGHT, "-e", f"{MARK}={mark}", *inside.words()),
    )
    place = _read_pane(lines[0] if lines else "")
    # A shell that dies leaves its words on the screen, and the session to look at them; unless it was too quick.
    with contextlib.suppress(TmuxError):
        await tmux.command("set-option", "-w", "-t", place.pane, "remain-on-exit", "on")
    return place


async def respawn(tmux: Tmux, place: Place, inside: Inside) -> Place:
    """Put something new into the pane; who is attached stays so, and the screen is kept.

    Raises:
        TmuxError: if the pane is gone, or nothing could be forked into it, and it is gone because of that.
    """
    if place.shell == NOBODY:
        message = f"nothing runs in the pane {place.pane}"
        raise TmuxError(message)
    # A reset pushes what is on the screen into the history, where a respawn would lose it: the error is there.
    await _command(tmux, place, "send-keys", "-R", "-t", place.pane)
    try:
        await _command(tmux, place, "respawn-pane", "-k", "-t", place.pane, *inside.words())
    except TmuxError as error:
        if is_fork_failure(error):
            await kill(tmux, place)  # tmux 3.3a crashes at whatever is done to such a pane, another respawn included
        raise
    lines = await _command(tmux, place, "list-panes", "-s", "-t", place.session, "-F", _FIELDS)
    for fresh in map(_read_pane, lines):
        if fresh.pane == place.pane:
            return fresh
    message = f"the pane {place.pane} is gone"
    raise TmuxError(message)


async def type_line(tmux: Tmux, place: Place, line: str) -> None:
    """Type a line, and Enter, into the shell."""
    await _command(tmux, place, "send-keys", "-l", "-t", place.pane, line)
    await _command(tmux, place, "send-keys", "-t", place.pane, "Enter")


async def press_interrupt(tmux: Tmux, place: Place, patience: float) -> None:
    """Press C-c in the agent's pane, whichever window is shown and whatever mode an admin has left it in."""
    await _command(tmux, place, "copy-mode", "-q", "-t", place.pane, timeout=patience)
    await _command(tmux, place, "send-keys", "-t", place.pane, "C-c", timeout=patience)


async def loss(tmux: Tmux, place: Place) -> str | None:
    """What is gone of a place, in words; nothing is said where all of it is there, and None where nobody knows."""
    ask = ("list-panes", "-s", "-t", place.session, "-F", "#{pane_id} #{pane_dead}")
    try:
        lines = await _command(tmux, place, *ask, timeout=LOSS_LIMIT)
    except TmuxServerGoneError:
        return _SERVER_GONE
    except TmuxError:  # a server that is told to end ends its sessions first, and may answer yet
        return _SERVER_GONE if await _server_ends(place.server) else "its tmux session is gone"
    except TmuxUnknownError:
        return _SERVER_GONE if await _server_ends(place.server) else None
    if f"{place.pane} 1" not in lines and f"{place.pane} 0" not in lines:
        return "its tmux pane was closed"
    # tmux may not have heard of it yet.
    return "its shell has ended" if f"{place.pane} 1" in lines or is_gone(place.shell) else ""


async def _server_ends(server: int) -> bool:
    """Whether a server, which seems to be about to, has ended."""
    try:
        pidfd = os.pidfd_open(server)
    except OSError as error:
        return not is_shortage(error)
    try:
        with trio.move_on_after(SERVER_END_LIMIT):
            await trio.lowlevel.wait_readable(pidfd)
            return True
        return False
    finally:
        os.close(pidfd)


async def kill(tmux: Tmux, place: Place, patience: float = 10.0) -> None:
    """End pane and session; that either is gone already is fine. A grouped session would keep the pane otherwise.

    Raises:
        TmuxUnknownError: if nobody knows whether they ended.
    """
    for command in ("kill-pane", place.pane), ("kill-session", place.session):
        try:
            await _command(tmux, place, command[0], "-t", command[1], timeout=patience)
        except TmuxError:
            continue


async def screen(tmux: Tmux, place: Place) -> str:
    """What the pane shows now, without the blank lines, or why nobody knows."""
    try:
        lines = await _command(tmux, place, "capture-pane", "-p", "-t", place.pane)
    except (TmuxError, TmuxUnknownError) as error:
        return f"unknown, {error}"
    return "\n".join(line.rstrip() for line in lines if line.strip())


async def last_words(tmux: Tmux, place: Place) -> str:
    """The last lines of the screen in one, for a message."""
    lines = (await screen(tmux, place)).splitlines()[-LAST_LINES:]
    return " | ".join(lines)[-LAST_CHARACTERS:] or "empty"


def confirm(place: Place) -> Place:
    """Add what the kernel says of the pane's shell, once it leads a session: a shell just forked does not yet.

    Where there is nothing to ask with just now, it is confirmed later.
    """
    if place.sid is not None:
        return place
    try:
        stat = read_stat(place.shell)
    except OSError as error:
        if not is_shortage(error):
            raise
        return place
    if stat is None or stat.sid != stat.pid:
        return place
    return attrs.evolve(place, shell_ticks=stat.start_ticks, sid=stat.sid, tty_nr=stat.tty_nr)


async def _command(tmux: Tmux, place: Place, *words: str, timeout: float = 10.0) -> tuple[str, ...]:  # noqa: ASYNC109
    """Have tmux do something to a place. A new server counts its ids from 0 again: there they are somebody else's.

    Raises:
        TmuxError: if the place has gone with its server.
    """
    return await tmux.command(*words, server=place.server, timeout=timeout)


def _read_pane(line: str) -> Place:
    words = line.split(" ")
    server, session, pane, pid = words if len(words) == 4 else ("",) * 4  # noqa: PLR2004 - as many as there are fields
    if pid == "-1":  # tmux could not fork what was to be in it
        pid = str(NOBODY)
    pids = all(word.isdecimal() and len(word) < 10 for word in (server, pid))  # noqa: PLR2004
    if not (pids and session.startswith("$") and pane.startswith("%")):
        message = "tmux described a pane as nothing that could be one"
        raise TmuxError(message)
    place = Place(
        server=int(server),
        session=session,
        pane=pane,
        shell=int(pid),
        shell_ticks=None,
        sid=None,
        tty_nr=0,
    )
    return confirm(place)
