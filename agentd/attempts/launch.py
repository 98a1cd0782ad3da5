"""How an attempt comes up on real tmux: its session, its script and lifeline, the keys, and the word that it runs."""

import contextlib
import errno
import logging
import os
import re
import shlex
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TypeVar

import trio

from agentd.attempts import session
from agentd.attempts.leftovers import end_session
from agentd.attempts.lifeline import Lifeline, LifelineJunkError, is_pid
from agentd.attempts.obstacles import binary_blocked, not_forked, not_prepared, retried, session_taken, workdir_blocked
from agentd.attempts.script import Script
from agentd.attempts.state import AttemptState, World
from agentd.errors import TmuxError, TmuxHaltedError, TmuxUnknownError, cannot_look
from agentd.processes.ending import end_all
from agentd.processes.scan import descends, is_alive, is_gone, read_stat, read_tag, read_uid
from agentd.processes.shortages import PAUSE
from agentd.resolve import Blocked
from agentd.sessions import AttemptRequest, LaunchBlockedError, NeverStartedError, stand_in_blocked

START_LIMIT = 30.0
"""Seconds from the keys to `start`; a shell that takes longer has not understood them."""
LAUNCHER_LIMIT = 1.0
"""Seconds that a launcher has, after it has said how the harness ended, to end itself."""
SETUP_LIMIT = 15.0
"""Seconds that making or respawning a session may take: the bound of its shield."""

# The script is there only when the shell is in its cgroup; if it never comes, the shell is not kept from its admin.
_UNTYPED = (
    "exec /bin/sh -c 'n=0; until [ -r {script} ] || [ $n = 400 ]; do n=$((n+1)); sleep 0.1; done; "
    'exec "$SHELL" -i -c "/bin/sh {script}; exec \\"\\$SHELL\\""\''
)
_CANNOT_FORK = re.compile(r"\bfork: |fork failed|annot fork")
"""What shells say then, in any language of the rest of the sentence."""

_T = TypeVar("_T")

_log = logging.getLogger("agentd.attempts.launch")


class Launch:
    """One launch; what it finds out is in `state`, however far it comes."""

    def __init__(self, world: World, request: AttemptRequest, state: AttemptState) -> None:
        self._world = world
        self._request = request
        self._agent = request.effective.agent
        self._state = state

    async def run(self) -> int:
        """Launch the harness, in the place that `state` has already or in a new one, and return its pid."""
        try:
            begun = await self._go_on()
            if begun is not None and (pid := await self._known_again(begun[1])) is not None:
                return pid
            if begun is None and not self._request.effective.argv:
                raise self._blocked(stand_in_blocked())
            place, lifeline = begun or await self._begin()
            last = False
            while True:
                with trio.move_on_after(START_LIMIT):
                    return await self._await_start(place, lifeline)
                await self._give_up(place, lifeline, last=last)  # returns where it came up while we gave up
                last = True
        except TmuxUnknownError as error:
            self._state.certain = self._state.certain and isinstance(error, TmuxHaltedError)
            raise self._blocked(retried("tmux_unavailable", str(error))) from error
        except TmuxError as error:
            if session.is_fork_failure(error):
                raise self._blocked(not_forked(str(error))) from error
            if self._state.place is not None and is_gone(self._state.place.shell):
                raise await self._shell_ended(self._state.place) from error
            raise self._blocked(retried("tmux_refused", str(error))) from error
        except OSError as error:
            raise self._blocked(not_prepared(error, self._world.settings.run_dir)) from error

    async def _begin(self) -> tuple[session.Place, Lifeline]:
        place = await self._take_place()
        self._state.typed = True
        self._admit(place)
        lifeline = self._write(place)
        if self._request.typed:
            # The space keeps the line out of a shell's history, and is what a key-eating rc file eats.
            await session.type_line(self._world.tmux, place, f" /bin/sh {self._state.directory.script}")
        return place, lifeline

    async def _go_on(self) -> tuple[session.Place, Lifeline] | None:
        """Take up a launch that a dead agentd began, if something has come of it; else nothing can, from now on."""
        state = self._state
        if not state.typed:
            return None
        if state.place is not None and state.directory.fifo.exists():
            # Something may run: what cannot be looked at is waited for, or it would be swept.
            state.lifeline = lifeline = await self._outlast(state.directory.reopen)
            if lifeline.has_writer():
                return state.place, lifeline
            state.directory.withdraw()
            if lifeline.has_writer():
                return state.place, lifeline
        ended = await end_all(self._world.scanner, state.footprint(keep_shell=True))
        if ended.left:
            message = f"processes of its launch by an earlier agentd ({ended.left}) cannot be ended"
            raise NeverStartedError(message)
        state.tidy()
        state.lifeline, state.typed = None, False
        return None

    async def _known_again(self, lifeline: Lifeline) -> int | None:
        """The harness of a launch whose `start` a dead agentd has read, and not noted any more: by its tag."""
        state = self._state
        if lifeline.has_word():
            return None
        processes = (await self._world.scanner.scan()).processes
        for process in processes.values():
            parent = processes.get(process.ppid)
            if process.tag == state.tag and parent is not None and parent.tag != state.tag:
                pid = await self._outlast(partial(self._believe, lifeline, parent.pid, process.pid))
                if pid is not None:
                    return self._came_up(pid)
        return None

    def _came_up(self, pid: int) -> int:
        self._state.accounted = True
        self._state.started = trio.current_time()
        self._state.directory.withdraw_script()  # the FIFO stays, for the next agentd to read
        return pid

    async def _take_place(self) -> session.Place:
        """Get a session: the run's own from the attempt before, or a new one."""
        state, name = self._state, self._agent.session
        if state.place is not None and state.certain:
            try:
                return await self._shielded(self._respawn(state.place))
            except TmuxError as error:
                if session.is_fork_failure(error):
                    raise
            # Somebody killed the pane: a new session then.
        state.place, state.certain = None, True
        found = await session.find(self._world.tmux, name, self._world.instance)
        if found is not None:
            if found.run is None or found.run in self._world.untouchable:
                raise self._blocked(session_taken(name, self._world.settings.tmux_socket))
            state.leftover = found  # cancelled in the middle of it, the attempt's close goes on with it
            await end_session(found, self._world)
            state.leftover = None
        return await self._shielded(self._create())

    async def _create(self) -> session.Place:
        world = self._world
        # A shell that is replaced in the middle of its rc files leaves behind what it just forked.
        inside = self._inside(None if self._request.typed else "exec sleep infinity")
        mark = f"{world.instance}/{self._request.run}"
        self._state.place = place = await session.create(world.tmux, self._agent.session, mark, inside)
        return place if self._request.typed else await self._respawn(place)

    async def _respawn(self, place: session.Place) -> session.Place:
        command = None if self._request.typed else _UNTYPED.format(script=self._state.directory.script)
        self._state.place = place = await session.respawn(self._world.tmux, place, self._inside(command))
        return place

    def _admit(self, place: session.Place) -> None:
        """Put the shell, which has not been told anything yet, into the attempt's cgroup: what it starts is born there.

        The pid is tmux's word, and so the agents'; that it is a process of the agent user's is the kernel's.
        """
        self._state.cgroup = cgroup = self._world.cgroups.make(self._request.run, self._request.number)
        if cgroup is None:
            return
        try:
            if read_uid(place.shell) == self._world.settings.agent_user.uid:
                cgroup.admit(place.shell)
        except ProcessLookupError:
            return  # its end is noticed by those who wait for its start
        except OSError as error:
            cgroup.remove()
            self._state.cgroup = None
            if cannot_look(error):
                raise
            self._world.cgroups.tell(error)

    def _inside(self, command: str | None) -> session.Inside:
        effective = self._request.effective
        return session.Inside(workdir=effective.workdir, env=effective.env, command=command)

    async def _shielded(self, change: Coroutine[object, object, session.Place]) -> session.Place:
        """Have a change of the session done as a whole: cut in the middle, nobody would know what there is."""
        with trio.move_on_after(SETUP_LIMIT, shield=True):
            return await change
        message = f"the session was not ready within {SETUP_LIMIT:g} s"
        raise TmuxUnknownError(message)

    def _write(self, place: session.Place) -> Lifeline:
        settings, effective = self._world.settings, self._request.effective
        script = Script(
            lifeline=str(self._state.directory.fifo),
            tag=self._state.tag,
            workdir=effective.workdir,
            argv=effective.argv,
            env=effective.env,
            tmux=settings.tmux,
            tmux_socket=str(settings.tmux_socket),
            session=place.session,
            pane=place.pane,
        )
        self._state.lifeline = lifeline = self._state.directory.write(script)
        _log.debug(
            "agent=%s command=%s workdir=%s environment=%s",
            self._agent.name,
            shlex.join(effective.argv),
            effective.workdir,
            ",".join(sorted(effective.env)),
        )
        return lifeline

    async def _await_start(self, place: session.Place, lifeline: Lifeline) -> int:
        effective, state = self._request.effective, self._state
        try:
            await self._outlast(lambda: lifeline.watch(os.pidfd_open(place.shell)))
        except ProcessLookupError:
            raise await self._shell_ended(place) from None
        told: set[str] = set()
        while True:
            line = await self._next_line(lifeline)
            if line is None:
                raise await self._shell_ended(place)
            match line.split(" ", 2):
                case ["start", launcher, harness] if is_pid(launcher) and is_pid(harness):
                    pid = await self._outlast(partial(self._believe, lifeline, int(launcher), int(harness)))
                    if pid is not None:
                        return self._came_up(pid)
                    self._warn_once(told, "something that is not its launcher said it had started")
                case ["blocked", "workdir", how]:
                    state.accounted = True
                    raise self._blocked(workdir_blocked(effective, how, self._world.settings.agent_user.name))
                case ["blocked", "binary", path]:
                    state.accounted = True
                    raise self._blocked(binary_blocked(effective, path))
                case ["exit", code]:
                    raise await self._launcher_ended(place, lifeline, code)
                case _:
                    self._warn_once(told, "its lifeline said something unknown before it started")

    async def _next_line(self, lifeline: Lifeline) -> str | None:
        while True:
            try:
                return await lifeline.line(reopen=True)
            except LifelineJunkError:
                message = "its lifeline was flooded before it started"
                raise NeverStartedError(message) from None
            except OSError as error:
                self._world.scanner.shortages.note(error)
            await trio.sleep(PAUSE)

    def _warn_once(self, told: set[str], words: str) -> None:
        """Warn of what may be said a thousand times in a launch."""
        if words not in told:
            told.add(words)
            _log.warning("agent=%s: %s", self._agent.name, words)

    def _believe(self, lifeline: Lifeline, launcher: int, harness: int) -> int | None:
        """The harness's pid, if the kernel says that the launcher is the agent user's and in the pane's session."""
        state, uid = self._state, self._world.settings.agent_user.uid
        place = state.place = state.place and session.confirm(state.place)
        if place is None:
            return None
        try:
            pidfd = os.pidfd_open(launcher)
        except ProcessLookupError:
            return _gone_by_now(harness)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT}:  # one thread of a process
                return None
            raise
        try:
            seen, owner = read_stat(launcher), read_uid(launcher)
            if seen is None or owner is None:
                return _gone_by_now(harness)
            # Some rc files move the shell to a session of its own: there its descent tells whose launcher it is, or the
            # tag of the harness (which may be in the middle of its exec, and have no environment just now).
            here = seen.sid == place.sid or descends(launcher, place.shell) or read_tag(harness) == state.tag
            if not here or owner != uid or launcher == place.shell:
                return None
            child = read_stat(harness)
            known = child is None or (child.ppid == launcher and read_uid(harness) == uid)
            watched, pidfd = pidfd, -1
            lifeline.watch(watched)
        finally:
            if pidfd >= 0:
                os.close(pidfd)
        state.launcher, state.launcher_ticks = launcher, seen.start_ticks
        state.harness = harness if known else launcher
        return state.harness

    async def _give_up(self, place: session.Place, lifeline: Lifeline, *, last: bool) -> None:
        """Take script and lifeline away; return if the launcher was just quicker, else raise NeverStartedError."""
        withdrawn = self._state.directory.withdraw()
        if not lifeline.has_writer():
            self._state.accounted = withdrawn
        elif not last:
            return
        self._state.tidy()
        raise await self._never_started(place, f"no sign of life within {START_LIMIT:g} s")

    async def _launcher_ended(
        self, place: session.Place, lifeline: Lifeline, code: str
    ) -> NeverStartedError | LaunchBlockedError:
        """What is to be said of a launcher that could not have the harness started; its shell stays, if it is true."""
        with trio.move_on_after(LAUNCHER_LIMIT), contextlib.suppress(LifelineJunkError):
            self._state.accounted = await lifeline.line(reopen=False) is None
        await session.screen(self._world.tmux, place)  # by its answer tmux has read what was printed before this
        return await self._never_started(place, f"its launcher ended with code {code[:3]} before that")

    async def _outlast(self, look: Callable[[], _T]) -> _T:
        """Do what no shortage may keep from being done, once something may run."""
        return await self._world.scanner.shortages.outlast(look)

    async def _shell_ended(self, place: session.Place) -> NeverStartedError | LaunchBlockedError:
        return await self._never_started(place, "its shell ended before that")

    async def _never_started(self, place: session.Place, how: str) -> NeverStartedError | LaunchBlockedError:
        """An end by the agent's own fault, unless the machine was short of what a start takes."""
        shown = await session.last_words(self._world.tmux, place)
        short = self._world.scanner.shortages.warnings
        if short:
            return self._blocked(retried("shortage", short[0][0].upper() + short[0][1:]))
        if _CANNOT_FORK.search(shown):
            return self._blocked(retried("shortage", f"Its shell can start no process; its screen: {shown}"))
        return NeverStartedError(f"{how}; its screen: {shown}")

    def _blocked(self, blocked: Blocked) -> LaunchBlockedError:
        self._state.tidy()
        self._world.obstacles.note(self._agent.name, blocked)
        return LaunchBlockedError(blocked)


def _gone_by_now(harness: int) -> int | None:
    """So quick an agent that its launcher is gone: its `exit` is in the lifeline already. What lives is another's."""
    return None if is_alive(harness) else harness
