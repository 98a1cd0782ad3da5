"""Reading /proc: one process's stat line, and one look at all processes.

All of it is the kernel's word. Only what is gone is skipped; any other failure (no descriptor left, say) is raised,
since a look that missed half of the processes must never read as "nothing is there".
"""

import os
from collections.abc import Mapping

import attrs

from agentd.errors import is_shortage

TAG_VARIABLE = "AGENTD_ATTEMPT"
"""The environment variable that names the attempt by which a process was started."""

_ASSIGNMENT = TAG_VARIABLE.encode() + b"="
_CHUNK = 64 * 1024
_ENVIRON_LIMIT = 3 * 1024 * 1024
_SPARE = 64 * 1024 * 1024
"""Bytes of environments that one look reads beyond the first 64 KB of each: thousands of large ones take minutes."""
_LONGEST_TAG = 100
_KERNEL_THREAD = 0x0020_0000

# A process that forks and leaves within milliseconds is gone from the first listing before its turn comes. Each
# further listing leaves only the new ones to read, and that takes so little time that they are still there.
_LISTINGS = 8

_MOST_ANCESTORS = 64  # Nobody nests shells deeper, and /proc changes while it is read.


@attrs.frozen
class Stat:
    """One process as its /proc/PID/stat says."""

    pid: int
    ppid: int
    pgrp: int
    sid: int
    tty_nr: int
    """The controlling terminal's device number; 0 without one."""
    tpgid: int
    """The foreground process group of that terminal; -1 without one."""
    state: str
    start_ticks: int
    """When it started, in clock ticks since boot: together with the pid, this names one process for ever."""
    threads: int

    @property
    def key(self) -> tuple[int, int]:
        """What names this process and no later one."""
        return (self.pid, self.start_ticks)

    @property
    def dead(self) -> bool:
        """Whether nothing of it runs; a zombie whose other threads go on is alive."""
        return self.state in ("Z", "X") and self.threads <= 1


@attrs.frozen
class Process(Stat):
    """One process of a snapshot."""

    uid: int
    """The real one: it stays the agent user's in a set-user-id program, and is never the agent user's in ours."""
    tag: str | None
    """The attempt by which it was started, as far as its environment says so and can be read."""


@attrs.frozen
class Snapshot:
    """All living processes but the kernel's own threads, as one look found them."""

    uid: int
    """Whose processes may be touched, and had their environment read."""
    us: int
    """The pid of the one who looked."""
    processes: Mapping[int, Process]


def read_stat(pid: int) -> Stat | None:
    """Read one process's stat; None when there is no such process."""
    line = _read(f"/proc/{pid}/stat")
    return None if line is None else parse_stat(line)


def is_alive(pid: int) -> bool:
    """Tell whether a process is there, and no zombie."""
    stat = read_stat(pid)
    return stat is not None and not stat.dead


def is_gone(pid: int) -> bool:
    """Tell whether a process is known to have ended; one that cannot be looked at, for want of something, is not."""
    try:
        return not is_alive(pid)
    except OSError as error:
        if not is_shortage(error):
            raise
        return False


def is_halted(pid: int) -> bool:
    """Tell whether a process is known to have been stopped, and does nothing until it is told to go on."""
    try:
        stat = read_stat(pid)
    except OSError as error:
        if not is_shortage(error):
            raise
        return False
    return stat is not None and stat.state in "Tt"


def descends(pid: int, ancestor: int) -> bool:
    """Tell whether a process comes from another one, as far as all between them live."""
    for _ in range(_MOST_ANCESTORS):
        stat = read_stat(pid)
        if stat is None or stat.ppid <= 1:
            return False
        if stat.ppid == ancestor:
            return True
        pid = stat.ppid
    return False


def read_uid(pid: int) -> int | None:
    """Read one process's real uid; None when there is no such process."""
    status = _read(f"/proc/{pid}/status")
    if status is None:
        return None
    start = status.index(b"\nUid:\t") + len(b"\nUid:\t")
    return int(status[start : status.index(b"\t", start)])


def scan(uid: int) -> Snapshot:
    """Look at every process once, and into the environment of those whose real uid is `uid`."""
    processes: dict[int, Process] = {}
    listed: set[str] = set()
    environments = _Environments()
    for _ in range(_LISTINGS):
        with os.scandir("/proc") as entries:
            new = {entry.name for entry in entries if entry.name.isdecimal()} - listed
        if not new:
            break
        listed |= new
        for pid in map(int, new):
            process = _look(pid, uid, environments)
            if process is not None:
                processes[pid] = process
    # In the midst of an exec a process has no environment: by now it is through.
    for pid, process in processes.items():
        if process.uid == uid and process.tag is None:
            processes[pid] = attrs.evolve(process, tag=environments.tag(pid))
    return Snapshot(uid, os.getpid(), processes)


def parse_stat(line: bytes) -> Stat:
    """Parse a stat line; the name in it may hold anything, parentheses, blanks and newlines too."""
    fields = line[line.rindex(b")") + 2 :].split()
    ppid, pgrp, sid, tty_nr, tpgid = map(int, fields[1:6])
    pid = int(line[: line.index(b" ")])
    return Stat(pid, ppid, pgrp, sid, tty_nr, tpgid, fields[0].decode(), int(fields[19]), int(fields[17]))


def find_tag(environ: bytes) -> str | None:
    """Find the tag in a process's environment, wherever it stands; one that is longer than any of ours is none."""
    _, found, rest = (b"\0" + environ).partition(b"\0" + _ASSIGNMENT)
    tag = rest[: _LONGEST_TAG + 1].partition(b"\0")[0]
    return os.fsdecode(tag) if found and len(tag) <= _LONGEST_TAG else None


def _look(pid: int, uid: int, environments: "_Environments") -> Process | None:
    line = _read(f"/proc/{pid}/stat")
    if line is None or _is_kernel_thread(line):
        return None
    stat = parse_stat(line)
    if stat.dead:
        return None
    real = read_uid(pid)
    if real is None:
        return None
    return Process(
        stat.pid,
        stat.ppid,
        stat.pgrp,
        stat.sid,
        stat.tty_nr,
        stat.tpgid,
        stat.state,
        stat.start_ticks,
        stat.threads,
        real,
        environments.tag(pid) if real == uid else None,
    )


def _is_kernel_thread(line: bytes) -> bool:
    return int(line[line.rindex(b")") + 2 :].split(maxsplit=7)[6]) & _KERNEL_THREAD != 0


def read_tag(pid: int) -> str | None:
    """Read by which attempt a process was started; None if by none, or if it cannot be read."""
    return _Environments().tag(pid)


class _Environments:
    """The environments of processes, as far as one look has time for them: they are as large as agents like."""

    def __init__(self) -> None:
        self._spare = _SPARE

    def tag(self, pid: int) -> str | None:
        try:
            environ = _read(f"/proc/{pid}/environ", _ENVIRON_LIMIT if self._spare > 0 else _CHUNK)
        except PermissionError:
            return None
        if environ is None:
            return None
        self._spare -= max(0, len(environ) - _CHUNK)
        return find_tag(environ)


def _read(path: str, limit: int = _CHUNK) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        data = chunk = os.read(fd, _CHUNK)
        while len(chunk) == _CHUNK and len(data) < limit:
            chunk = os.read(fd, _CHUNK)
            data += chunk
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    return data
