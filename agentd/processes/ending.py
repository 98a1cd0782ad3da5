"""Find and end what an attempt left behind.

`select` decides, on one snapshot, which processes are the attempt's; `end_all` ends them. A process is only ever
signalled through a pidfd whose start time and real uid were read after it was opened, so never a pid's next owner.

Not found where the attempt has no cgroup: a process that has cleared its environment *and* left the session and its
parents. Terminals tell nothing: the kernel gives each to one session, and a container numbers its own ones as the
machine does.
"""

import os
import signal
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from signal import Signals

import attrs
import trio

from agentd.errors import is_shortage
from agentd.processes.cgroup import Cgroup
from agentd.processes.scan import Process, Snapshot, read_stat, read_uid, scan
from agentd.processes.shortages import PAUSE, Shortages

# A child that was forked just before its parent was signalled has missed the signal, and the parent may wait for it.
_LOOK_AGAIN = 0.2
_KILL_WAIT = 1.0
_FREEZE_ROUNDS = 8
_SENT_IN_ONE_GO = 64


class Scanner:
    """Looks at all processes, once for all who ask at the same time."""

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.scans = 0
        """How many scans have begun."""
        self.shortages = Shortages()
        self._turn = trio.Lock()
        self._thread = trio.CapacityLimiter(1)
        self._latest: tuple[int, Snapshot] | None = None

    async def scan(self) -> Snapshot:
        """Return a snapshot that was begun after this call, however long there is nothing to look with.

        Whoever's turn comes first scans for all who wait by then; cancelled, it leaves that to the next of them.
        """
        while True:
            try:
                return await self._scan()
            except OSError as error:
                self.shortages.note(error)
            await trio.sleep(PAUSE)

    async def _scan(self) -> Snapshot:
        wanted = self.scans + 1
        async with self._turn:
            if self._latest is not None and self._latest[0] >= wanted:
                return self._latest[1]
            self.scans += 1
            number = self.scans
            try:
                snapshot = await trio.to_thread.run_sync(scan, self.uid, abandon_on_cancel=True, limiter=self._thread)
            except RuntimeError:  # a fork bomb of our own user leaves us no new thread: look from this one
                snapshot = scan(self.uid)
            self._latest = (number, snapshot)
            return snapshot


@attrs.frozen(kw_only=True)
class Footprint:
    """By what an attempt's processes are told from all others."""

    tag: str
    launcher: int | None
    launcher_ticks: int | None
    shell: int | None
    """The pid of the pane's shell: a session's leader, or it says nothing."""
    keep_shell: bool
    """Whether the shell stays, and with it whatever else was started in it."""
    tree: frozenset[tuple[int, int]] = frozenset()
    """The pid and start ticks of all that was ever found to be the attempt's."""
    shell_ticks: int | None = None
    sid: int | None = None
    """The shell's session as the kernel told it at launch: with it, the session outlives the shell."""
    cgroup: Cgroup | None = None
    """The attempt's own: whatever is in it was started by the attempt, or in its shell."""


@attrs.frozen(kw_only=True)
class Ended:
    """How an attempt's left-overs ended."""

    term: int
    """How many went after SIGTERM (the shell: SIGHUP)."""
    kill: int
    """How many went only by SIGKILL."""
    left: int
    """How many live on; 0 only if two looks in a row found nothing, so 1 if nobody could look."""


def select(snapshot: Snapshot, footprint: Footprint, members: Collection[int] = frozenset()) -> tuple[Process, ...]:
    """Decide which processes are the attempt's, and are to end; `members` are those of its cgroup.

    These are the ones with its tag, the launcher, what was found before, the members, and those in the shell's session
    (if the shell is kept, of these two only the orphans); then all descendants of these, and all sessions that one of
    these leads. Never pid 1, ourselves, what we or the shell come from, a kept shell, or another user's process, unless
    it is a member: by what sudo has started.
    """
    processes = snapshot.processes
    shell = _find_shell(snapshot, footprint)
    spared = {1, *_lineage(processes, snapshot.us)}
    if shell is not None:
        spared.update(_lineage(processes, shell.pid))
        if not footprint.keep_shell:
            spared.discard(shell.pid)

    children: dict[int, list[int]] = defaultdict(list)
    sessions: dict[int, list[int]] = defaultdict(list)
    for process in processes.values():
        children[process.ppid].append(process.pid)
        sessions[process.sid].append(process.pid)

    found: set[int] = set()
    kept = _descendants(children, shell.pid) if shell is not None and footprint.keep_shell else frozenset()
    ahead = [*_roots(snapshot, footprint, shell, sessions, kept), *(pid for pid in members if pid not in kept)]
    while ahead:
        pid = ahead.pop()
        if pid in found or pid in spared:
            continue
        found.add(pid)
        if shell is None or pid != shell.pid:  # the shell's other children are an admin's
            ahead += children[pid]
            ahead += sessions[pid]
    return tuple(
        process
        for process in processes.values()
        if process.pid in found and (process.uid == snapshot.uid or process.pid in members)
    )


def remember(snapshot: Snapshot, footprint: Footprint) -> Footprint:
    """Add what is the attempt's now to the footprint: found once, it is known when its parents are gone."""
    return _add(footprint, select(snapshot, footprint))


async def end_all(scanner: Scanner, footprint: Footprint, *, term_grace: float = 2.0, limit: float = 10.0) -> Ended:
    """End all that the attempt left behind: SIGTERM, up to `term_grace` seconds for it, then SIGKILL until all is gone.

    It is over when two looks in a row find nothing, or after `limit` seconds.
    """
    sweep = _Sweep(scanner, footprint)
    with trio.move_on_after(limit):
        with trio.CancelScope() as grace:
            while await sweep.look():
                if grace.deadline == float("inf"):
                    grace.deadline = trio.current_time() + term_grace
                await sweep.ask()
            return sweep.ended()
        while await sweep.look():
            await sweep.kill()
        return sweep.ended()
    return sweep.ended(gave_up=True)


async def signal_group(scanner: Scanner, pgrp: int, *signals: Signals) -> int:
    """Send the signals, in their order, to the user's processes in that process group; return how many got them."""
    snapshot = await scanner.scan()
    spared = {1, *_lineage(snapshot.processes, snapshot.us)}
    reached = 0
    for process in snapshot.processes.values():
        if process.pgrp == pgrp and process.uid == snapshot.uid and process.pid not in spared:
            reached += await scanner.shortages.outlast(partial(_send, process, signals))
    return reached


class _Sweep:
    """One `end_all`: what it has found and done so far."""

    def __init__(self, scanner: Scanner, footprint: Footprint) -> None:
        self._scanner = scanner
        self._footprint = footprint
        self._found: dict[tuple[int, int], Process] = {}
        self._asked: set[tuple[int, int]] = set()
        self._killed: set[tuple[int, int]] = set()
        self._members: frozenset[int] = frozenset()
        self._others: frozenset[int] = frozenset()
        """Members of the cgroup that are not the attempt's, but started by hand in its kept shell."""
        self._unseen = False
        """Whether the cgroup has members that no look has caught: they fork and are gone, or move about in it."""
        self._victims: tuple[Process, ...] = ()

    async def look(self) -> bool:
        """Find what is left; nothing only if two looks in a row found nothing."""
        self._victims = await self._look_once() or await self._look_once()
        return bool(self._victims) or self._unseen

    async def ask(self) -> None:
        """Send each SIGTERM once and wait for the ends, until it is time to look for what was started meanwhile.

        An interactive shell ignores SIGTERM and goes when its terminal does: it gets SIGHUP, and as the last one,
        since it passes that on to its jobs.
        """
        if not self._victims:
            await trio.sleep(_LOOK_AGAIN)
        others = [process for process in self._victims if process.pid != self._footprint.shell]
        asked = others or self._victims
        new = [process for process in asked if process.key not in self._asked]
        self._asked |= await self._send_all(new, Signals.SIGTERM if others else Signals.SIGHUP, Signals.SIGCONT)
        with trio.move_on_after(_LOOK_AGAIN):
            await self._gone(asked)

    async def kill(self) -> None:
        """Send SIGKILL and wait for the ends, but not for long: one stuck in the kernel must not hold up the others.

        Where that was not enough before, something forks faster than we look: then all is stopped first, until a
        look finds no new ones.
        """
        if self._footprint.cgroup is not None and not self._others:
            self._killed |= {process.key for process in self._victims if process.pid in self._members}
            self._footprint.cgroup.kill()
        stopped = list(self._victims)
        new: Iterable[Process] = self._victims
        try:
            for _ in range(_FREEZE_ROUNDS if self._killed else 0):
                await self._send_all(new, Signals.SIGSTOP)
                known = {process.key for process in stopped}
                new = [process for process in await self._look_once() if process.key not in known]
                stopped += new
                if not new:
                    break
        finally:
            with trio.CancelScope(shield=True):  # nothing is left stopped; it only lets others run in between
                self._killed |= await self._send_all(stopped, Signals.SIGKILL)
        with trio.move_on_after(_KILL_WAIT):
            await self._gone(stopped)

    async def _send_all(self, processes: Iterable[Process], *signals: Signals) -> set[tuple[int, int]]:
        """Send the signals to each; return who got them."""
        reached = set()
        for count, process in enumerate(processes, start=1):
            try:
                if _send(process, signals):
                    reached.add(process.key)
            except OSError as error:
                self._scanner.shortages.note(error)  # the next look finds it again
            if count % _SENT_IN_ONE_GO == 0:  # a fork bomb's thousands must not hold up the other agents
                await trio.lowlevel.checkpoint()
        return reached

    async def _gone(self, processes: Iterable[Process]) -> None:
        """Wait until all have gone, holding one descriptor at a time."""
        waiting = deque(processes)
        while waiting:
            process = waiting.popleft()
            try:
                with _pidfd(process) as fd:
                    if fd is not None:
                        await trio.lowlevel.wait_readable(fd)
            except ProcessLookupError:
                continue
            except OSError as error:
                self._scanner.shortages.note(error)
                waiting.append(process)
                await trio.sleep(PAUSE)

    def ended(self, *, gave_up: bool = False) -> Ended:
        left = {key for key, process in self._found.items() if _may_live(process)} if gave_up else set()
        return Ended(
            term=len(self._found.keys() - self._killed - left),
            kill=len(self._killed - left),
            left=max(len(left), int(gave_up)),
        )

    async def _look_once(self) -> tuple[Process, ...]:
        snapshot, cgroup, moving = await self._scanner.scan(), self._footprint.cgroup, False
        if cgroup is not None:
            # Read after the look: a pid that has gone since, and is another's, is no victim's any more.
            self._members = await self._scanner.shortages.outlast(cgroup.members)
            moving = not self._members and await self._scanner.shortages.outlast(cgroup.is_populated)
        victims = select(snapshot, self._footprint, self._members)
        self._free_others(snapshot, victims)
        self._unseen = moving or not self._members <= snapshot.processes.keys()
        self._footprint = _add(self._footprint, victims)
        self._found.update((process.key, process) for process in victims)
        return victims

    def _free_others(self, snapshot: Snapshot, victims: tuple[Process, ...]) -> None:
        """Let the kept shell, and what an admin has started in it, out of the cgroup that is to end as a whole."""
        cgroup = self._footprint.cgroup
        if cgroup is None or not self._footprint.keep_shell:
            return
        others = self._members & snapshot.processes.keys() - {process.pid for process in victims}
        self._others = frozenset(pid for pid in others if not cgroup.release(pid))


def _find_shell(snapshot: Snapshot, footprint: Footprint) -> Process | None:
    if footprint.shell is None:
        return None
    shell = snapshot.processes.get(footprint.shell)
    if shell is None or shell.uid != snapshot.uid or shell.sid != shell.pid:
        return None
    return shell if footprint.shell_ticks in (None, shell.start_ticks) else None


def _roots(
    snapshot: Snapshot,
    footprint: Footprint,
    shell: Process | None,
    sessions: Mapping[int, list[int]],
    kept: Collection[int],
) -> Iterator[int]:
    processes = snapshot.processes
    for process in processes.values():
        if (process.uid == snapshot.uid and _is_known(process, footprint)) or (
            shell is not None and process.sid == shell.sid and process.pid not in kept
        ):
            yield process.pid
    # A session's number is free for others only when its last member is gone, so a gone leader still tells whose it is.
    gone = {pid for pid, _ in footprint.tree}
    if footprint.sid is not None:
        gone.add(footprint.sid)
    for sid in gone - processes.keys():
        yield from sessions[sid]


def _is_known(process: Process, footprint: Footprint) -> bool:
    if process.pid == footprint.launcher and footprint.launcher_ticks in (None, process.start_ticks):
        return True
    return process.tag == footprint.tag or process.key in footprint.tree


def _lineage(processes: Mapping[int, Process], pid: int) -> set[int]:
    """Return the pid and those of all that it comes from."""
    lineage: set[int] = set()
    while pid in processes and pid not in lineage:
        lineage.add(pid)
        pid = processes[pid].ppid
    return lineage


def _descendants(children: Mapping[int, list[int]], pid: int) -> frozenset[int]:
    """Return the pid and those of all that comes from it, in one go: agents nest as deep as they like."""
    found: set[int] = set()
    ahead = [pid]
    while ahead:
        here = ahead.pop()
        if here not in found:
            found.add(here)
            ahead += children.get(here, ())
    return frozenset(found)


def _add(footprint: Footprint, victims: tuple[Process, ...]) -> Footprint:
    found = (process.key for process in victims if process.pid != footprint.shell)
    return attrs.evolve(footprint, tree=footprint.tree.union(found))


@contextmanager
def _pidfd(process: Process) -> Iterator[int | None]:
    """Hold a pidfd of that process, or nothing when the pid is another's by now.

    ProcessLookupError: the pid is nobody's.
    """
    fd = os.pidfd_open(process.pid)
    try:
        yield fd if _lives(process) else None
    finally:
        trio.lowlevel.notify_closing(fd)
        os.close(fd)


def _lives(process: Process) -> bool:
    stat = read_stat(process.pid)
    return stat is not None and stat.key == process.key and not stat.dead and read_uid(process.pid) == process.uid


def _may_live(process: Process) -> bool:
    try:
        return _lives(process)
    except OSError as error:
        if not is_shortage(error):
            raise
        return True


def _send(process: Process, signals: Iterable[Signals]) -> bool:
    """Send the signals; False when it has gone, or may not be reached."""
    try:
        with _pidfd(process) as fd:
            if fd is None:
                return False
            for number in signals:
                signal.pidfd_send_signal(fd, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
