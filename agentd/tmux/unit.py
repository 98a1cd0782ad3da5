"""The systemd unit that holds the tmux server, so that the server outlives agentd: systemd is asked to start it."""

import os
import subprocess
from pathlib import Path
from typing import Final

import trio

from agentd.errors import threads_as_processes
from agentd.processes.cgroup import cgroup_path
from agentd.settings import Settings
from agentd.tmux.client import printable

_TIMEOUT: Final = 5.0
"""Seconds for an answer of systemd."""


async def start_unit(settings: Settings) -> str:
    """Have systemd start the unit, unless it runs; return what stands against it, or nothing.

    Nobody waits for the start itself: while systemd stops agentd, it comes after that stop.
    """
    code, words = await _systemctl(settings, "start", "--no-block", "--no-ask-password")
    return words if code else ""


async def withdraw_start(settings: Settings) -> None:
    """Take back a start that has not begun: it would have a server run that nobody ends. A running unit stays."""
    code, _ = await _systemctl(settings, "is-active", "--quiet")
    if code:
        await _systemctl(settings, "stop", "--no-block", "--no-ask-password")


async def unit_cgroup(settings: Settings) -> Path | None:
    """The cgroup of the unit, or None where it has none, or nobody says."""
    code, words = await _systemctl(settings, "show", "--property=ControlGroup", "--value")
    return None if code or not words.startswith("/") else cgroup_path(words.rstrip("\n"))


async def ends_unit(settings: Settings) -> bool:
    """Whether systemd is about to end the unit, since the machine is shut down, say; no where it does not answer."""
    code, words = await _systemctl(settings, "list-jobs", "--no-legend")
    # A line each: a job's number, its unit, its type, its state.
    return not code and any(line.split()[2:3] in (["stop"], ["restart"]) for line in words.splitlines())


async def _systemctl(settings: Settings, *words: str) -> tuple[int, str]:
    """Return its exit code and what it says, on stdout, or of a failure on stderr, in bounded time."""
    assert settings.systemctl is not None, "with -tmux-unit it was looked for"
    assert settings.tmux_unit is not None, "only with a unit"
    manager = [] if os.geteuid() == 0 else ["--user"]
    command = [settings.systemctl, *manager, *words, settings.tmux_unit]
    shown = " ".join([os.path.basename(settings.systemctl), *command[1:]])
    with trio.move_on_after(_TIMEOUT):
        try:
            with threads_as_processes():
                done = await trio.run_process(
                    command,
                    stdin=subprocess.DEVNULL,
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    cwd="/",
                )
        except OSError as error:
            return 1, f"{shown} does not start: {error.strerror}"
        if done.returncode == 0:
            return 0, done.stdout.decode(errors="replace")
        return done.returncode, printable(done.stderr.decode(errors="replace")) or f"{shown} failed"
    return 1, f"{shown} did not answer within {_TIMEOUT:g} s"
