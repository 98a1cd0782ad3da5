"""What agentd remembers of its runs in its run directory: a clean stop forgets, a crash remembers.

One file for each run, root's alone (the agents own the tmux server, and everything that could be remembered there).
"""

import contextlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import attrs
import trio

from agentd.attempts.state import check_remembered
from agentd.inputs.regular_file import read_regular
from agentd.lifecycle import Exit, How, State
from agentd.processes.scan import read_stat
from agentd.sessions import RunNote
from agentd.status import AgentStatus

VERSION = 1
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MOST = 256 * 1024
_CLOCKS = ("deadline", "next_restart", "started")

_log = logging.getLogger("agentd.attempts.memory")


@attrs.frozen
class Remembered:
    """What a dead agentd has written down: its runs by their agents' names, and the runs that nobody can read."""

    runs: dict[str, tuple[RunNote, dict[str, Any]]]
    unreadable: frozenset[str]
    """Ids of runs that another version of agentd has written down: what they left is nobody's here."""


class Memory:
    """The notes of one agentd, as files."""

    def __init__(self, run_dir: Path, instance: str) -> None:
        self._run_dir = run_dir
        self._instance = instance
        self._life = _life()
        self._failed = False

    def write(self, note: RunNote, attempt: dict[str, Any]) -> None:
        """Write down what is so now; where that fails, a crash of agentd would cost this agent its attempt."""
        fields = {field.name: getattr(note, field.name) for field in attrs.fields(RunNote)}
        fields["status"] = attrs.asdict(note.status)
        fields |= {name: _since_boot(fields[name]) for name in _CLOCKS}
        path = self._path(note.run)
        fresh = path.with_suffix(".new")
        try:
            # In one go: half a note would be none.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            with open(os.open(fresh, flags, 0o600), "w", encoding="utf-8") as file:
                json.dump({"version": VERSION, "life": self._life, "note": fields, "attempt": attempt}, file)
            fresh.replace(path)
        except OSError as error:
            if not self._failed:
                _log.warning("a crash of agentd would now cost agents their attempts: %s: %s", fresh, error.strerror)
            self._failed = True
            with contextlib.suppress(OSError):
                fresh.unlink()
        else:
            self._failed = False

    def forget(self, run: str) -> None:
        """Nothing of that run is left."""
        with contextlib.suppress(FileNotFoundError):
            self._path(run).unlink()

    def read(self) -> Remembered:
        """What a dead agentd has written down; of two runs of one agent, the later counts."""
        for unfinished in self._run_dir.glob(f"{self._instance}-*.new"):
            unfinished.unlink()
        runs: dict[str, tuple[RunNote, dict[str, Any]]] = {}
        unreadable = set()
        paths = sorted(self._run_dir.glob(f"{self._instance}-*.json"), key=lambda path: path.stat().st_mtime_ns)
        for path in paths:
            run = path.stem.removeprefix(f"{self._instance}-")
            try:
                content = json.loads(read_regular(path, _MOST)[0])
                if content["life"] != self._life:
                    self.forget(run)
                    continue
                note, attempt = _parse(content)
            except (OSError, ValueError, KeyError, TypeError) as error:
                _log.warning("%s cannot be read (%r): what it is about is left as it is", path, error)
                unreadable.add(run)
                continue
            if note.run != run:
                _log.warning("%s is about another run (%s): what it is about is left as it is", path, note.run)
                unreadable.add(run)
                continue
            older = runs.get(note.status.name)
            if older is not None:
                self.forget(older[0].run)
            runs[note.status.name] = note, attempt
        return Remembered(runs, frozenset(unreadable))

    def _path(self, run: str) -> Path:
        return self._run_dir / f"{self._instance}-{run}.json"


def _parse(content: dict[str, Any]) -> tuple[RunNote, dict[str, Any]]:
    if content["version"] != VERSION:
        message = f"version {content['version']}"
        raise ValueError(message)
    fields, attempt = content["note"], content["attempt"]
    status = fields["status"]
    status["state"] = State(status["state"])
    if status["exit"] is not None:
        status["exit"] = Exit(**status["exit"] | {"how": How(status["exit"]["how"])})
    fields["status"] = AgentStatus(**status)
    fields |= {name: _of_this_process(fields[name]) for name in _CLOCKS}
    check_remembered(attempt)
    return RunNote(**fields), attempt


def _life() -> str:
    """What changes when the machine, or the container, is started anew: nothing then is left that a note is about."""
    first = read_stat(1)
    return f"{_BOOT.read_text().strip()}/{first.start_ticks if first else '?'}"


def _since_boot(when: float | None) -> float | None:
    """From trio's clock, whose origin is this process's own, to the one that every process has."""
    return None if when is None else when - trio.current_time() + time.clock_gettime(time.CLOCK_BOOTTIME)


def _of_this_process(when: float | None) -> float | None:
    return None if when is None else when + trio.current_time() - time.clock_gettime(time.CLOCK_BOOTTIME)
