"""What is true of every agent, written by the runs and the reconciler, read by the API: one direction."""

from collections.abc import Iterable
from typing import Literal

import attrs
import trio

from agentd.lifecycle import Exit, State


@attrs.frozen(kw_only=True)
class AgentStatus:
    """One agent as an observer sees it: `wanted`, `state` and `reason` are separate facts. Times are Unix seconds."""

    name: str
    session: str
    type: str
    harness: str
    wanted: Literal["running", "stopped"]
    state: State
    running: bool = False
    """Whether the harness of the current attempt is alive, as far as is known."""
    reason: str | None = None
    message: str = ""
    error: str | None = None
    """The message again, where it tells of something that an operator should mend."""
    since: float
    pid: int | None = None
    attempt: int = 0
    restarts: int = 0
    started_at: float | None = None
    next_restart_at: float | None = None
    deadline_at: float | None = None
    exit: Exit | None = None
    digest: str = ""


@attrs.frozen(kw_only=True)
class DaemonStatus:
    """What is true of agentd itself; `started` is on trio's clock, whose origin means nothing outside the process."""

    state: Literal["running", "stopping"] = "running"
    started: float
    card: str
    card_error: str | None = None
    warnings: tuple[str, ...] = ()


class StatusStore:
    """The one place where statuses live; each change is a new revision, which readers can wait for."""

    def __init__(self, daemon: DaemonStatus) -> None:
        self._daemon = daemon
        self._agents: dict[str, AgentStatus] = {}
        self._revision = 0
        self._changed = trio.Event()

    @property
    def revision(self) -> int:
        """The number of changes so far: it only grows."""
        return self._revision

    @property
    def daemon(self) -> DaemonStatus:
        """agentd's own status."""
        return self._daemon

    @property
    def agents(self) -> tuple[AgentStatus, ...]:
        """All agents, in the card's order; those that are on their way out come last."""
        return tuple(self._agents.values())

    def get(self, name: str) -> AgentStatus | None:
        """The status of the agent of that name, in any case, or None."""
        wanted = name.casefold()
        return next((status for status in self._agents.values() if status.name.casefold() == wanted), None)

    def put(self, status: AgentStatus) -> None:
        """Write one agent's status; the same again is no change."""
        if self._agents.get(status.name) != status:
            self._agents[status.name] = status
            self._touch()

    def drop(self, name: str) -> None:
        """Forget an agent that is neither wanted nor there any more."""
        if self._agents.pop(name, None) is not None:
            self._touch()

    def order(self, names: Iterable[str]) -> None:
        """Put the agents into the card's order; names that have no status yet are passed over."""
        first = {name: self._agents[name] for name in names if name in self._agents}
        ordered = first | {name: status for name, status in self._agents.items() if name not in first}
        if list(ordered) != list(self._agents):
            self._agents = ordered
            self._touch()

    def put_daemon(self, status: DaemonStatus) -> None:
        """Write agentd's own status; the same again is no change."""
        if self._daemon != status:
            self._daemon = status
            self._touch()

    async def wait_for_change(self, revision: int) -> int:
        """Wait until there is a later revision than this one, and return the current one."""
        while self._revision <= revision:
            await self._changed.wait()
        return self._revision

    def _touch(self) -> None:
        self._revision += 1
        self._changed.set()
        self._changed = trio.Event()
