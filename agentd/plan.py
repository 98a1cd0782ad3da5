"""What to do so that the runs match what is wanted: one synchronous function over frozen values."""

from collections.abc import Mapping
from enum import StrEnum

import attrs

from agentd.card.card import Agent
from agentd.resolve import Blocked, EffectiveAgent, Unsupported


class Phase(StrEnum):
    """How far a run is."""

    ACTIVE = "active"
    STOPPING = "stopping"
    ENDED = "ended"


@attrs.frozen
class RunView:
    """What the plan must know of a run."""

    effective: EffectiveAgent
    phase: Phase
    known: bool = attrs.field(default=True, kw_only=True)
    """Whether more is known of the effective agent than its digest and its session."""


@attrs.frozen
class Start:
    """Begin a run."""

    effective: EffectiveAgent


@attrs.frozen
class Stop:
    """End a run, whatever it does, and its session; an ended run has only its session left."""

    name: str
    cause: str


@attrs.frozen
class Hold:
    """Begin nothing: the agent waits, and this is why."""

    agent: Agent
    blocked: Blocked


@attrs.frozen
class Refuse:
    """Begin nothing, ever, for this entry."""

    agent: Agent
    unsupported: Unsupported


Action = Start | Stop | Hold | Refuse
Wanted = Mapping[str, tuple[Agent, EffectiveAgent | Blocked | Unsupported]]

REMOVED = "removed"
CHANGED = "changed"


def plan(wanted: Wanted, runs: Mapping[str, RunView]) -> tuple[Action, ...]:
    """The actions that bring the runs nearer to what is wanted, stops first, the rest in the card's order.

    A stopping run blocks its successor, and a session's name belongs to the run that has it until that run's end.
    Nobody is relaunched for the same digest. An input that vanished (`Blocked`) stops nothing that lives.
    """
    stops = tuple(stop for name, run in runs.items() if (stop := _stop(name, run, wanted)) is not None)
    held = {run.effective.agent.session: name for name, run in runs.items()}
    rest: list[Action] = []
    for name, (agent, what) in wanted.items():
        if name in runs:
            continue
        match what:
            case Blocked():
                rest.append(Hold(agent, what))
            case Unsupported():
                rest.append(Refuse(agent, what))
            case EffectiveAgent() if (owner := held.get(agent.session)) is not None:
                message = (
                    f"The session {agent.session!r} still belongs to the agent {owner!r}: waits until that has left it."
                )
                rest.append(Hold(agent, Blocked(reason="session_taken", message=message)))
            case EffectiveAgent():
                rest.append(Start(what))
    return stops + tuple(rest)


def _stop(name: str, run: RunView, wanted: Wanted) -> Stop | None:
    if run.phase is Phase.STOPPING:
        return None
    if name not in wanted:
        return Stop(name, REMOVED)
    agent, what = wanted[name]
    match what:
        case EffectiveAgent(digest=digest) if digest != run.effective.digest:
            return Stop(name, CHANGED)
        case Unsupported():
            return Stop(name, CHANGED)
        case Blocked() if run.phase is Phase.ENDED and run.known and agent != run.effective.agent:
            return Stop(name, CHANGED)
        case _:
            return None


def not_in_force(wanted: Wanted, runs: Mapping[str, RunView]) -> tuple[str, ...]:
    """Warn of the agents that live although what the card wants of them now could not be launched."""
    return tuple(
        f"agent {name} goes on as it was launched: {what.message}"
        for name, (_, what) in wanted.items()
        if isinstance(what, Blocked) and name in runs and runs[name].phase is Phase.ACTIVE
    )
