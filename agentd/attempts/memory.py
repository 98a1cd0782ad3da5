"""What agentd remembers of its runs in its run directory: a clean stop forgets, a crash remembers.

One file for each run, root's alone (the agents own the tmux server, and everything that could be remembered there).
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Container, Iterator
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import attrs
import trio

from agentd.attempts.directory import AttemptDirectory, remake_run_dir
from agentd.attempts.state import check_remembered
from agentd.errors import is_shortage
from agentd.inputs.regular_file import read_regular
from agentd.lifecycle import Exit, How, State
from agentd.logs import OncePer
from agentd.processes.scan import read_stat
from agentd.sessions import RunNote
from agentd.settings import Settings
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

    def __init__(self, settings: Settings, instance: str) -> None:
        self._settings = settings
        self._run_dir = settings.run_dir
        self._instance = instance
        self._newest: dict[str, tuple[RunNote, dict[str, Any]]] = {}
        """What is to be remembered, by run."""
        self._unwritten: set[str] = set()
        self._unforgotten: set[str] = set()
        self._say = OncePer()
        self.warnings: tuple[str, ...] = ()
        """Why it cannot be written down just now."""

    def write(self, note: RunNote, attempt: dict[str, Any]) -> None:
        """Write down what is so now; where that fails, `catch_up` tries again."""
        self._newest[note.run] = note, attempt
        try:
            self._write(note, attempt)
        except OSError as error:
            self._unwritten.add(note.run)
            self._warn(error)
        else:
            self._unwritten.discard(note.run)

    def forget(self, run: str) -> None:
        """Nothing of that run is left."""
        self._newest.pop(run, None)
        self._unwritten.discard(run)
        try:
            self._path(run).unlink(missing_ok=True)
        except OSError as error:
            self._unforgotten.add(run)
            self._warn(error)
        else:
            self._unforgotten.discard(run)

    def catch_up(self, left_alone: Container[str]) -> None:
        """Write, and take away, what could not be until now, and what somebody else has taken away.

        What stands in the directory of these runs is left alone.
        """
        try:
            there = self._list()
            for run in tuple(self._unforgotten):
                self._path(run).unlink(missing_ok=True)
                self._unforgotten.discard(run)
            attempts = {(note.run, note.status.attempt) for note, _ in self._newest.values()}
            AttemptDirectory.remove_others(self._settings, self._instance, there, attempts, left_alone)
            for run in {run for run in self._newest if self._path(run).name not in there} | self._unwritten:
                self._write(*self._newest[run])
                self._unwritten.discard(run)
        except OSError as error:
            if self._unwritten or self._unforgotten or not is_shortage(error):
                self._warn(error)
        else:
            self.warnings = ()

    def _list(self) -> set[str]:
        """What is in the run directory; somebody may have taken it away."""
        remake_run_dir(self._settings)
        return set(os.listdir(self._run_dir))

    def _warn(self, error: OSError) -> None:
        warning = (
            f"the run directory {self._run_dir} cannot be written ({error.strerror}): "
            "until that is mended, a crash of agentd would cost agents their attempts"
        )
        if warning not in self.warnings:
            _log.warning("%s", warning)
            self.warnings = (warning,)

    def _write(self, note: RunNote, attempt: dict[str, Any]) -> None:
        fields = {field.name: getattr(note, field.name) for field in attrs.fields(RunNote)}
        fields["status"] = attrs.asdict(note.status)
        fields |= {name: _of_all_processes(fields[name]) for name in _CLOCKS}
        content = {"version": VERSION, "life": self._life, "written": _now(), "note": fields, "attempt": attempt}
        path = self._path(note.run)
        fresh = path.with_suffix(".new")
        try:
            # In one go: half a note would be none.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            with open(os.open(fresh, flags, 0o600), "w", encoding="utf-8") as file:
                json.dump(content, file)
            fresh.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise

    def read(self) -> Remembered:
        """What a dead agentd has written down; of two runs of one agent, the later counts.

        Raises:
            OSError: if nobody knows what there is.
        """
        runs: dict[str, tuple[RunNote, dict[str, Any]]] = {}
        unreadable = set()
        found = []
        for run in self._runs():
            try:
                content = json.loads(read_regular(self._path(run), _MOST)[0])
                if content["life"] != self._life:
                    self.forget(run)
                    continue
                found.append((float(content["written"]), *_parse(content, run)))
            except (OSError, ValueError, KeyError, TypeError) as error:
                if isinstance(error, OSError) and is_shortage(error):
                    raise
                unreadable.add(run)
                if self._say(run, repr(error)):
                    _log.warning("%s cannot be read (%r): what it is about is left as it is", self._path(run), error)
        for _, note, attempt in sorted(found, key=itemgetter(0)):
            older = runs.get(note.status.name)
            if older is not None:
                self.forget(older[0].run)
            runs[note.status.name] = note, attempt
        self._newest = {note.run: (note, attempt) for note, attempt in runs.values()}
        return Remembered(runs, frozenset(unreadable))

    def _runs(self) -> Iterator[str]:
        """The runs of which there are notes; half a note, which its writer did not live to end, is taken away."""
        for name in sorted(self._list()):
            run, _, suffix = name.removeprefix(f"{self._instance}-").partition(".")
            if name.startswith(f"{self._instance}-") and suffix == "json":
                yield run
            elif name.startswith(f"{self._instance}-") and suffix == "new":
                with contextlib.suppress(OSError):
                    (self._run_dir / name).unlink()

    @cached_property
    def _life(self) -> str:
        """What changes when the machine, or the container, is started anew: nothing then is left that is remembered."""
        first = read_stat(1)
        return f"{_BOOT.read_text().strip()}/{first.start_ticks if first else '?'}"

    def _path(self, run: str) -> Path:
        return self._run_dir / f"{self._instance}-{run}.json"


def _parse(content: dict[str, Any], run: str) -> tuple[RunNote, dict[str, Any]]:
    if content["version"] != VERSION:
        message = f"version {content['version']}"
        raise ValueError(message)
    fields, attempt = content["note"], content["attempt"]
    if fields["run"] != run:
        message = f"it is about another run, {fields['run']}"
        raise ValueError(message)
    status = fields["status"]
    status["state"] = State(status["state"])
    if status["exit"] is not None:
        status["exit"] = Exit(**status["exit"] | {"how": How(status["exit"]["how"])})
    fields["status"] = AgentStatus(**status)
    fields |= {name: _of_this_process(fields[name]) for name in _CLOCKS}
    check_remembered(attempt)
    return RunNote(**fields), attempt


def _now() -> float:
    """The clock that all processes have, and trio's but for its origin: it stands still while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def _of_all_processes(when: float | None) -> float | None:
    """From trio's clock, whose origin is this process's own."""
    return None if when is None else when - trio.current_time() + _now()


def _of_this_process(when: float | None) -> float | None:
    return None if when is None else when + trio.current_time() - _now()
