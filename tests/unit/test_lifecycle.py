"""The table of states and events, cell by cell, and the restart policy."""

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.lifecycle import TABLE, Event, Exit, How, State, backoff, decide, exit_from_code, follow
from tests.unit.world import agent_of

_CELLS = """
            launched  started  blocked  will_restart  done       gave_up  stop      timed_out  broke
waiting     starting  -        waiting  -             -          -        stopping  -          failed
starting    -         running  waiting  backoff       -          failed   stopping  -          failed
running     -         -        -        backoff       completed  failed   stopping  -          failed
stopping    -         -        -        -             -          -        -         failed     failed
backoff     starting  -        -        -             -          -        stopping  -          failed
completed   -         -        -        -             -          -        -         -          -
failed      -         -        -        -             -          -        -         -          -
"""


def _cells() -> list[tuple[str, str, str]]:
    header, *rows = (line.split() for line in _CELLS.strip().splitlines())
    return [(row[0], event, after) for row in rows for event, after in zip(header, row[1:], strict=True)]


@pytest.mark.parametrize(("state", "event", "after"), _cells())
def test_every_cell(state: str, event: str, after: str) -> None:
    """Each state and event has the one consequence that the design's table gives it, "nothing happens" included."""
    expected = None if after == "-" else State(after)
    assert TABLE[State(state)][Event(event)] is expected
    assert follow(State(state), Event(event)) is (expected or State(state))


def test_table_is_complete() -> None:
    """The cells above are all there are: every state with every event, once."""
    assert sorted((state, event) for state, event, _ in _cells()) == sorted(product(map(str, State), map(str, Event)))
    assert {(state, event) for state, row in TABLE.items() for event in row} == set(product(State, Event))


def test_table_is_frozen() -> None:
    """Nobody changes the table at run time."""
    with pytest.raises(TypeError):
        TABLE[State.WAITING][Event.DONE] = State.FAILED  # type: ignore[index]


def test_every_state_is_reached() -> None:
    """From `waiting`, some course of events leads into every state."""
    reached = {State.WAITING}
    for _ in State:
        reached |= {after for state in reached for after in TABLE[state].values() if after is not None}
    assert reached == set(State)


def test_only_ends_are_final() -> None:
    """Only `completed` and `failed` are left by no event."""
    assert {state for state, row in TABLE.items() if not any(row.values())} == {State.COMPLETED, State.FAILED}


_OK = Exit(how=How.CODE, code=0, at=0.0, duration=1.0)
_BAD = Exit(how=How.CODE, code=1, at=0.0, duration=1.0)
_SIGNALLED = Exit(how=How.SIGNAL, code=139, signal="SIGSEGV", at=0.0, duration=1.0)
_KILLED = Exit(how=How.KILLED, at=0.0, duration=1.0)
_NEVER = Exit(how=How.NEVER_STARTED, at=0.0, duration=30.0, detail="the screen says: no")


@pytest.mark.parametrize(
    ("restart", "ended", "max_restarts", "restarts", "event", "reason"),
    [
        # No restarts asked for: a code of 0 is the only good end.
        ("no", _OK, 0, 0, Event.DONE, "exited"),
        ("no", _BAD, 0, 0, Event.GAVE_UP, "code"),
        ("no", _SIGNALLED, 0, 0, Event.GAVE_UP, "signal"),
        ("no", _KILLED, 0, 0, Event.GAVE_UP, "killed"),
        ("no", _NEVER, 0, 0, Event.GAVE_UP, "never_started"),
        ("no", _BAD, 5, 0, Event.GAVE_UP, "code"),
        # After failures only.
        ("on-failure", _OK, 0, 0, Event.DONE, "exited"),
        ("on-failure", _OK, 2, 2, Event.DONE, "exited"),
        ("on-failure", _BAD, 0, 0, Event.WILL_RESTART, "code"),
        ("on-failure", _BAD, 0, 10**6, Event.WILL_RESTART, "code"),
        ("on-failure", _SIGNALLED, 0, 0, Event.WILL_RESTART, "signal"),
        ("on-failure", _KILLED, 0, 0, Event.WILL_RESTART, "killed"),
        ("on-failure", _NEVER, 0, 0, Event.WILL_RESTART, "never_started"),
        ("on-failure", _BAD, 2, 0, Event.WILL_RESTART, "code"),
        ("on-failure", _BAD, 2, 1, Event.WILL_RESTART, "code"),
        ("on-failure", _BAD, 2, 2, Event.GAVE_UP, "restarts_exhausted"),
        ("on-failure", _NEVER, 1, 1, Event.GAVE_UP, "restarts_exhausted"),
        # Always.
        ("always", _OK, 0, 0, Event.WILL_RESTART, "code"),
        ("always", _OK, 0, 10**6, Event.WILL_RESTART, "code"),
        ("always", _BAD, 0, 0, Event.WILL_RESTART, "code"),
        ("always", _SIGNALLED, 0, 0, Event.WILL_RESTART, "signal"),
        ("always", _KILLED, 0, 0, Event.WILL_RESTART, "killed"),
        ("always", _NEVER, 0, 0, Event.WILL_RESTART, "never_started"),
        ("always", _OK, 2, 1, Event.WILL_RESTART, "code"),
        ("always", _OK, 2, 2, Event.GAVE_UP, "restarts_exhausted"),
        ("always", _BAD, 2, 2, Event.GAVE_UP, "restarts_exhausted"),
    ],
)
def test_policy(restart: str, ended: Exit, max_restarts: int, restarts: int, event: Event, reason: str) -> None:  # noqa: PLR0913, PLR0917 - one row
    """The policy, the way it ended and the restarts so far decide what follows, and only a restart has a delay."""
    decision = decide(agent_of(restart=restart, max_restarts=max_restarts), ended, restarts=restarts, doublings=0)
    assert (decision.event, decision.reason) == (event, reason)
    assert (decision.delay is not None) == (event is Event.WILL_RESTART)


@pytest.mark.parametrize(
    ("ended", "failure", "words"),
    [
        (_OK, False, "exited with code 0"),
        (_BAD, True, "exited with code 1"),
        (_SIGNALLED, True, "was ended by SIGSEGV"),
        (_KILLED, True, "was killed"),
        (_NEVER, True, "never started (the screen says: no)"),
    ],
)
def test_exit(ended: Exit, failure: bool, words: str) -> None:
    """Every end but a code of 0 is a failure, and each is told in words."""
    assert (ended.failure, str(ended)) == (failure, words)


@pytest.mark.parametrize(
    ("code", "how", "name"),
    [
        (0, How.CODE, None),
        (1, How.CODE, None),
        (127, How.CODE, None),
        (128, How.CODE, None),
        (129, How.SIGNAL, "SIGHUP"),
        (130, How.SIGNAL, "SIGINT"),
        (137, How.SIGNAL, "SIGKILL"),
        (143, How.SIGNAL, "SIGTERM"),
        (255, How.CODE, None),
    ],
)
def test_exit_code(code: int, how: How, name: str | None) -> None:
    """A code over 128 that stands for a signal is told by the signal's name, and kept beside it."""
    assert exit_from_code(code, at=7.0, duration=2.0) == Exit(how=how, code=code, signal=name, at=7.0, duration=2.0)


@pytest.mark.parametrize(
    ("restart_delay_max", "delays"),
    [
        (3.0, [3, 3, 3, 3]),
        (20.0, [3, 6, 12, 20, 20]),
        (3600.0, [3, 6, 12, 24, 48, 96, 192, 384, 768, 1536, 3072, 3600, 3600]),
        (6.0, [3, 6, 6]),
        (0.5, [0.5, 0.5, 0.5]),
    ],
)
def test_backoff(restart_delay_max: float, delays: list[float]) -> None:
    """The backoff is 3 s, or `restart_delay_max` where that is less, and doubles up to it."""
    agent = agent_of(restart="always", restart_delay_max=restart_delay_max)
    assert [backoff(agent, doublings) for doublings in range(len(delays))] == delays


@given(
    st.integers(min_value=0, max_value=10**9),
    st.floats(min_value=0.001, max_value=1e12),
)
def test_backoff_is_bounded(doublings: int, restart_delay_max: float) -> None:
    """However often it doubled, a backoff is finite, positive and at most `restart_delay_max`, and never shrinks."""
    agent = agent_of(restart_delay_max=restart_delay_max)
    delay = backoff(agent, doublings)
    assert math.isfinite(delay)
    assert 0 < delay <= restart_delay_max
    assert backoff(agent, doublings + 1) >= delay


@pytest.mark.parametrize(
    ("restart_delay_max", "duration", "delay"),
    [
        (60.0, 60.0, 24.0),
        (60.0, 60.1, 3.0),
        (60.0, 10.1, 24.0),
        (5.0, 10.0, 5.0),
        (5.0, 10.1, 3.0),
        (5.0, 5.1, 5.0),
    ],
)
def test_backoff_resets(restart_delay_max: float, duration: float, delay: float) -> None:
    """An attempt that lasted longer than both `restart_delay_max` and 10 s begins the doubling anew."""
    agent = agent_of(restart="always", restart_delay_max=restart_delay_max)
    ended = Exit(how=How.CODE, code=1, at=0.0, duration=duration)
    assert decide(agent, ended, restarts=3, doublings=3).delay == delay


def test_never_started_does_not_reset() -> None:
    """The 30 s that agentd waited for a harness that never started are no attempt that lasted."""
    agent = agent_of(restart="always", restart_delay_max=20.0)
    decision = decide(agent, _NEVER, restarts=2, doublings=2)
    assert (decision.delay, decision.doublings) == (12.0, 3)


def test_doublings_are_counted() -> None:
    """Each restart hands on one doubling more, and a reset hands on the first."""
    agent = agent_of(restart="always", restart_delay_max=60.0)
    long = Exit(how=How.CODE, code=1, at=0.0, duration=61.0)
    assert decide(agent, _BAD, restarts=3, doublings=3).doublings == 4
    assert decide(agent, long, restarts=3, doublings=3).doublings == 1


@pytest.mark.parametrize(
    ("keys", "ended", "restarts", "message"),
    [
        (
            {"restart": "always", "max_restarts": 2},
            _BAD,
            1,
            "Exited with code 1; restart 2 of 2 comes 3 s after that.",
        ),
        (
            {"restart": "always"},
            _KILLED,
            7,
            "Was killed; restart 8 comes 3 s after that.",
        ),
        (
            {"restart": "always", "restart_delay_max": 0.25},
            _OK,
            0,
            "Exited with code 0; restart 1 comes 0.25 s after that.",
        ),
        (
            {},
            _OK,
            0,
            'Exited with code 0; restart = "no", so it is done. It runs again when its entry changes.',
        ),
        (
            {},
            _SIGNALLED,
            0,
            'Was ended by SIGSEGV; restart = "no", so it stays down until its entry in the card changes.',
        ),
        (
            {"restart": "on-failure", "max_restarts": 2},
            _NEVER,
            2,
            (
                "Never started (the screen says: no), and max_restarts = 2 is used up."
                ' It runs again when its entry changes, for example env.RUN = "2".'
            ),
        ),
    ],
)
def test_message(keys: dict[str, Any], ended: Exit, restarts: int, message: str) -> None:
    """The message says what happened, and how it goes on or what to change."""
    assert decide(agent_of(**keys), ended, restarts=restarts, doublings=0).message == message


def test_the_design_shows_this_table() -> None:
    """The table of states and events in docs/design.md is the one that the code follows."""
    text = (Path(__file__).parents[2] / "docs" / "design.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text[text.index("| state | launched |") :].split("\n\n")[0].splitlines()
    ]
    events, shown = rows[0][1:], {row[0]: row[1:] for row in rows[2:]}
    told = {state: ["·" if after is None else after.value for after in row.values()] for state, row in TABLE.items()}
    assert events == [event.value for event in Event]
    assert shown == told
