"""The life of an agent as a table: states, events, what follows, and whether and when a restart comes.

The table is complete: for every state and event it says what follows, "nothing happens" included, so that
a reader, and a test, can hold it against docs/design.md row by row.
"""

import signal
from enum import StrEnum
from types import MappingProxyType

import attrs

from agentd.card.card import Agent

BACKOFF_FIRST = 3.0
"""Seconds between an exit and the restart, and where the doubling begins (design: "Restart policy")."""
LASTED_WELL = 10.0
"""An attempt that lasted longer than this, and longer than `restart_delay_max`, resets the doubling."""


class State(StrEnum):
    """What is true of an agent now."""

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    COMPLETED = "completed"
    FAILED = "failed"


class Event(StrEnum):
    """What can happen to an agent."""

    LAUNCHED = "launched"
    """An attempt begins."""
    STARTED = "started"
    """The harness of the attempt runs."""
    BLOCKED = "blocked"
    """Something outside agentd must change before a launch can succeed."""
    WILL_RESTART = "will_restart"
    """The attempt ended and the policy asks for another."""
    DONE = "done"
    """The attempt ended and the policy is content."""
    GAVE_UP = "gave_up"
    """The attempt ended badly and the policy allows no other."""
    STOP = "stop"
    """A stop begins: removal, change, shutdown or timeout."""
    TIMED_OUT = "timed_out"
    """The stop that a timeout asked for is over."""
    BROKE = "broke"
    """A bug of agentd ended the run."""


_ENDED = dict.fromkeys(Event)
_TABLE: dict[State, dict[Event, State | None]] = {
    State.WAITING: {
        Event.LAUNCHED: State.STARTING,
        Event.STARTED: None,
        Event.BLOCKED: State.WAITING,
        Event.WILL_RESTART: None,
        Event.DONE: None,
        Event.GAVE_UP: None,
        Event.STOP: State.STOPPING,
        Event.TIMED_OUT: None,
        Event.BROKE: State.FAILED,
    },
    State.STARTING: {
        Event.LAUNCHED: None,
        Event.STARTED: State.RUNNING,
        Event.BLOCKED: State.WAITING,
        Event.WILL_RESTART: State.BACKOFF,
        Event.DONE: None,
        Event.GAVE_UP: State.FAILED,
        Event.STOP: State.STOPPING,
        Event.TIMED_OUT: None,
        Event.BROKE: State.FAILED,
    },
    State.RUNNING: {
        Event.LAUNCHED: None,
        Event.STARTED: None,
        Event.BLOCKED: None,
        Event.WILL_RESTART: State.BACKOFF,
        Event.DONE: State.COMPLETED,
        Event.GAVE_UP: State.FAILED,
        Event.STOP: State.STOPPING,
        Event.TIMED_OUT: None,
        Event.BROKE: State.FAILED,
    },
    State.STOPPING: {
        Event.LAUNCHED: None,
        Event.STARTED: None,
        Event.BLOCKED: None,
        Event.WILL_RESTART: None,
        Event.DONE: None,
        Event.GAVE_UP: None,
        Event.STOP: None,
        Event.TIMED_OUT: State.FAILED,
        Event.BROKE: State.FAILED,
    },
    State.BACKOFF: {
        Event.LAUNCHED: State.STARTING,
        Event.STARTED: None,
        Event.BLOCKED: None,
        Event.WILL_RESTART: None,
        Event.DONE: None,
        Event.GAVE_UP: None,
        Event.STOP: State.STOPPING,
        Event.TIMED_OUT: None,
        Event.BROKE: State.FAILED,
    },
    # A final state is left only by a new run, which begins in `waiting`.
    State.COMPLETED: _ENDED,
    State.FAILED: _ENDED,
}
TABLE = MappingProxyType({state: MappingProxyType(row) for state, row in _TABLE.items()})
"""State and event → the state that follows, or None where nothing happens."""


def follow(state: State, event: Event) -> State:
    """The state after the event; the same one where nothing happens."""
    return TABLE[state][event] or state


class How(StrEnum):
    """How an attempt ended."""

    CODE = "code"
    """The harness ended by itself, with an exit code."""
    SIGNAL = "signal"
    """A signal ended the harness (the shell's convention: 128 + its number)."""
    KILLED = "killed"
    """The attempt's launcher is gone without a word: nobody can know how the harness ended."""
    NEVER_STARTED = "never_started"
    """The harness did not come up in time."""


@attrs.frozen(kw_only=True)
class Exit:
    """The end of one attempt: how, when (Unix seconds), after how many seconds, and on whose wish."""

    how: How
    code: int | None = None
    signal: str | None = None
    at: float
    duration: float
    wish: str | None = None
    detail: str = ""
    """More words for the message, such as the last lines on the screen."""

    @property
    def failure(self) -> bool:
        """Whether `on-failure` restarts after it. A code of 0 means nothing more than that the policy is content."""
        return self.how is not How.CODE or self.code != 0

    def __str__(self) -> str:
        match self.how:
            case How.CODE:
                words = f"exited with code {self.code}"
            case How.SIGNAL:
                words = f"was ended by {self.signal}"
            case How.KILLED:
                words = "was killed"
            case How.NEVER_STARTED:
                words = "never started"
        return f"{words} ({self.detail})" if self.detail else words


def exit_from_code(code: int, *, at: float, duration: float) -> Exit:
    """What a shell's `$?` tells: 129 to 192 is the shell's way to name a signal, the rest are codes.

    A program may itself exit with such a code (claude does, 143 after SIGTERM): the code is kept beside the name.
    """
    try:
        name = signal.Signals(code - 128).name if code > 128 else None  # noqa: PLR2004 - the shell's convention
    except ValueError:
        name = None
    if name is None:
        return Exit(how=How.CODE, code=code, at=at, duration=duration)
    return Exit(how=How.SIGNAL, code=code, signal=name, at=at, duration=duration)


@attrs.frozen(kw_only=True)
class Decision:
    """What the policy says after an exit; `delay` is the backoff in seconds where there is a restart."""

    event: Event
    reason: str
    message: str
    delay: float | None = None
    doublings: int = 0


def backoff(agent: Agent, doublings: int) -> float:
    """Seconds until the restart after so many doublings: 3, 6, 12, … but at most `restart_delay_max`."""
    return min(BACKOFF_FIRST * 2.0 ** min(doublings, 62), agent.restart_delay_max)


def decide(agent: Agent, ended: Exit, *, restarts: int, doublings: int) -> Decision:
    """What follows an attempt that ended by itself, after so many restarts of its run and doublings of the backoff."""
    again = agent.restart == "always" or (agent.restart == "on-failure" and ended.failure)
    if not again:
        if ended.failure:
            message = f'{ended}; restart = "{agent.restart}", so it stays down until its entry in the card changes.'
            return Decision(event=Event.GAVE_UP, reason=ended.how.value, message=_sentence(message))
        message = f'{ended}; restart = "{agent.restart}", so it is done. It runs again when its entry changes.'
        return Decision(event=Event.DONE, reason="exited", message=_sentence(message))
    if agent.max_restarts and restarts >= agent.max_restarts:
        message = (
            f"{ended}, and max_restarts = {agent.max_restarts} is used up. "
            'It runs again when its entry changes, for example env.RUN = "2".'
        )
        return Decision(event=Event.GAVE_UP, reason="restarts_exhausted", message=_sentence(message))
    lasted = 0.0 if ended.how is How.NEVER_STARTED else ended.duration
    if lasted > max(LASTED_WELL, agent.restart_delay_max):
        doublings = 0
    delay = backoff(agent, doublings)
    limit = f" of {agent.max_restarts}" if agent.max_restarts else ""
    message = f"{ended}; restart {restarts + 1}{limit} comes {delay:g} s after that."
    return Decision(
        event=Event.WILL_RESTART,
        reason=ended.how.value,
        message=_sentence(message),
        delay=delay,
        doublings=doublings + 1,
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
