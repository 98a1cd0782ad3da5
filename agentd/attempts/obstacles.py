"""What is in the way of a launch, in words, and whether it may be gone: told by `stat`, without a process."""

import errno
import os
from pathlib import Path

from agentd.attempts.script import PATH_SHOWN
from agentd.errors import cannot_look, shortage_words
from agentd.resolve import Blocked, EffectiveAgent

MOST_FOLDERS = 64
"""Folders of a PATH that are looked into at each look."""


def workdir_blocked(effective: EffectiveAgent, how: str, user: str) -> Blocked:
    """The workdir is missing, or may not be entered by the agent user."""
    workdir = effective.workdir
    words = "does not exist" if how == "missing" else f"may not be entered by {user}"
    message = f"The workdir {workdir} {words}; agentd launches the agent when that is mended."
    reason = "workdir_missing" if how == "missing" else "workdir_denied"
    return Blocked(reason=reason, message=message, paths=(workdir,))


def binary_blocked(effective: EffectiveAgent, path: str) -> Blocked:
    """The program is in none of the folders of the PATH that the agent's own shell has."""
    binary = effective.argv[0]
    # It is the agents' word, and each look stats all of it.
    whole = len(path) < PATH_SHOWN and path.count(":") < MOST_FOLDERS
    places = (binary,) if "/" in binary else tuple(f"{folder or '.'}/{binary}" for folder in path.split(":"))
    # Of a PATH that was cut, nobody knows where to look, and in a vast one nobody wants to: each look tries a launch.
    paths = tuple(os.path.join(effective.workdir, place) for place in places) if whole or "/" in binary else ()
    where = "" if "/" in binary else f" in PATH ({path})"
    message = (
        f"The program {binary} is not there{where}; install it, or set binary or env.PATH. "
        "agentd launches the agent when it is there."
    )
    return Blocked(reason="binary_missing", message=message, paths=paths)


def session_taken(name: str, socket: Path) -> Blocked:
    """The session's name belongs to somebody else."""
    message = (
        f"A tmux session named {name!r} that agentd did not make is in the way; end it with "
        f"'tmux -S {socket} kill-session -t ={name}', or set another session."
    )
    return Blocked(reason="session_taken", message=message)


def retried(reason: str, what: str) -> Blocked:
    """Something that no path tells of: every look tries again."""
    return Blocked(reason=reason, message=f"{what}; agentd tries again at each look.")


def not_prepared(error: OSError, run_dir: Path) -> Blocked:
    """The attempt's files cannot be written, or there is not enough to launch it with."""
    if cannot_look(error) or error.errno == errno.EAGAIN:
        words = shortage_words(error)
        return retried("shortage", words[0].upper() + words[1:])
    return retried("run_dir", f"The attempt cannot be prepared in {run_dir} ({error.strerror})")


def not_forked(words: str) -> Blocked:
    """The tmux server could start nothing in a pane."""
    why = words.rpartition("fork failed")[2].strip(": ")
    return retried("shortage", f"tmux can start no process with a terminal ({why}): raise TasksMax=, or kernel.pty.max")


class Obstacles:
    """How the paths of each blocked agent looked, to see when that changes."""

    def __init__(self) -> None:
        self._seen: dict[str, object] = {}
        self._tried: dict[str, object] = {}

    def note(self, name: str, blocked: Blocked) -> None:
        """Remember how the paths in question look.

        If the cause seems gone already, it went between the launch and now: one try more, for each look of the paths.
        """
        now = _signature(blocked.paths)
        seems_gone = any(os.access(path, os.X_OK) for path in blocked.paths)
        self._seen[name] = None if seems_gone and self._tried.get(name) != now else now
        self._tried[name] = now

    def same(self, name: str, blocked: Blocked) -> bool:
        """Whether the paths look as they did."""
        return self._seen.get(name) == _signature(blocked.paths)


def _signature(paths: tuple[str, ...]) -> object:
    """How the files and all folders above them look; a cause that goes changes this."""
    return tuple(_look(str(path)) for place in paths for path in (Path(place), *Path(place).parents))


def _look(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return (found.st_mode, found.st_uid, found.st_gid, found.st_ino, found.st_dev)
