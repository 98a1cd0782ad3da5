"""One attempt on real tmux: its directory, script and lifeline, its start, its end, and everything that ends it."""

import contextlib
import hashlib
import logging
import os
import shlex
import signal
import time
from collections.abc import Callable, Coroutine

import attrs
import trio

from agentd import session
from agentd.attempt_directory import AttemptDirectory
from agentd.errors import TmuxError, TmuxUnknownError
from agentd.lifecycle import Exit, How, exit_from_code
from agentd.lifeline import Lifeline, LifelineJunkError
from agentd.obstacles import Obstacles, binary_blocked, workdir_blocked
from agentd.proc_scan import read_stat, read_uid
from agentd.processes import Footprint, Scanner, end_all, remember, signal_group
from agentd.resolve import Blocked, EffectiveAgent
from agentd.script import Script
from agentd.sessions import AttemptRequest, LaunchBlockedError, NeverStartedError
from agentd.settings import Settings
from agentd.terminal import is_raw
from agentd.tmux import Tmux

START_LIMIT = 30.0
"""Seconds from the keys to `start`; a shell that takes longer has not understood them."""
SETUP_LIMIT = 15.0
"""Seconds that making or respawning a session may take: the bound of its shield."""
LAUNCHER_LIMIT = 1.0
"""Seconds that a launcher has, after it has said how the harness ended, to end itself."""
LAST_LINES, LAST_CHARACTERS = 5, 400
"""How much of the screen tells why a harness never started."""

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
            return found is not None and found.record is None and not found.marked
        return bool(blocked.paths) and self.obstacles.same(effective.agent.name, blocked)


class TmuxAttempt:
    """One launch of a harness in a session of its own; single use."""

    def __init__(self, world: TmuxSessions, request: AttemptRequest) -> None:
        self._world = world
        self._request = request
        self._agent = request.effective.agent
        self._tag = f"{world.instance}/{request.run}/{request.number}"
        self._directory = AttemptDirectory(world.settings, f"{request.run}-{request.number}")
        self._place: session.Place | None = None
        self._certain = True
        self._lifeline: Lifeline | None = None
        self._typed = False
        self._nothing_started = False
        self._launcher: int | None = None
        self._launcher_ticks: int | None = None
        self._harness: int | None = None
        self._tree: frozenset[tuple[int, int]] = frozenset()
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
            while True:
                with trio.move_on_after(START_LIMIT):
                    return await self._await_start(lifeline)
                await self._give_up(place, lifeline)  # returns where it came up while we gave up
        except TmuxUnknownError as error:
            self._certain = False
            raise self._blocked(_look_again("tmux_unavailable", str(error))) from error
        except TmuxError as error:
            raise self._blocked(_look_again("tmux_refused", str(error))) from error
        except OSError as error:
            raise self._blocked(_look_again("run_dir", f"The attempt cannot be prepared: {error}")) from error

    async def ended(self) -> Exit:
        """Wait for the end, as often as asked."""
        if self._exit is None and self._lifeline is not None:
            self._exit = await self._read_exit(self._lifeline)
            if self._world.settings.debug and self._place is not None:
                shown = await self._screen(self._place)
                _log.debug("agent=%s its screen at the end: %s", self._agent.name, shown)
        await trio.lowlevel.checkpoint()
        return self._exit or Exit(how=How.KILLED, at=self._world.wall(), duration=self._lasted())

    async def interrupt(self, *, again: bool) -> bool:
        """Press C-c, or where the agent is not in the foreground, send what C-c would have sent."""
        await trio.lowlevel.checkpoint()
        if self._place is None:
            return False
        raw = is_raw(self._place.tty_nr)
        if again and not raw:
            return False
        if not again:
            # What carries no tag is known by its parents, and the C-c takes these away.
            before = remember(await self._world.scanner.scan(), self._footprint(keep_shell=True))
            self._tree = before.tree
        launcher = read_stat(self._launcher) if self._launcher is not None else None
        harness = read_stat(self._harness) if self._harness is not None else None
        background = launcher is not None and launcher.tpgid == self._place.shell
        stopped = harness is not None and harness.state == "T"
        if launcher is not None and (background or stopped):
            group = harness.pgrp if harness is not None else launcher.pgrp
            await signal_group(self._world.scanner, group, signal.SIGINT, signal.SIGCONT)
            return False
        try:
            await session.press_interrupt(self._world.tmux, self._place)
        except (TmuxError, TmuxUnknownError) as error:
            _log.warning("agent=%s: C-c by signal instead of by key: %s", self._agent.name, error)
            if launcher is not None:
                await signal_group(self._world.scanner, launcher.pgrp, signal.SIGINT)
        return raw

    async def sweep(self) -> int:
        """End what the attempt left behind, the session's shell excepted; return how many processes defied that."""
        await trio.lowlevel.checkpoint()
        if not self._typed:
            self._tidy()
            return 0
        if self._exit is not None and self._lifeline is not None:
            with trio.move_on_after(LAUNCHER_LIMIT):
                await self._lifeline.launcher_gone()
        if self._launcher is None:
            self._directory.withdraw()
        # Where nobody knows what the shell has made of the keys, it goes too: what it just forked is not tagged yet.
        known = self._launcher is not None or self._nothing_started
        ended = await end_all(self._world.scanner, self._footprint(keep_shell=known))
        if self._exit is not None or self._launcher is None:
            self._tidy()
        return ended.left

    async def close(self) -> None:
        """End the session and what is left on its terminal."""
        await trio.lowlevel.checkpoint()
        if self._place is not None:
            try:
                await session.kill(self._world.tmux, self._place)
            except TmuxUnknownError as error:
                _log.warning("agent=%s: nobody knows whether its session ended: %s", self._agent.name, error)
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
            if found.record is None and not found.marked:
                message = (
                    f"A tmux session named {name!r} that agentd did not make is in the way; end it with "
                    f"'tmux -S {self._world.settings.tmux_socket} kill-session -t ={name}', or set another session."
                )
                raise self._blocked(Blocked(reason="session_taken", message=message))
            await self._end_leftover(found)
        return await self._shielded(self._create())

    async def _create(self) -> session.Place:
        effective, world = self._request.effective, self._world
        mark = f"{world.instance}/{self._request.run}"
        self._place = await session.create(world.tmux, self._agent.session, effective.workdir, effective.env, mark)
        return self._place if self._request.typed else await self._respawn(self._place)

    async def _respawn(self, place: session.Place) -> session.Place:
        effective = self._request.effective
        command = None
        if not self._request.typed:
            command = f'exec "$SHELL" -i -c \'/bin/sh {self._directory.script}; exec "$SHELL"\''
            self._write(place)
            self._typed = True
        self._place = await session.respawn(self._world.tmux, place, effective.workdir, effective.env, command)
        return self._place

    async def _shielded(self, change: Coroutine[object, object, session.Place]) -> session.Place:
        """Have a change of the session done as a whole: cut in the middle, nobody would know what there is."""
        with trio.move_on_after(SETUP_LIMIT, shield=True):
            return await change
        message = f"the session was not ready within {SETUP_LIMIT:g} s"
        raise TmuxUnknownError(message)

    async def _end_leftover(self, found: session.Found) -> None:
        """End a session of ours that no run of this agentd has, with what its attempt left."""
        _log.warning("agent=%s: ends a session that was left behind", self._agent.name)
        record = found.record
        footprint = Footprint(
            tag=record.tag if record else f"{self._world.instance}/?",
            launcher=record.launcher if record else None,
            launcher_ticks=record.launcher_ticks if record else None,
            shell=found.place.shell,
            shell_ticks=found.place.shell_ticks,
            sid=found.place.sid,
            keep_shell=True,
        )
        await end_all(self._world.scanner, footprint)
        await session.kill(self._world.tmux, found.place)
        await end_all(self._world.scanner, attrs.evolve(footprint, keep_shell=False))
        if record is not None and record.run.isalnum():  # the agents' word, and no path
            AttemptDirectory(self._world.settings, f"{record.run}-{record.attempt}").remove()

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

    async def _remember(self, phase: str) -> None:
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
        await session.remember(self._world.tmux, self._place, record)

    async def _await_start(self, lifeline: Lifeline) -> int:
        effective = self._request.effective
        while True:
            try:
                line = await lifeline.line(reopen=True)
            except LifelineJunkError:
                message = "its lifeline was flooded before it started"
                raise NeverStartedError(message) from None
            match (line or "").split(" ", 2):
                case ["start", launcher, harness] if _is_pid(launcher) and _is_pid(harness):
                    pid = self._believe(lifeline, int(launcher), int(harness))
                    if pid is not None:
                        await self._note_start()
                        return pid
                    _log.warning("agent=%s: something that is not its launcher said it had started", self._agent.name)
                case ["blocked", "workdir", how]:
                    self._nothing_started = True
                    raise self._blocked(workdir_blocked(effective, how, self._world.settings.agent_user.name))
                case ["blocked", "binary", path]:
                    self._nothing_started = True
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
        theirs = seen is not None and seen.sid == self._place.sid and read_uid(launcher) == uid
        if seen is None or not theirs or launcher == self._place.shell:
            os.close(pidfd)
            return None
        self._launcher, self._launcher_ticks = launcher, seen.start_ticks
        lifeline.watch(pidfd)
        child = read_stat(harness)
        known = child is None or (child.ppid == launcher and read_uid(harness) == uid)
        self._harness = harness if known else launcher
        return self._harness

    async def _note_start(self) -> None:
        self._started = trio.current_time()
        self._directory.withdraw_script()  # the FIFO stays, for the next agentd to read
        try:
            await self._remember("started")
        except (TmuxError, TmuxUnknownError) as error:
            _log.warning("agent=%s: its session does not remember the start: %s", self._agent.name, error)

    async def _read_exit(self, lifeline: Lifeline) -> Exit:
        """Read the lifeline to its end. Junk closes it, and the launcher's end is all that is left to know."""
        try:
            line = await lifeline.line(reopen=False)
            code = _exit_code(line) if line is not None else None
        except LifelineJunkError:
            _log.warning("agent=%s: its lifeline said junk; only its launcher's end is watched", self._agent.name)
            await lifeline.launcher_gone()
            code = None
        if code is None:
            return Exit(how=How.KILLED, at=self._world.wall(), duration=self._lasted())
        return exit_from_code(code, at=self._world.wall(), duration=self._lasted())

    def _lasted(self) -> float:
        return trio.current_time() - self._started

    async def _give_up(self, place: session.Place, lifeline: Lifeline) -> None:
        """Take script and lifeline away; return if the launcher was just quicker, else raise NeverStartedError."""
        self._directory.withdraw()
        if lifeline.has_writer():
            return
        self._nothing_started = True
        self._tidy()
        last = " | ".join((await self._screen(place)).splitlines()[-LAST_LINES:])[-LAST_CHARACTERS:]
        message = f"no sign of life within {START_LIMIT:g} s; its screen: {last or 'empty'}"
        raise NeverStartedError(message)

    async def _screen(self, place: session.Place) -> str:
        try:
            return await session.screen(self._world.tmux, place)
        except (TmuxError, TmuxUnknownError) as error:
            return f"unknown, {error}"

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


def _is_pid(word: str) -> bool:
    return word.isdecimal() and len(word) < 10 and int(word) > 0  # noqa: PLR2004 - what the kernel counts up to


def _exit_code(line: str) -> int:
    code = line.removeprefix("exit ")
    if code == line or not code.isdecimal() or len(code) > 3 or int(code) > 255:  # noqa: PLR2004 - of a byte
        raise LifelineJunkError
    return int(code)


def _look_again(reason: str, what: str) -> Blocked:
    """Something that no path tells of: every look tries again."""
    return Blocked(reason=reason, message=f"{what}; agentd tries again at each look.")
