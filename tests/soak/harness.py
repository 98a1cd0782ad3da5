"""A harness for the soak: draws at each start how it behaves, holds its agent's lock, and writes down what it does.

It runs as a program of its own, under any Python 3.9 or later: the standard library only, and nothing of the tests.

    RECORD      the directory of its agent's name: `journal` has a line of JSON for everything, `lock` is held
    MOOD        what it is like: calm, restless, quick, deaf, slow, forker
    IGNORE_HUP  if set, it outlives its terminal
    HUSH        a file: as long as that is there, it does not end by itself
    VERSION     which edit of its entry this is; the start tells it, with prompt and secrets
    CLEARED     if set, a forker also leaves daemons that have cleared their environment
"""

import fcntl
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

_RECORD = Path(os.environ["RECORD"])
_MOOD = os.environ["MOOD"]
_HUSH = Path(os.environ["HUSH"])
_SIGNALS = ("INT", "TERM", "HUP", "QUIT")
_KINDS = ("child", "setsid", "nohup", "daemon", "ignorer", "burst")


def _main() -> NoReturn:
    _RECORD.mkdir(parents=True, exist_ok=True)
    sign = "/".join([os.environ["VERSION"], *sys.argv[1:], *(os.environ.get(f"SECRET_{x}", "-") for x in "AB")])
    tag = os.environ.get("AGENTD_ATTEMPT")
    deaf_to_hup = "IGNORE_HUP" in os.environ
    _note("start", sign=sign, tag=tag, launcher=os.getppid(), deaf_to_hup=deaf_to_hup)
    # Whatever it leaves behind shares the lock: while one of these lives, another start is a clash.
    lock = os.open(_RECORD / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(lock, True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _note("clash", others=_others())
    for name in _SIGNALS:
        _listen(name, deaf=(_MOOD == "deaf" and name in {"INT", "TERM"}) or (deaf_to_hup and name == "HUP"))
    if _MOOD == "forker":
        kinds = random.choices(_KINDS, k=random.randint(1, 3))
        for kind in [*kinds, "cleared"] if "CLEARED" in os.environ else kinds:
            _leave(kind)
    if _MOOD in {"calm", "deaf", "slow"}:
        while True:
            signal.pause()
    time.sleep(random.random() * 0.05 if _MOOD == "quick" else min(random.expovariate(1 / 6), 30))
    while _HUSH.exists():
        time.sleep(0.2)
    _end()


def _end() -> NoReturn:
    """Exit with some code, or by some signal, and say so first."""
    for name in _SIGNALS:
        signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_IGN)
    if random.random() < 0.3:
        fatal = random.choice((signal.SIGKILL, signal.SIGABRT, signal.SIGUSR1, signal.SIGSEGV))
        _note("exit", code=128 + fatal)
        os.kill(os.getpid(), fatal)
    code = random.choice((0, 0, 0, 1, 3, 42))
    _note("exit", code=code)
    os._exit(code)


def _note(what: str, **more: Any) -> None:
    """Append a line in one write, so that no two get mixed."""
    line = {"what": what, "pid": os.getpid(), "ticks": _ticks(os.getpid()), "time": time.time(), **more}
    journal = os.open(_RECORD / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(journal, json.dumps(line).encode() + b"\n")
    os.close(journal)


def _ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def _others() -> list[str]:
    """Who else of this agent's name lives: what is said of a clash."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"RECORD={_RECORD}\0".encode() in (entry / "environ").read_bytes():
                stat = (entry / "stat").read_text()
                found.append(f"{entry.name} {stat.rpartition(')')[2].split()[:4]}")
        except OSError:
            continue
    return found


def _listen(name: str, *, deaf: bool) -> None:
    def obey(number: int, _frame: object) -> None:
        _note(name)
        if deaf:
            return
        if _MOOD == "slow" and name == "INT":
            time.sleep(random.random() * 1.5)
        os._exit(0 if name == "INT" else 128 + number)

    signal.signal(signal.Signals[f"SIG{name}"], obey)


def _leave(kind: str) -> None:  # noqa: C901 - one kind after the other
    """Leave processes behind as careless agents do; return when they are there."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        return
    for name in _SIGNALS:
        signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_DFL)
    if kind == "nohup":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    elif kind == "ignorer":
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    if kind in {"setsid", "daemon", "cleared"}:
        os.setsid()
    if kind in {"daemon", "cleared"} and os.fork():
        os._exit(0)
    if kind == "burst":
        _burst()
    if kind == "cleared":
        words = [sys.executable, "-IS", "-c", "import signal, time; time.sleep(100000)"]
        _note("child", kind=kind)
        os.write(writer, b"x")
        os.execve(words[0], words, {})
    _note("child", kind=kind)
    os.write(writer, b"x")
    os.close(writer)
    while True:
        signal.pause()


def _burst() -> None:
    """Fork a score of short-lived ones, each of which forks again."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(20):
        if not os.fork():
            os.setsid()
            if not os.fork():
                time.sleep(random.random())
            os._exit(0)


_main()
