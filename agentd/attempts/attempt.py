"""One attempt on real tmux, from its launch to its end, and everything that ends it."""

import logging
import signal
from typing import Any

import attrs
import trio

from agentd.attempts import session
from agentd.attempts.directory import AttemptDirectory
from agentd.attempts.launch import LAUNCHER_LIMIT, Launch
from agentd.attempts.leftovers import end_session, end_sessions_later
from agentd.attempts.lifeline import Lifeline, LifelineJunkError, exit_code
from agentd.attempts.state import AttemptState, World, remembered_place
from agentd.attempts.terminal import in_front, is_raw
from agentd.errors import TmuxError, TmuxUnknownError, is_shortage
from agentd.lifecycle import Exit, How, State, exit_from_code
from agentd.processes.ending import end_all, remember, signal_group
from agentd.processes.scan import Stat
from agentd.sessions import AttemptRequest, RunNote

ASK_AGAIN = 1.0
"""Seconds between two questions for an exit code that tmux has, and does not tell because it stands still."""
KILL_LIMIT = 2.0
"""Seconds that tmux has to end a session, before that is left for later."""
KEY_LIMIT = 1.0
"""Seconds that tmux has to press a key, and at most a third of the grace period, before a signal does it."""
LISTEN_PAUSE = 0.5
"""Seconds until a lifeline that cannot be opened is tried again."""

_log = logging.getLogger("agentd.attempts.launch")


class TmuxAttempt:
    """One launch of a harness in a session of its own; single use."""

    def __init__(self, world: World, request: AttemptRequest, *, taken_over: bool = False) -> None:
        self._world = world
        self._request = request
        self._agent = request.effective.agent
        self._taken_over = taken_over
        self.state = AttemptState(
            tag=f"{world.instance}/{request.run}/{request.number}",
            directory=AttemptDirectory(world.settings, world.instance, request.run, request.number),
        )
        if isinstance(request.previous, TmuxAttempt):
            before = request.previous.state
            self.state.place, self.state.certain, before.place = before.place, before.certain, None
        self._exit: Exit | None = None
        self._swept = False
        self._ending = False
        """Whether what ends from now on does so because of us."""
        self._was = self.state.place
        """Where it was, when that is not there any more."""

    def __repr__(self) -> str:
        state = self.state
        return f"<TmuxAttempt {state.tag} of {self._agent.name!r}, launcher {state.launcher}, exit {self._exit}>"

    def take_over(self, note: RunNote, remembered: dict[str, Any], found: session.Found | None) -> None:
        """Become what an earlier agentd has written down."""
        self.state.take_over(remembered, found)
        if self.state.cgroup is None:  # made after the note was written
            self.state.cgroup = self._world.cgroups.find(self._request.run, self._request.number)
        self._was = remembered_place(remembered)
        self.state.started = trio.current_time() if note.started is None else note.started
        if note.status.state is State.STARTING:
            self.state.typed = True  # nobody knows whether that still happened
            return
        self.state.directory.withdraw_script()
        if note.status.state is State.RUNNING:
            # It may have come up and ended while nobody listened: what it left is to be swept, and its shell stays.
            self.state.typed = self.state.accounted = True
        elif note.status.state is not State.STOPPING:
            self._exit = note.status.exit

    async def launch(self) -> int:
        """Launch the harness and return its pid once it runs."""
        return await Launch(self._world, self._request, self.state).run()

    async def ended(self) -> Exit:
        """Wait for the end, as often as asked."""
        state = self.state
        heard = self._exit is not None
        deaf = not heard and self._taken_over and state.lifeline is None
        # Where the launcher has gone, no lifeline tells of it any more.
        if deaf and not await self._listen_again():
            self._exit = await self._exit_left()
        if self._exit is None and state.lifeline is not None:
            self._exit = await self._read_exit(state.lifeline)
            if self._world.settings.debug and state.place is not None:
                shown = await session.screen(self._world.tmux, state.place)
                _log.debug("agent=%s its screen at the end: %s", self._agent.name, shown)
        if self._exit is None:
            self._exit = self._exit_with(None)
        if not heard:
            self._exit = await self._explained(self._exit)
        if self._swept:  # its last word was all that the sweep has left
            state.tidy()
            state.swept = True
        await trio.lowlevel.checkpoint()
        return self._exit

    async def _explained(self, ended: Exit) -> Exit:
        """Add to an end by hang-up, or without a word, what is gone with it, as far as anybody knows."""
        place = self.state.place or self._was
        hung_up = ended.how is How.SIGNAL and ended.signal == signal.SIGHUP.name
        if place is None or self._ending or ended.detail or not (hung_up or ended.how is How.KILLED):
            return ended
        gone = await session.loss(self._world.tmux, place)
        if gone == "" and ended.how is How.KILLED:
            gone = "its launcher was killed"
        return attrs.evolve(ended, detail=gone or "")

    def is_over(self) -> bool:
        """Whether a started attempt has ended, heard of or not."""
        try:
            return self._exit is not None or self.state.launcher_stat() is None
        except OSError as error:
            self._world.scanner.shortages.note(error)
            return False

    async def _listen_again(self) -> bool:
        """Open the lifeline of an attempt that was taken over, however long that takes; False: its launcher is gone."""
        told = False
        while True:
            try:
                return self.state.watch_launcher(self._world.settings.agent_user.uid)
            except OSError as error:
                if is_shortage(error):
                    self._world.scanner.shortages.note(error)
                elif not told:
                    told = True
                    _log.warning(
                        "agent=%s: its lifeline cannot be opened, agentd tries again: %s", self._agent.name, error
                    )
            await trio.sleep(LISTEN_PAUSE)

    async def interrupt(self, *, again: bool) -> bool:
        """Press C-c, or where the agent is not in the foreground, send what C-c would have sent."""
        await trio.lowlevel.checkpoint()
        self._ending = True
        state = self.state
        patience = min(KEY_LIMIT, self._agent.grace_period / 3)
        launcher = harness = None
        here = True
        with trio.move_on_after(patience):  # who cannot be looked at gets the key all the same
            launcher, harness, here = await self._world.scanner.shortages.outlast(self._look)
        if state.place is None:
            if launcher is not None and not again:
                await self._signal(launcher)  # it has outlived its session
            return False
        raw = is_raw(launcher.tty_nr if launcher is not None else state.place.tty_nr)
        if again and not raw:
            return False
        if not again:
            with trio.move_on_after(patience):
                # What carries no tag is known by its parents, and the C-c takes these away.
                before = remember(await self._world.scanner.scan(), state.footprint(keep_shell=True))
                state.tree = before.tree
        if launcher is not None and (not here or (harness is not None and harness.state == "T")):
            await self._signal(harness or launcher)
            return False
        try:
            await session.press_interrupt(self._world.tmux, state.place, patience)
        except (TmuxError, TmuxUnknownError) as error:
            _log.warning("agent=%s: C-c by signal instead of by key: %s", self._agent.name, error)
            if launcher is not None:
                await self._signal(launcher)
        return raw

    def _look(self) -> tuple[Stat | None, Stat | None, bool]:
        """Launcher and harness, as far as they live, and whether keys reach them."""
        launcher = self.state.launcher_stat()
        return launcher, self.state.harness_stat(), launcher is None or in_front(launcher)

    async def _signal(self, group: Stat) -> None:
        await signal_group(self._world.scanner, group.pgrp, signal.SIGINT, signal.SIGCONT)

    async def sweep(self) -> int:
        """End what the attempt left behind, the session's shell excepted; return how many processes defied that."""
        await trio.lowlevel.checkpoint()
        self._ending = True
        state = self.state
        if not state.typed or state.swept:
            state.tidy()
            return 0
        if self._exit is not None and state.lifeline is not None:
            with trio.move_on_after(LAUNCHER_LIMIT):
                await state.lifeline.speaker_gone()
        withdrawn = state.launcher is not None or state.directory.withdraw()
        # Where nobody knows what the shell has made of the keys, it goes too: what it just forked is not tagged yet.
        ended = await end_all(self._world.scanner, state.footprint(keep_shell=state.accounted and withdrawn))
        self._swept = not ended.left
        if self._exit is not None or state.launcher is None:
            state.tidy()
            state.swept = not ended.left
        return ended.left

    async def close(self) -> None:
        """End the tmux session, and what is left in its shell's."""
        await trio.lowlevel.checkpoint()
        state = self.state
        unsure = set()
        if not state.certain and state.place is None:  # one may be made yet
            unsure.add(self._request.run)
        try:
            if state.leftover is not None:
                await end_session(state.leftover, self._world)
                state.leftover = None
            if state.place is not None:
                await session.kill(self._world.tmux, state.place, KILL_LIMIT)
        except TmuxUnknownError as error:
            in_the_way = None if state.leftover is None else state.leftover.run
            unsure.add(in_the_way or self._request.run)
            _log.warning("agent=%s: nobody knows whether its session ended: %s", self._agent.name, error)
        if unsure:
            end_sessions_later(self._world, unsure)
            state.certain = True
        if state.place is not None:
            await end_all(self._world.scanner, state.footprint(keep_shell=False))
            state.place = None
        state.tidy()

    async def _read_exit(self, lifeline: Lifeline) -> Exit:
        """Read the lifeline to its end. Junk closes it, and the launcher's end is all that is left to know."""
        try:
            line = await lifeline.line(reopen=False)
            if self._taken_over and line is not None and line.startswith("start "):  # it was known before it said so
                line = await lifeline.line(reopen=False)
            code = exit_code(line) if line is not None else None
        except LifelineJunkError:
            _log.warning("agent=%s: its lifeline said junk; only its launcher's end is watched", self._agent.name)
            await lifeline.speaker_gone()
            return self._exit_with(None, "its lifeline said junk")
        if code is None and self._taken_over:
            return await self._exit_left()  # what it said on the lifeline was said to nobody
        return self._exit_with(code)

    async def _exit_left(self) -> Exit:
        """How the harness ended, as its launcher has left it in the session."""
        code = None
        said = await self._said()
        try:
            code = None if said is None else exit_code(f"exit {said}")
        except LifelineJunkError:
            _log.warning("agent=%s: its session says junk of its exit", self._agent.name)
        return self._exit_with(code)

    async def _said(self) -> str | None:
        """The exit code in the session; while tmux stands still nobody knows it, and who is not to end waits."""
        while self.state.place is not None:
            try:
                return await session.exit_said(self._world.tmux, self.state.place, self.state.tag)
            except TmuxUnknownError:
                if self._ending:
                    break
                await trio.sleep(ASK_AGAIN)
        return None

    def _exit_with(self, code: int | None, detail: str = "") -> Exit:
        at, duration = self._world.wall(), self._lasted()
        if code is None:
            return Exit(how=How.KILLED, at=at, duration=duration, detail=detail)
        return exit_from_code(code, at=at, duration=duration)

    def _lasted(self) -> float:
        return trio.current_time() - self.state.started
