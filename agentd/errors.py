"""Every error that agentd raises on purpose, and what a machine says that has run out of something: none is a bug.

A message says what was found and what to do about it, in one sentence that an operator can act on.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

_SHORTAGES = {
    errno.EMFILE: "no more files may be opened: raise agentd's limit (ulimit -n, LimitNOFILE=), or run fewer agents",
    errno.ENFILE: "the machine has no more open files to give: raise fs.file-max",
    errno.ENOMEM: "the machine has no memory left",
    errno.ENOBUFS: "the machine has no memory left",
    errno.EAGAIN: "no more processes and threads may be started: raise their limit (ulimit -u, TasksMax=)",
    errno.ENOSPC: "a file system has no space left",
    errno.EDQUOT: "a quota of disk space is used up",
}


class AgentdError(Exception):
    """The base of everything below."""


class UsageError(AgentdError):
    """The command line cannot be used; agentd exits with 2."""


class StartupError(AgentdError):
    """agentd cannot start, or cannot go on, on this machine; it exits with 1."""


@attrs.frozen
class Problem:
    """One thing wrong in the card: where (`agents[1].restart`, `line 3, column 7`), and what to do."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


class CardError(AgentdError):
    """The card is invalid as a whole; `problems` has every one of its mistakes, in the card's order."""

    def __init__(self, problems: tuple[Problem, ...], warnings: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
        self.warnings = warnings


class TmuxError(AgentdError):
    """tmux answered a command with an error: the answer is known, and it is no."""


class TmuxServerGoneError(TmuxError):
    """What the command was about has gone with its tmux server."""


class TmuxUnknownError(AgentdError):
    """tmux did not answer (connection lost, timed out, unreadable reply): nothing is known, nobody is dead."""


class TmuxHaltedError(TmuxUnknownError):
    """The tmux server stands still, and was not asked: what there is stays as it is."""


def is_shortage(error: OSError) -> bool:
    """Whether the machine has run out of something: that says nothing of what was asked for, and it passes."""
    return error.errno in _SHORTAGES


def cannot_look(error: OSError) -> bool:
    """Whether it is descriptors or memory that there are none of: with these, nothing can be opened."""
    return error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def shortage_words(error: OSError) -> str:
    """What there is not enough of, and what to do about it; another error's own words."""
    return _SHORTAGES.get(error.errno or 0) or error.strerror or str(error)


@contextmanager
def threads_as_processes() -> Iterator[None]:
    """Have a thread that cannot be started fail as a process does: trio starts processes from threads."""
    try:
        yield
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        raise OSError(errno.EAGAIN, "no thread can be started") from error
