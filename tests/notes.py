"""Notes of runs for tests, and the statuses in them: a test changes what it is about."""

from typing import Any

import attrs

from agentd.lifecycle import State
from agentd.sessions import RunNote
from agentd.status import AgentStatus


def status_of(**changes: Any) -> AgentStatus:
    """The status of an agent in its first attempt."""
    status = AgentStatus(
        name="a",
        session="a",
        type="native",
        harness="custom",
        wanted="running",
        state=State.RUNNING,
        since=0.0,
        attempt=1,
    )
    return attrs.evolve(status, **changes)


def note_of(status: AgentStatus, **changes: Any) -> RunNote:
    """The note of a run of which that is the status."""
    note = RunNote(
        run="abc",
        status=status,
        timeout=None,
        grace_period=3.0,
        doublings=0,
        typed=True,
        deadline=None,
        next_restart=None,
        started=None,
    )
    return attrs.evolve(note, **changes)
