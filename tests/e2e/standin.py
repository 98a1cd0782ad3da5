"""A stand-in for a harness: writes down how it was started and what became of it, and misbehaves as its variables say.

It runs as a program of its own (the fixtures copy it): the standard library only, and nothing of the tests.

    RECORD      the directory for its records: a directory 1, 2, … for each start
    AFTER       seconds until it exits by itself (without: never), with the code in EXIT or by the signal in DIE
    SAY         what it prints first
    IGNORE      signals that it ignores: "INT TERM HUP"
    LINGER      seconds that it takes to exit after a SIGINT
    RAW         full screen: so many C-c within 0.8 s make it exit; with AFTER, it leaves the terminal as it is
    FORK        children to leave behind: "setsid nohup daemon ignorer stopped escapee storm comet"; an escapee is a
                daemon that has cleared its environment, a storm an escapee that is another process every few
                milliseconds, a comet the same with its environment
"""

import contextlib
import fcntl
import os
import signal
import sys
import termios
import time
import tty
from pathlib import Path

_WITHIN = 0.8


def _main() -> None:  # noqa: C901 - one variable after the other
    record = Path(os.environ["RECORD"])
    record.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        mine = record / str(number)
        try:
            mine.mkdir()
            break
        except FileExistsError:
            number += 1
    mine.joinpath("argv").write_bytes(b"".join(os.fsencode(word) + b"\0" for word in sys.argv[1:]))
    mine.joinpath("name").write_text(Path(sys.argv[0]).name)
    mine.joinpath("environ").write_bytes(Path("/proc/self/environ").read_bytes())
    mine.joinpath("cwd").write_text(str(Path.cwd()))
    mine.joinpath("pid").write_text(f"{os.getpid()} {os.getppid()}")
    # The children share the lock: while one of them lives, another start is a clash.
    lock = os.open(record / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        record.joinpath("clash").write_text(f"start {number} while another lived")
    for kind in os.environ.get("FORK", "").split():
        _leave(kind, mine)
    if say := os.environ.get("SAY"):
        print(say, flush=True)  # noqa: T201 - on its terminal
    for name in ("INT", "TERM", "HUP", "QUIT"):
        _listen(name, mine)
    if raw := os.environ.get("RAW"):
        # A full-screen program is quick to take the screen; what was typed before is thrown away.
        tty.setraw(0, termios.TCSAFLUSH)
        print("\033[?1049h", end="", flush=True)  # noqa: T201 - on its terminal
    mine.joinpath("ready").touch()
    after = os.environ.get("AFTER")
    if raw and after is None:
        _be_raw(int(raw), mine)
    if after is None:
        while True:
            signal.pause()
    time.sleep(float(after))
    _note(mine, "exit")
    if die := os.environ.get("DIE"):
        signal.signal(signal.Signals[f"SIG{die}"], signal.SIG_DFL) if die != "KILL" else None
        os.kill(os.getpid(), signal.Signals[f"SIG{die}"])
    os._exit(int(os.environ.get("EXIT", "0")))


def _note(mine: Path, what: str) -> None:
    with mine.joinpath("events").open("a") as file:
        file.write(f"{time.time():.6f} {what}\n")


def _listen(name: str, mine: Path) -> None:
    ignored = name in os.environ.get("IGNORE", "").split()

    def obey(number: int, _frame: object) -> None:
        _note(mine, name)
        if ignored:
            return
        time.sleep(float(os.environ.get("LINGER", "0")) if name == "INT" else 0)
        os._exit(128 + number if name != "INT" else int(os.environ.get("EXIT", "0")))

    signal.signal(signal.Signals[f"SIG{name}"], obey)


def _be_raw(needed: int, mine: Path) -> None:
    presses: list[float] = []
    while data := os.read(0, 1):
        if data == b"\x03":
            _note(mine, "C-c")
            presses.append(time.monotonic())
            if len(presses) >= needed and presses[-1] - presses[-needed] <= _WITHIN:
                os._exit(0)


def _escape(kind: str, mine: Path, writer: int) -> None:
    """Become another program with no environment, which keeps the lock, and says that it is there as the others do."""
    for descriptor in range(3, 16):  # the lock among them
        with contextlib.suppress(OSError):
            os.set_inheritable(descriptor, True)
    move_on = "pass" if kind == "escapee" else "if os.fork(): os._exit(0)"
    program = (
        "import os, sys, time\n"
        f"open({str(mine / 'children')!r}, 'a').write(f'{kind} {{os.getpid()}}\\n')\n"
        f"os.write({writer}, b'x'); os.close({writer})\n"
        f"while True:\n  time.sleep(0.005)\n  {move_on}\n"
    )
    env = dict(os.environ) if kind == "comet" else {}
    os.execve(sys.executable, [sys.executable, "-ISc", program], env)


def _leave(kind: str, mine: Path) -> None:
    """Leave a process behind that a careless agent would; wait until it is there."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        return
    if kind in {"setsid", "daemon", "escapee", "storm", "comet"}:
        os.setsid()
    if kind in {"daemon", "escapee", "storm", "comet"}:
        if os.fork():
            os._exit(0)
        os.chdir("/")
    if kind in {"escapee", "storm", "comet"}:
        _escape(kind, mine, writer)
    ignored = {"nohup": ("HUP",), "ignorer": ("HUP", "INT", "TERM")}.get(kind, ())
    for name in ignored:
        signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_IGN)
    with mine.joinpath("children").open("a") as file:
        file.write(f"{kind} {os.getpid()}\n")
    os.write(writer, b"x")
    os.close(writer)
    if kind == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        signal.pause()


_main()
