"""What a run tells of its agent: its status to the store, and what happened to the log."""

import logging
from typing import Any

import attrs

from agentd.lifecycle import Event, follow
from agentd.status import AgentStatus, StatusStore

_log = logging.getLogger("agentd.run")


class Announcer:
    """The one who writes one agent's status."""

    def __init__(self, status: AgentStatus, store: StatusStore) -> None:
        self.status = status
        self._store = store
        self._blocked: str | None = None
        store.put(status)

    def publish(self, **changes: Any) -> None:
        """Make these fields of the status so."""
        self.status = attrs.evolve(self.status, **changes)
        self._store.put(self.status)

    def move(self, event: Event, since: float, **changes: Any) -> None:
        """Publish what an event, at that time of day, made of the agent, and say it in the log."""
        state = follow(self.status.state, event)
        fresh: dict[str, Any] = {"reason": None, "error": None, "state": state}
        if state is not self.status.state:
            fresh["since"] = since
        self.publish(**(fresh | changes))
        self._say(event)

    def _say(self, event: Event) -> None:
        """Log an event, but not that a blocked agent was tried again, and is blocked by the same as before."""
        status = self.status
        again = self._blocked is not None and event is Event.LAUNCHED
        same = event is Event.BLOCKED and status.message == self._blocked
        if event is Event.BLOCKED:
            self._blocked = status.message
        elif event is not Event.LAUNCHED:
            self._blocked = None
        if again or same:
            return
        _log.log(
            logging.WARNING if status.error else logging.INFO,
            "agent=%s wanted=%s state=%s reason=%s attempt=%d pid=%s: %s",
            status.name,
            status.wanted,
            status.state,
            status.reason or "-",
            status.attempt,
            status.pid or "-",
            status.message or event,
        )
