"""One attempt on real tmux: its directory, script and lifeline, its start, its end, and everything that ends it."""

import contextlib
import hashlib
import logging
import os
import shlex
import signal
import time
from collections.abc import Callable, Coroutine

import trio

from agentd import session
from agentd.attempt_directory import AttemptDirectory
from agentd.errors import TmuxError, TmuxUnknownError
from agentd.leftovers import end_leftovers, end_session
from agentd.lifecycle import Exit, How, exit_from_code
from agentd.lifeline import Lifeline, LifelineJunkError, exit_code, is_pid
from agentd.obstacles import Obstacles, binary_blocked, retried, session_taken, workdir_blocked
from agentd.proc_scan import Stat, descends, is_alive, read_stat, read_tag, read_uid
from agentd.processes import Footprint, Scanner, end_all, remember, signal_group
from agentd.resolve import Blocked, EffectiveAgent
from agentd.script import Script
from agentd.sessions import AttemptRequest, LaunchBlockedError, NeverStartedError
from agentd.settings import Settings
from agentd.terminal import in_front, is_raw
from agentd.tmux import Tmux

START_LIMIT = 30.0
"""Seconds from the keys to `start`; a shell that takes longer has not understood them."""
SETUP_LIMIT = 15.0
"""Seconds that making or respawning a session may take: the bound of its shield."""
NOTE_LIMIT = 2.0
"""Seconds that the session has to remember a start."""
KEY_LIMIT = 1.0
"""Seconds that tmux has to press a key, and at most a third of the grace period, before a signal does it."""
LAUNCHER_LIMIT = 1.0
"""Seconds that a launcher has, after it has said how the harness ended, to end itself."""

_log = logging.getLogger("agentd.launch")


class TmuxSessions:
    """Attempts in the sessions of one tmux server."""

    def __init__(self, settings: Settings, tmux: Tmux, scanner: Scanner, wall: Callable[[], float]) -> None:
        self.settings = settings
        self.tmux = tmux
        self.scanner = scanner
        self.wall = wall
        # The same for every agentd that serves this socket, so that the next one knows what this one started.
        self.instance = hashlib.sha256(os.fsencode(settings.tmux_socket)).hexdigest()[:12]
        self.obstacles = Obstacles()

    async def recover(self) -> bool:
        """End what an earlier agentd left behind; return whether that is done."""
        return await end_leftovers(self.settings, self.tmux, self.scanner, self.instance)

    def attempt(self, request: AttemptRequest) -> "TmuxAttempt":
        """A new attempt; nothing happens before its `launch`."""
        return TmuxAttempt(self, request)

    async def still_blocked(self, effective: EffectiveAgent, blocked: Blocked) -> bool:
        """Whether the cause is still there, as far as `stat`, or one question to tmux, can tell."""
        await trio.lowlevel.checkpoint()
        if blocked.reason == "tmux_unavailable":
            return not self.tmux.connected
        if blocked.reason == "session_taken":
            try:
                found = await session.find(self.tmux, effective.agent.session, self.instance)
            except (TmuxUnknownError, TmuxError):
                return True
            return found is not None and not found.marked
        return bool(blocked.paths) and self.obstacles.same(effective.agent.name, blocked)


class TmuxAttempt:
    """One launch of a harness in a session of its own; single use."""

    def __init__(self, world: TmuxSessions, request: AttemptRequest) -> None:
        self._world = world
        self._request = request
        self._agent = request.effective.agent
        self._tag = f"{world.instance}/{request.run}/{request.number}"
        self._directory = AttemptDirectory(world.settings, world.instance, request.run, request.number)
        self._leftover: session.Found | None = None
        self._place: session.Place | None = None
        self._certain = True
        self._lifeline: Lifeline | None = None
        self._typed = False
        self._accounted = False
        self._launcher: int | None = None
        self._launcher_ticks: int | None = None
        self._harness: int | None = None
        self._tree: frozenset[tuple[int, int]] = frozenset()
        self._noted = False
        self._started = 0.0
        self._exit: Exit | None = None

    def __repr__(self) -> str:
        return f"<TmuxAttempt {self._tag} of {self._agent.name!r}, launcher {self._launcher}, exit {self._exit}>"

    async def launch(self) -> int:
        """Launch the harness and return its pid once it runs."""
        try:
            place = await self._take_place()
            lifeline = self._lifeline or self._write(place)
            await self._remember("keys_sent")
            if self._request.typed:
                self._typed = True
                # The space keeps the line out of a shell's history, and is what a key-eating rc file eats.
                await session.type_line(self._world.tmux, place, f" /bin/sh {self._directory.script}")
            last = False
            while True:
                with trio.move_on_after(START_LIMIT):
                    return await self._await_start(place, lifeline)
                await self._give_up(place, lifeline, last=last)  # returns where it came up while we gave up
                last = True
        except TmuxUnknownError as error:
            self._certain = False
            raise self._blocked(retried("tmux_unavailable", str(error))) from error
        except TmuxError as error:
            if self._place is not None and not is_alive(self._place.shell):
                raise await self._shell_ended(self._place) from error
            raise self._blocked(retried("tmux_refused", str(error))) from error
        except OSError as error:
            raise self._blocked(retried("run_dir", f"The attempt cannot be prepared: {error}")) from error

    async def ended(self) -> Exit:
        """Wait for the end, as often as asked."""
        if self._lifeline is not None and not self._noted:
            self._noted = True
            await self._note_start()
        if self._exit is None and self._lifeline is not None:
            self._exit = await self._read_exit(self._lifeline)
            if self._world.settings.debug and self._place is not None:
                shown = await session.screen(self._world.tmux, self._place)
                _log.debug("agent=%s its screen at the end: %s", self._agent.name, shown)
        await trio.lowlevel.checkpoint()
        return self._exit or Exit(how=How.KILLED, at=self._world.wall(), duration=self._lasted())

    async def interrupt(self, *, again: bool) -> bool:
        """Press C-c, or where the agent is not in the foreground, send what C-c would have sent."""
        await trio.lowlevel.checkpoint()
        if self._place is None:
            return False
        launcher = read_stat(self._launcher) if self._launcher is not None else None
        raw = is_raw(launcher.tty_nr if launcher is not None else self._place.tty_nr)
        if again and not raw:
            return False
        if not again:
            # What carries no tag is known by its parents, and the C-c takes these away.
            before = remember(await self._world.scanner.scan(), self._footprint(keep_shell=True))
            self._tree = before.tree
        harness = read_stat(self._harness) if self._harness is not None else None
        if launcher is not None and (not in_front(launcher) or (harness is not None and harness.state == "T")):
            await self._signal(harness or launcher)
            return False
        patience = min(KEY_LIMIT, self._agent.grace_period / 3)
        try:
            await session.press_interrupt(self._world.tmux, self._place, patience)
        except (TmuxError, TmuxUnknownError) as error:
            _log.warning("agent=%s: C-c by signal instead of by key: %s", self._agent.name, error)
            if launcher is not None:
                await self._signal(launcher)
        return raw

    async def _signal(self, group: Stat) -> None:
        await signal_group(self._world.scanner, group.pgrp, signal.SIGINT, signal.SIGCONT)

    async def sweep(self) -> int:
        """End what the attempt left behind, the session's shell excepted; return how many processes defied that."""
        await trio.lowlevel.checkpoint()
        if not self._typed:
            self._tidy()
            return 0
        if self._exit is not None and self._lifeline is not None:
            with trio.move_on_after(LAUNCHER_LIMIT):
                await self._lifeline.speaker_gone()
        if self._launcher is None:
            self._directory.withdraw()
        # Where nobody knows what the shell has made of the keys, it goes too: what it just forked is not tagged yet.
        ended = await end_all(self._world.scanner, self._footprint(keep_shell=self._accounted))
        if self._exit is not None or self._launcher is None:
            self._tidy()
        return ended.left

    async def close(self) -> None:
        """End the session and what is left on its terminal."""
        await trio.lowlevel.checkpoint()
        try:
            if self._leftover is not None:
                await self._end_leftover(self._leftover)
            if self._place is not None:
                await session.kill(self._world.tmux, self._place)
        except TmuxUnknownError as error:
            _log.warning("agent=%s: nobody knows whether its session ended: %s", self._agent.name, error)
        if self._place is not None:
            await end_all(self._world.scanner, self._footprint(keep_shell=False))
            self._place = None
        self._tidy()

    async def _take_place(self) -> session.Place:
        """Get a session: the run's own from the attempt before, or a new one."""
        previous = self._request.previous
        if isinstance(previous, TmuxAttempt) and previous._place is not None:  # noqa: SLF001 - handed over in the class
            self._place, previous._place = previous._place, None  # noqa: SLF001
            self._certain = previous._certain  # noqa: SLF001
            if self._certain:
                with contextlib.suppress(TmuxError):  # somebody killed the pane: a new session then
                    return await self._shielded(self._respawn(self._place))
        tmux, name = self._world.tmux, self._agent.session
        found = await session.find(tmux, name, self._world.instance)
        self._place, self._certain = None, True
        if found is not None:
            if not found.marked:
                raise self._blocked(session_taken(name, self._world.settings.tmux_socket))
            await self._end_leftover(found)
        return await self._shielded(self._create())

    async def _create(self) -> session.Place:
        world = self._world
        # A shell that is replaced in the middle of its rc files leaves behind what it just forked.
        inside = self._inside(None if self._request.typed else "exec sleep infinity")
        mark = f"{world.instance}/{self._request.run}"
        self._place = await session.create(world.tmux, self._agent.session, mark, inside)
        return self._place if self._request.typed else await self._respawn(self._place)

    async def _respawn(self, place: session.Place) -> session.Place:
        command = None
        if not self._request.typed:
            command = f'exec "$SHELL" -i -c \'/bin/sh {self._directory.script}; exec "$SHELL"\''
            self._tidy()  # what was written for a pane that was gone
            self._write(place)
            self._typed = True
        self._place = await session.respawn(self._world.tmux, place, self._inside(command))
        return self._place

    def _inside(self, command: str | None) -> session.Inside:
        effective = self._request.effective
        return session.Inside(workdir=effective.workdir, env=effective.env, command=command)

    async def _shielded(self, change: Coroutine[object, object, session.Place]) -> session.Place:
        """Have a change of the session done as a whole: cut in the middle, nobody would know what there is."""
        with trio.move_on_after(SETUP_LIMIT, shield=True):
            return await change
        message = f"the session was not ready within {SETUP_LIMIT:g} s"
        raise TmuxUnknownError(message)

    async def _end_leftover(self, found: session.Found) -> None:
        """End a session that is in the way; cancelled in the middle of it, `close` goes on with it."""
        self._leftover = found
        await end_session(found, self._world.tmux, self._world.scanner, self._world.instance)
        self._leftover = None

    def _write(self, place: session.Place) -> Lifeline:
        settings, effective = self._world.settings, self._request.effective
        script = Script(
            lifeline=str(self._directory.fifo),
            tag=self._tag,
            workdir=effective.workdir,
            argv=effective.argv,
            env=effective.env,
            tmux=settings.tmux,
            tmux_socket=str(settings.tmux_socket),
            session=place.session,
            pane=place.pane,
        )
        self._lifeline = self._directory.write(script)
        _log.debug(
            "agent=%s command=%s workdir=%s environment=%s",
            self._agent.name,
            shlex.join(effective.argv),
            effective.workdir,
            ",".join(sorted(effective.env)),
        )
        return self._lifeline

    async def _remember(self, phase: str, patience: float = SETUP_LIMIT) -> None:
        if self._place is None:
            return
        request = self._request
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME) - trio.current_time()
        record = session.Record(
            agent=self._agent.name,
            run=request.run,
            digest=request.effective.digest,
            attempt=request.number,
            tag=self._tag,
            phase=phase,
            restarts=request.restarts,
            pane=self._place.pane,
            launcher=self._launcher,
            launcher_ticks=self._launcher_ticks,
            started=self._started + since_boot if self._started else None,
            deadline=None if request.deadline is None else request.deadline + since_boot,
        )
        await session.remember(self._world.tmux, self._place, record, patience)

    async def _await_start(self, place: session.Place, lifeline: Lifeline) -> int:
        effective = self._request.effective
        try:
            lifeline.watch(os.pidfd_open(place.shell))
        except ProcessLookupError:
            raise await self._shell_ended(place) from None
        while True:
            try:
                line = await lifeline.line(reopen=True)
            except LifelineJunkError:
                message = "its lifeline was flooded before it started"
                raise NeverStartedError(message) from None
            if line is None:
                raise await self._shell_ended(place)
            match line.split(" ", 2):
                case ["start", launcher, harness] if is_pid(launcher) and is_pid(harness):
                    pid = self._believe(lifeline, int(launcher), int(harness))
                    if pid is not None:
                        self._accounted = True
                        self._started = trio.current_time()
                        return pid
                    _log.warning("agent=%s: something that is not its launcher said it had started", self._agent.name)
                case ["blocked", "workdir", how]:
                    self._accounted = True
                    raise self._blocked(workdir_blocked(effective, how, self._world.settings.agent_user.name))
                case ["blocked", "binary", path]:
                    self._accounted = True
                    raise self._blocked(binary_blocked(effective, path))
                case _:
                    _log.warning("agent=%s: its lifeline said something unknown before it started", self._agent.name)

    def _believe(self, lifeline: Lifeline, launcher: int, harness: int) -> int | None:
        """The harness's pid, if the kernel says that the launcher is the agent user's and in the pane's session."""
        uid = self._world.settings.agent_user.uid
        self._place = self._place and session.confirm(self._place)
        if self._place is None:
            return None
        try:
            pidfd = os.pidfd_open(launcher)
        except ProcessLookupError:
            return harness  # So quick an agent that it is gone: its `exit` is in the lifeline already.
        seen = read_stat(launcher)
        # Some rc files move the shell to a session of its own: there its descent tells whose launcher it is, or the tag
        # of the harness (which may be in the middle of its exec, and have no environment just now).
        here = seen is not None and (
            seen.sid == self._place.sid or descends(launcher, self._place.shell) or read_tag(harness) == self._tag
        )
        if seen is None or not here or read_uid(launcher) != uid or launcher == self._place.shell:
            os.close(pidfd)
            return None
        self._launcher, self._launcher_ticks = launcher, seen.start_ticks
        lifeline.watch(pidfd)
        child = read_stat(harness)
        known = child is None or (child.ppid == launcher and read_uid(harness) == uid)
        self._harness = harness if known else launcher
        return self._harness

    async def _note_start(self) -> None:
        """Make the session remember the start; not before everybody else knows of it, since tmux may hang."""
        self._directory.withdraw_script()  # the FIFO stays, for the next agentd to read
        try:
            await self._remember("started", NOTE_LIMIT)
        except (TmuxError, TmuxUnknownError) as error:
            _log.warning("agent=%s: its session does not remember the start: %s", self._agent.name, error)

    async def _read_exit(self, lifeline: Lifeline) -> Exit:
        """Read the lifeline to its end. Junk closes it, and the launcher's end is all that is left to know."""
        try:
            line = await lifeline.line(reopen=False)
            code = exit_code(line) if line is not None else None
        except LifelineJunkError:
            _log.warning("agent=%s: its lifeline said junk; only its launcher's end is watched", self._agent.name)
            await lifeline.speaker_gone()
            code = None
        if code is None:
            return Exit(how=How.KILLED, at=self._world.wall(), duration=self._lasted())
        return exit_from_code(code, at=self._world.wall(), duration=self._lasted())

    def _lasted(self) -> float:
        return trio.current_time() - self._started

    async def _give_up(self, place: session.Place, lifeline: Lifeline, *, last: bool) -> None:
        """Take script and lifeline away; return if the launcher was just quicker, else raise NeverStartedError."""
        self._directory.withdraw()
        if not lifeline.has_writer():
            self._accounted = True
        elif not last:
            return
        self._tidy()
        shown = await session.last_words(self._world.tmux, place)
        message = f"no sign of life within {START_LIMIT:g} s; its screen: {shown}"
        raise NeverStartedError(message)

    async def _shell_ended(self, place: session.Place) -> NeverStartedError:
        shown = await session.last_words(self._world.tmux, place)
        return NeverStartedError(f"its shell ended before that; its screen: {shown}")

    def _footprint(self, *, keep_shell: bool) -> Footprint:
        place = self._place = self._place and session.confirm(self._place)
        return Footprint(
            tag=self._tag,
            launcher=self._launcher,
            launcher_ticks=self._launcher_ticks,
            shell=place.shell if place else None,
            shell_ticks=place.shell_ticks if place else None,
            sid=place.sid if place else None,
            keep_shell=keep_shell,
            tree=self._tree,
        )

    def _tidy(self) -> None:
        """Give back what the attempt holds; nothing can come of it any more."""
        if self._lifeline is not None:
            self._lifeline.close()
        self._directory.remove()

    def _blocked(self, blocked: Blocked) -> LaunchBlockedError:
        self._tidy()
        self._world.obstacles.note(self._agent.name, blocked)
        return LaunchBlockedError(blocked)
