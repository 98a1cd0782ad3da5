"""Every error that agentd raises on purpose: none of these is a bug.

A message says what was found and what to do about it, in one sentence that an operator can act on.
"""

import attrs


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
