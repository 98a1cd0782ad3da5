"""C-c as programs expect it, and the wait for what comes of it."""

import trio

from agentd.lifecycle import Exit
from agentd.sessions import Attempt

PRESS_GAP = 0.3
"""Seconds between two C-c of a volley: full-screen UIs ask for the second within 0.8 s (measured, see docs)."""
PRESSES = 3
"""C-c in a volley: the first cancels a stream, the next two confirm."""
PRESS_AGAIN = 5.0
"""Seconds between two volleys."""


async def interrupt(attempt: Attempt, grace: float, hurry: trio.Event) -> Exit | None:
    """Press C-c and wait for the exit as long as the grace period, or until somebody is in a hurry."""
    with trio.move_on_after(grace):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_give_way, hurry, nursery.cancel_scope)
            nursery.start_soon(_press, attempt)
            ended = await attempt.ended()
            nursery.cancel_scope.cancel()
            return ended
    return None


async def _give_way(hurry: trio.Event, scope: trio.CancelScope) -> None:
    await hurry.wait()
    scope.cancel("hurry")


async def _press(attempt: Attempt) -> None:
    """A cooked terminal gets one; a raw one volleys: there C-c is a byte that UIs ask for twice."""
    raw = await attempt.interrupt(again=False)
    while True:
        for _ in range(PRESSES - 1 if raw else 0):
            await trio.sleep(PRESS_GAP)
            raw = await attempt.interrupt(again=True)
        await trio.sleep(PRESS_AGAIN)
        raw = await attempt.interrupt(again=True)
