"""The one seam to the world: what a run asks of the place where its attempts live.

`launch.TmuxSessions` is the real one, `testing.FakeSessions` the scripted one on the virtual clock;
the same contract tests run on both.
"""

from typing import Protocol

import attrs

from agentd.card.card import Agent
from agentd.errors import AgentdError
from agentd.lifecycle import Exit
from agentd.resolve import Blocked, EffectiveAgent
from agentd.status import AgentStatus


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
    typed: bool = True
    """Whether the shell is given its command by keys; False after keys did not start it."""
    previous: "Attempt | None" = None


@attrs.frozen(kw_only=True)
class RunNote:
    """What the next agentd must know to go on with a run, should this one be killed.

    `deadline`, `next_restart` and `started` are on trio's clock. Nothing secret: what is launched next comes from card
    and secrets, if their digest is still the same.
    """

    run: str
    status: AgentStatus
    timeout: float | None
    grace_period: float
    doublings: int
    typed: bool
    deadline: float | None
    next_restart: float | None
    started: float | None

    def stand_in(self) -> EffectiveAgent:
        """What the note tells of the effective agent: enough to stop it."""
        agent = Agent(
            name=self.status.name,
            harness=self.status.harness,
            session=self.status.session,
            timeout=self.timeout,
            grace_period=self.grace_period,
        )
        return EffectiveAgent(agent=agent, argv=(), env={}, workdir="/", digest=self.status.digest)


def stand_in_blocked() -> Blocked:
    """Nobody can launch anew what only a note tells of."""
    message = (
        "What an earlier agentd began to launch has not come up; "
        "it is launched anew when its entry, prompt and secrets can be read."
    )
    return Blocked(reason="recovering", message=message)


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

    def is_over(self) -> bool:
        """Whether a started attempt has ended, heard of or not."""

    async def interrupt(self, *, again: bool) -> bool:
        """Press C-c, once; with `again` only in a raw terminal. Return whether the terminal is raw."""

    async def sweep(self) -> int:
        """End what the attempt left behind, its session's shell excepted; return how many processes defied that."""

    async def close(self) -> None:
        """End the tmux session, and what is left in its shell's."""


class Sessions(Protocol):
    """Where attempts come from."""

    async def recover(self) -> tuple[RunNote, ...] | None:
        """Find the runs of an earlier agentd, and end what else it has left; None: ask again.

        Before anything is launched.
        """

    def adopt(self, request: AttemptRequest) -> Attempt:
        """The last attempt of a run that `recover` has found, of the same run and number.

        Where the note says `starting`, `launch` goes on with it, blocked where nothing has come of it and a stand-in
        cannot be launched anew; where it says `running`, `ended` tells its end.
        """

    def remember(self, note: RunNote, attempt: Attempt) -> None:
        """Have the next agentd find this run, should this one be killed."""

    def forget(self, run: str) -> None:
        """The next agentd need not know of that run: nothing of it is left."""

    def catch_up(self) -> tuple[str, ...]:
        """Do what could not be done for want of something; return what there still is not enough of.

        At each look. It has been logged.
        """

    def attempt(self, request: AttemptRequest) -> Attempt:
        """A new attempt; nothing happens before its `launch`."""

    async def still_blocked(self, effective: EffectiveAgent, blocked: Blocked) -> bool:
        """Whether the cause is still there, as far as can be told without starting a process."""
