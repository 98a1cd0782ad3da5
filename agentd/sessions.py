"""The one seam to the world: what a run asks of the place where its attempts live.

`launch.TmuxSessions` is the real one, `testing.FakeSessions` the scripted one on the virtual clock;
the same contract tests run on both.
"""

from typing import Protocol

import attrs

from agentd.errors import AgentdError
from agentd.lifecycle import Exit
from agentd.resolve import Blocked, EffectiveAgent


class LaunchBlockedError(AgentdError):
    """The attempt cannot be launched until something outside agentd changes; nothing of it runs."""

    def __init__(self, blocked: Blocked) -> None:
        super().__init__(blocked.message)
        self.blocked = blocked


class NeverStartedError(AgentdError):
    """The harness did not start in time, or nobody knows; what may have come of it must be swept."""


@attrs.frozen(kw_only=True)
class AttemptRequest:
    """Everything that one attempt needs; `previous` is the run's attempt before, whose session it takes over."""

    effective: EffectiveAgent
    run: str
    number: int
    restarts: int
    deadline: float | None
    """When the run's timeout ends it, in seconds of trio's clock."""
    typed: bool = True
    """Whether the shell is given its command by keys; False after keys did not start it."""
    previous: "Attempt | None" = None


class Attempt(Protocol):
    """One launch of a harness. All methods may be cancelled, and called again after that."""

    async def launch(self) -> int:
        """Launch the harness and return its pid once it runs.

        Raises:
            LaunchBlockedError: if a cause outside agentd is in the way.
            NeverStartedError: if it did not start in time.
        """

    async def ended(self) -> Exit:
        """Wait for the end of a started attempt, as often as asked."""

    async def interrupt(self, *, again: bool) -> bool:
        """Press C-c, once; with `again` only in a raw terminal. Return whether the terminal is raw."""

    async def sweep(self) -> int:
        """End what the attempt left behind, its session's shell excepted; return how many processes defied that."""

    async def close(self) -> None:
        """End the session and what is left on its terminal."""


class Sessions(Protocol):
    """Where attempts come from."""

    async def recover(self) -> bool:
        """End what an earlier agentd left behind; return whether that is done. Before anything is launched."""

    def attempt(self, request: AttemptRequest) -> Attempt:
        """A new attempt; nothing happens before its `launch`."""

    async def still_blocked(self, effective: EffectiveAgent, blocked: Blocked) -> bool:
        """Whether the cause is still there, as far as can be told without starting a process."""
