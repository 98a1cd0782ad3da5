"""Finding and ending real processes: every kind that outlives an ordinary kill."""

import os
import platform
import resource
import select
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import Signals

import pytest
import trio
import trio.testing

from agentd.processes.ending import Ended, Footprint, Scanner, end_all, signal_group
from agentd.processes.scan import TAG_VARIABLE, read_stat

UID = os.getuid()
NOBODY = 65534
PATIENCE = 20


class Nest:
    """Starts processes, and makes sure that none of them outlives the test."""

    def __init__(self) -> None:
        self.tag = f"test/{uuid.uuid4().hex}"
        self._children: list[subprocess.Popen[bytes]] = []
        self._terminals: list[int] = []

    def environment(self, *, tagged: bool = True) -> dict[str, str]:
        """Return the environment of an attempt's processes; `NEST` is for finding them without the code under test."""
        return {"NEST": self.tag, "PATH": os.environ["PATH"]} | ({TAG_VARIABLE: self.tag} if tagged else {})

    def start(self, script: str, *, tagged: bool = True, user: int | None = None) -> int:
        """Run a shell script in a session of its own until it has said `ready`; return its pid."""
        child = subprocess.Popen(
            ["/bin/sh", "-c", script],
            env=self.environment(tagged=tagged),
            cwd="/",
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            user=user,
        )
        self._children.append(child)
        read_until(self.output(child.pid), b"ready\n")
        return child.pid

    def start_shell(self, *argv: str) -> tuple[int, int]:
        """Run an interactive shell on a terminal of its own; return its pid and our side of the terminal."""
        ours, theirs = os.openpty()
        child = subprocess.Popen(
            ["setsid", "--ctty", *argv],
            env=self.environment(tagged=False) | {"HOME": "/nonexistent"},
            cwd="/",
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self._children.append(child)
        self._terminals.append(ours)
        return child.pid, ours

    def run(self, *argv: str | Path, **environment: str) -> int:
        """Run a program in a session of its own, behind these variables; return its pid."""
        child = subprocess.Popen(argv, env=environment | self.environment(), start_new_session=True)
        self._children.append(child)
        # Popen returns at the exec, in the middle of which a process has no environment yet.
        deadline = time.monotonic() + 10
        while not Path(f"/proc/{child.pid}/environ").read_bytes() and child.poll() is None:
            assert time.monotonic() < deadline
        return child.pid

    def output(self, pid: int) -> int:
        """Return the descriptor on which that child's output comes."""
        child = next(child for child in self._children if child.pid == pid)
        assert child.stdout is not None
        return child.stdout.fileno()

    def living(self) -> set[int]:
        """Return the pids of all that was started here and runs."""
        mark = f"NEST={self.tag}".encode()
        found = set()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    found.add(int(path.parent.name))
        return found

    def clear(self) -> None:
        """End everything, the hard way."""
        deadline = time.monotonic() + PATIENCE
        while True:
            for child in self._children:
                if child.poll() is None:
                    kill_quietly(child.pid)
                kill_quietly(-child.pid)
            living = self.living()
            for pid in living:
                kill_quietly(pid)
            if not living or time.monotonic() > deadline:
                break
        for child in self._children:
            child.wait(PATIENCE)
            if child.stdout is not None:
                child.stdout.close()
        for terminal in self._terminals:
            os.close(terminal)
        assert not living


def kill_quietly(pid: int) -> None:
    """Send SIGKILL to whoever still has that pid, or is in that group."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def read_until(fd: int, words: bytes) -> bytes:
    """Read until these words have come."""
    seen = b""
    while words not in seen:
        assert select.select([fd], [], [], PATIENCE)[0], f"waited for {words!r}, got {seen!r}"
        data = os.read(fd, 4096)
        assert data, f"waited for {words!r}, got {seen!r}"
        seen += data
    return seen


def wait_for_exit(pid: int) -> int:
    """Wait for that child's end without reaping it; return its exit code or signal."""
    result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert result is not None
    return result.si_status


def our_pidfds() -> list[str]:
    """Return our open descriptors of processes."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(path.readlink()))
    return [target for target in found if "pidfd" in target]


def footprint(nest: Nest, **changes: object) -> Footprint:
    """Build the footprint of an attempt of which only the tag is known."""
    values = {"tag": nest.tag, "launcher": None, "launcher_ticks": None, "shell": None, "keep_shell": True}
    return Footprint(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def nest() -> Iterator[Nest]:
    """Give a place to start processes from; it is empty afterwards, whatever happens."""
    nest = Nest()
    try:
        yield nest
    finally:
        nest.clear()


@pytest.fixture
def scanner() -> Scanner:
    """Give a scanner of our own user's processes."""
    return Scanner(UID)


COMET = """
import os, time
if os.fork():
    os._exit(0)
print("ready", flush=True)
while True:
    if os.fork():
        os._exit(0)
    {leave}
    time.sleep(0.005)
"""
BOMB = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
while True:
    if not os.fork():
        {leave}
        time.sleep(1000)
    time.sleep(0.005)
"""
IGNORE = "trap '' HUP INT TERM; "


@pytest.mark.parametrize(
    ("script", "killed"),
    [
        pytest.param("echo ready; exec sleep 1000", False, id="one"),
        pytest.param("sleep 1000 & sleep 1000 & echo ready; wait", False, id="three"),
        pytest.param(IGNORE + "echo ready; sleep 1000; :", True, id="ignores every polite signal"),
        pytest.param("(echo ready; kill -STOP $$) & wait; exec sleep 1000", False, id="stopped"),
        pytest.param(IGNORE + "(echo ready; kill -STOP $$) & wait; exec sleep 1000", True, id="stopped, ignores"),
        pytest.param("setsid sh -c 'echo ready; sleep 1000; :' & wait", False, id="setsid"),
        pytest.param("setsid sh -c '(echo ready; exec sleep 1000) &'", False, id="daemon"),
        pytest.param("env -i NEST=$NEST setsid sh -c 'echo ready; sleep 1000; :' & wait", False, id="setsid, no tag"),
        pytest.param(
            "env -i NEST=$NEST setsid sh -c '((trap \"\" TERM; echo ready; sleep 1000; :) &); sleep 1000; :' & wait",
            True,
            id="orphans in a session, no tag",
        ),
        pytest.param(
            "trap 'setsid sleep 1000 & exit' TERM; echo ready; sleep 1000; :", False, id="starts more at the end"
        ),
    ],
)
async def test_everything_left_behind_ends(nest: Nest, scanner: Scanner, script: str, *, killed: bool) -> None:
    """Whatever a process does to outlive its parent, it is ended, by SIGTERM where it lets that happen."""
    pid = nest.start(script)
    ended = await end_all(scanner, footprint(nest, launcher=pid), term_grace=0.3)
    assert not nest.living()
    assert (ended.kill > 0, ended.left) == (killed, 0)


@pytest.mark.parametrize("leave", ["pass", "os.setsid()"])
@pytest.mark.parametrize("code", [COMET, BOMB])
async def test_two_hundred_forks_a_second_end(nest: Nest, scanner: Scanner, code: str, leave: str) -> None:
    """What forks 200 times a second is ended, whether it stays or goes on as its own child, whatever its session."""
    nest.start(f"exec {shlex.quote(sys.executable)} -S -c {shlex.quote(code.format(leave=leave))}")
    ended = await end_all(scanner, footprint(nest), term_grace=0.1)
    assert not nest.living()
    assert ended.left == 0


async def test_nothing_left_behind_costs_two_looks(nest: Nest, scanner: Scanner) -> None:
    """Where there is nothing to end, two scans say so, and nobody waits."""
    assert await end_all(scanner, footprint(nest), term_grace=1000, limit=1000) == Ended(term=0, kill=0, left=0)
    assert scanner.scans == 2


async def test_zombie_is_nothing_left(nest: Nest, scanner: Scanner) -> None:
    """A process that its parent has not reaped is dead."""
    pid = nest.start("echo ready")
    assert wait_for_exit(pid) == 0
    assert await end_all(scanner, footprint(nest, launcher=pid)) == Ended(term=0, kill=0, left=0)


async def test_fifty_stops_share_their_scans(nest: Nest, scanner: Scanner) -> None:
    """Any number of stops at the same time cost a handful of scans."""
    ended = []

    async def stop() -> None:
        ended.append(await end_all(scanner, footprint(nest)))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(stop)
    assert ended == [Ended(term=0, kill=0, left=0)] * 50
    assert scanner.scans <= 4


async def test_scan_begins_after_the_call(nest: Nest, scanner: Scanner) -> None:
    """Callers join the next scan, never the one under way, whose look may be older than their question."""
    snapshots = []

    async def look() -> None:
        snapshots.append(await scanner.scan())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await trio.testing.wait_all_tasks_blocked()
        pid = nest.start("echo ready; exec sleep 1000")
        for _ in range(20):
            nursery.start_soon(look)
    assert [pid in snapshot.processes for snapshot in snapshots[1:]] == [True] * 20
    assert scanner.scans == 2


async def test_cancelled_scan_is_taken_over(scanner: Scanner) -> None:
    """The caller who scans for the others can be cancelled: one of those scans then."""
    first = trio.CancelScope()
    looked = []

    async def look(scope: trio.CancelScope) -> None:
        with scope:
            await scanner.scan()
            looked.append(scope)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look, first)
        await trio.lowlevel.checkpoint()
        others = [trio.CancelScope() for _ in range(4)]
        for scope in others:
            nursery.start_soon(look, scope)
        while scanner.scans == 0:
            await trio.lowlevel.checkpoint()
        first.cancel()
    assert set(others) <= set(looked)
    assert scanner.scans <= 2


async def test_limit_ends_the_wait(nest: Nest, scanner: Scanner) -> None:
    """After the limit it is over, and says how many live on."""
    nest.start(IGNORE + "echo ready; exec sleep 1000")
    assert await end_all(scanner, footprint(nest), term_grace=1000, limit=0.2) == Ended(term=0, kill=0, left=1)


async def test_cancelled_stop_leaves_no_descriptor(nest: Nest, scanner: Scanner) -> None:
    """A stop can be cancelled while it waits, and keeps nothing open."""
    pid = nest.start("trap 'echo asked' TERM; echo ready; while :; do sleep 1000; done")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_all, scanner, footprint(nest))
        await trio.lowlevel.wait_readable(nest.output(pid))
        with trio.fail_after(10):
            while not our_pidfds():  # noqa: ASYNC110 - it may just look around
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert not our_pidfds()
    assert pid in nest.living()


async def test_descriptors_closed_after_a_stop(nest: Nest, scanner: Scanner) -> None:
    """A stop that ended many keeps nothing open."""
    pid = nest.start("for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & done; echo ready; wait")
    assert await end_all(scanner, footprint(nest, launcher=pid)) == Ended(term=11, kill=0, left=0)
    assert not our_pidfds()


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Take away all further descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_nobody_could_look(nest: Nest, scanner: Scanner) -> None:
    """Without a descriptor to look with, nothing was seen, and that is not taken for nothing left."""
    of = footprint(nest)
    with no_descriptors():
        ended = await end_all(scanner, of, limit=0.2)
    assert ended == Ended(term=0, kill=0, left=1)


async def test_descriptors_come_back(nest: Nest, scanner: Scanner) -> None:
    """Descriptors that run out during a stop delay it, and no more."""
    pid = nest.start("trap 'echo asked; sleep 1000' TERM; echo ready; while :; do sleep 1000; done")
    ended = []

    async def stop() -> None:
        ended.append(await end_all(scanner, footprint(nest), term_grace=0.1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop)
        await trio.lowlevel.wait_readable(nest.output(pid))
        with no_descriptors():
            await trio.sleep(0.3)
            assert not ended
    assert [result.left for result in ended] == [0]
    assert not nest.living()


def test_no_thread_to_look_from() -> None:
    """Where no thread can be started any more, the scan is made without one."""
    program = """
import os, threading, trio
from agentd.processes.ending import Scanner
threading.stack_size(2**46)
print(os.getpid() in trio.run(Scanner(os.getuid()).scan).processes)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=dict(os.environ), capture_output=True, check=False, timeout=PATIENCE
    )
    assert done.stdout == b"True\n", done.stderr


@pytest.mark.skipif(UID != 0, reason="only root can start another user's process")
async def test_another_users_process_is_not_touched(nest: Nest, scanner: Scanner) -> None:
    """Only processes of the scanner's user end, whoever's tag the others carry and whoever started them."""
    pid = nest.start("echo ready; exec sleep 1000", user=NOBODY)
    of = footprint(nest, launcher=pid, keep_shell=False, shell=pid)
    assert await end_all(scanner, of) == Ended(term=0, kill=0, left=0)
    assert await signal_group(scanner, pid, Signals.SIGTERM) == 0
    assert pid in nest.living()
    assert await end_all(Scanner(NOBODY), footprint(nest)) == Ended(term=1, kill=0, left=0)


async def test_reused_pid_is_not_touched(nest: Nest, scanner: Scanner) -> None:
    """A process that only has a member's pid is another one."""
    pid = nest.start("echo ready; exec sleep 1000", tagged=False)
    of = footprint(nest, launcher=pid, launcher_ticks=1, tree=frozenset({(pid, 2)}))
    assert await end_all(scanner, of) == Ended(term=0, kill=0, left=0)
    assert pid in nest.living()


async def test_tag_behind_a_large_environment(nest: Nest, scanner: Scanner) -> None:
    """The tag is found wherever it stands in the environment, also behind more than a megabyte."""
    large = {f"LARGE_{n}": "x" * 120_000 for n in range(12)}
    nest.run("sleep", "1000", **large)
    assert await end_all(scanner, footprint(nest)) == Ended(term=1, kill=0, left=0)


@pytest.mark.parametrize("name", ["a) R 1 (b", ") S 2 3", "with blank", "new\nline"])
async def test_odd_program_name(nest: Nest, scanner: Scanner, tmp_path: Path, name: str) -> None:
    """A program may have any name."""
    program = tmp_path / name
    program.symlink_to("/bin/sleep")
    pid = nest.run(program, "1000")
    stat = read_stat(pid)
    assert stat is not None
    assert (stat.ppid, stat.sid) == (os.getpid(), pid)
    assert await end_all(scanner, footprint(nest)) == Ended(term=1, kill=0, left=0)


THREAD_EXIT = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
print("ready", flush=True)
ctypes.CDLL(None).syscall({number}, 0)
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the system call's number is not known")
async def test_threads_outlive_their_leader(nest: Nest, scanner: Scanner) -> None:
    """A process whose first thread has ended looks like a zombie, but is ended as long as others of it run."""
    code = THREAD_EXIT.format(number={"x86_64": 60, "aarch64": 93}[platform.machine()])
    pid = nest.start(f"exec {shlex.quote(sys.executable)} -S -c {shlex.quote(code)}")
    while (stat := read_stat(pid)) is not None and stat.state != "Z":
        await trio.lowlevel.checkpoint()
    assert await end_all(scanner, footprint(nest, launcher=pid)) == Ended(term=1, kill=0, left=0)


def shell_with_an_agent(nest: Nest, *argv: str) -> tuple[int, int, int]:
    """Run a shell with an admin's command in the background and the agent in front; return all three pids."""
    shell, terminal = nest.start_shell(*argv)
    os.write(terminal, b"sleep 2000 & echo admin=$!; echo; echo 'go'\"\"'on'\r")
    admin = read_until(terminal, b"goon\r\n").rpartition(b"admin=")[2].split()[0]
    # What says that it is there is the child, after its exec: before, it has its parent's traps, and loses a SIGTERM.
    child = "sh -c \"echo agent''=\\$PPID; exec sleep 1000\""
    launch = f"trap : HUP INT QUIT TERM; export {TAG_VARIABLE}={nest.tag}; {child}; :"
    os.write(terminal, f" /bin/sh -c {shlex.quote(launch)}\r".encode())
    seen = read_until(terminal, b"agent=")
    while b"\n" not in seen.rpartition(b"agent=")[2]:
        seen += read_until(terminal, b"\n")
    launcher = seen.rpartition(b"agent=")[2].split()[0]
    return shell, int(admin), int(launcher)


SHELLS = [
    pytest.param(("bash", "--norc", "--noprofile", "-i"), id="bash"),
    pytest.param(("dash", "-i"), id="dash"),
]


@pytest.mark.parametrize("argv", SHELLS)
async def test_kept_shell_keeps_an_admins_command(nest: Nest, scanner: Scanner, argv: tuple[str, ...]) -> None:
    """When the shell stays, so does what an admin started in it; the agent in front of it ends."""
    shell, admin, launcher = shell_with_an_agent(nest, *argv)
    ended = await end_all(scanner, footprint(nest, launcher=launcher, shell=shell), term_grace=0.3)
    assert ended.left == 0
    assert nest.living() == {shell, admin}


@pytest.mark.parametrize("argv", SHELLS)
async def test_idle_shell_goes_at_once(nest: Nest, scanner: Scanner, argv: tuple[str, ...]) -> None:
    """A shell that goes needs no SIGKILL, though it ignores SIGTERM, and nothing in its session is left."""
    shell, admin, launcher = shell_with_an_agent(nest, *argv)
    assert {shell, admin, launcher} <= nest.living()
    of = footprint(nest, launcher=launcher, shell=shell, keep_shell=False)
    ended = await end_all(scanner, of, term_grace=1000, limit=PATIENCE)
    assert (ended.kill, ended.left) == (0, 0)
    assert not nest.living()


async def test_signal_group(nest: Nest, scanner: Scanner) -> None:
    """All of a process group get the signals in their order, a stopped one too, and nobody else does."""
    pid = nest.start("(echo ready; kill -STOP $$) & wait; exec sleep 1000")
    other = nest.start("echo ready; exec sleep 1000")
    assert await signal_group(scanner, pid, Signals.SIGCONT, Signals.SIGTERM) == 1
    assert wait_for_exit(pid) == Signals.SIGTERM
    assert nest.living() == {other}


def test_foreground_of_a_terminal(nest: Nest) -> None:
    """A shell's stat says which process group is in front on its terminal."""
    shell, _, launcher = shell_with_an_agent(nest, "bash", "--norc", "--noprofile", "-i")
    front, behind = read_stat(launcher), read_stat(shell)
    assert front is not None
    assert behind is not None
    assert (front.pgrp, front.tpgid, behind.tpgid) == (launcher, launcher, launcher)
    assert front.tty_nr == behind.tty_nr != 0
    assert behind.sid == behind.pgrp == shell


def test_no_such_process(nest: Nest) -> None:
    """A pid that is nobody's has no stat."""
    pid = nest.start("echo ready; exit 0")
    nest.clear()
    assert read_stat(pid) is None
