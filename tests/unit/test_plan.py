"""The plan: what is wanted beside what runs, and the actions that follow."""

import attrs
import pytest

from agentd.plan import CHANGED, REMOVED, Action, Hold, Phase, Refuse, RunView, Start, Stop, Wanted, not_in_force, plan
from agentd.resolve import Blocked, EffectiveAgent, Unsupported
from tests.unit.world import agent_of, effective_of

_A = agent_of("a")
_NOW = effective_of("a")
_NEW = effective_of("a", args=("--new",))
_BLOCKED = Blocked(reason="prompt_file", message="It is missing.")
_UNSUPPORTED = Unsupported(message="Not here.")

_SAME = _NOW
_OTHER = _NEW


@pytest.mark.parametrize(
    ("what", "runs", "phase", "actions"),
    [
        # Nothing runs.
        (_NOW, None, None, (Start(_NOW),)),
        (_BLOCKED, None, None, (Hold(_A, _BLOCKED),)),
        (_UNSUPPORTED, None, None, (Refuse(_A, _UNSUPPORTED),)),
        # It runs.
        (None, _SAME, Phase.ACTIVE, (Stop("a", REMOVED),)),
        (_NOW, _SAME, Phase.ACTIVE, ()),
        (_NOW, _OTHER, Phase.ACTIVE, (Stop("a", CHANGED),)),
        (_BLOCKED, _SAME, Phase.ACTIVE, ()),
        (_BLOCKED, _OTHER, Phase.ACTIVE, ()),
        (_UNSUPPORTED, _SAME, Phase.ACTIVE, (Stop("a", CHANGED),)),
        # It is being stopped: the successor waits, whatever it is.
        (None, _SAME, Phase.STOPPING, ()),
        (_NOW, _SAME, Phase.STOPPING, ()),
        (_NOW, _OTHER, Phase.STOPPING, ()),
        (_BLOCKED, _SAME, Phase.STOPPING, ()),
        (_UNSUPPORTED, _SAME, Phase.STOPPING, ()),
        # It ended by itself.
        (None, _SAME, Phase.ENDED, (Stop("a", REMOVED),)),
        (_NOW, _SAME, Phase.ENDED, ()),
        (_NOW, _OTHER, Phase.ENDED, (Stop("a", CHANGED),)),
        (_BLOCKED, _SAME, Phase.ENDED, ()),
        (_BLOCKED, _OTHER, Phase.ENDED, (Stop("a", CHANGED),)),
        (_UNSUPPORTED, _SAME, Phase.ENDED, (Stop("a", CHANGED),)),
    ],
)
def test_one_agent(
    what: EffectiveAgent | Blocked | Unsupported | None,
    runs: EffectiveAgent | None,
    phase: Phase | None,
    actions: tuple[Action, ...],
) -> None:
    """What is wanted of an agent and how far its run is decide, together, what is done."""
    wanted: Wanted = {} if what is None else {"a": (_A, what)}
    views = {} if runs is None or phase is None else {"a": RunView(runs, phase)}
    assert plan(wanted, views) == actions


def test_nothing() -> None:
    """Nothing wanted and nothing there is nothing to do."""
    assert plan({}, {}) == ()


def test_order() -> None:
    """Stops come first, in the order of the runs; the rest follows in the card's order."""
    gone = {name: RunView(effective_of(name), Phase.ACTIVE) for name in ("z", "y")}
    names = ("c", "a", "b")
    blocked = agent_of("h")
    wanted: Wanted = {name: (agent_of(name), effective_of(name)) for name in names}
    wanted = {"h": (blocked, _BLOCKED), **wanted}
    assert plan(wanted, gone) == (
        Stop("z", REMOVED),
        Stop("y", REMOVED),
        Hold(blocked, _BLOCKED),
        *(Start(effective_of(name)) for name in names),
    )


@pytest.mark.parametrize("phase", Phase)
def test_session_is_held(phase: Phase) -> None:
    """A session's name belongs to the run that has it until that run is gone, however far it is."""
    newcomer = effective_of("b", session="shared")
    actions = plan({"b": (newcomer.agent, newcomer)}, {"a": RunView(effective_of("a", session="shared"), phase)})
    *stops, hold = actions
    assert stops == ([] if phase is Phase.STOPPING else [Stop("a", REMOVED)])
    assert isinstance(hold, Hold)
    assert (hold.agent.name, hold.blocked.reason) == ("b", "session_taken")
    assert "'shared'" in hold.blocked.message
    assert "'a'" in hold.blocked.message


def _running(name: str, session: str) -> RunView:
    return RunView(effective_of(name, session=session), Phase.ACTIVE)


def test_swapped_sessions() -> None:
    """Two agents that swap sessions are both stopped, and the first one that is gone waits for the other."""
    a, b = effective_of("a", session="right"), effective_of("b", session="left")
    wanted: Wanted = {"a": (a.agent, a), "b": (b.agent, b)}
    runs = {"a": _running("a", "left"), "b": _running("b", "right")}
    assert plan(wanted, runs) == (Stop("a", CHANGED), Stop("b", CHANGED))
    stopping = {name: attrs.evolve(run, phase=Phase.STOPPING) for name, run in runs.items()}
    assert plan(wanted, stopping) == ()
    (hold,) = plan(wanted, {"b": stopping["b"]})
    assert isinstance(hold, Hold)
    assert (hold.agent.name, hold.blocked.reason) == ("a", "session_taken")
    assert plan(wanted, {}) == (Start(a), Start(b))


def test_plan_is_settled() -> None:
    """Once the actions have been carried out there is nothing more to do."""
    agents = {name: effective_of(name) for name in "abc"}
    wanted: Wanted = {name: (effective.agent, effective) for name, effective in agents.items()}
    runs = {name: RunView(effective, Phase.ACTIVE) for name, effective in agents.items()}
    assert plan(wanted, runs) == ()


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("what", [_NOW, _BLOCKED, _UNSUPPORTED])
def test_not_in_force(what: EffectiveAgent | Blocked | Unsupported, phase: Phase) -> None:
    """Who lives while what is wanted of it could not be launched is named, with the reason."""
    told = not_in_force({"a": (_A, what), "b": (agent_of("b"), _BLOCKED)}, {"a": RunView(_NEW, phase)})
    lives = what is _BLOCKED and phase is Phase.ACTIVE
    assert told == (("agent a goes on as it was launched: It is missing.",) if lives else ())
