"""When something that others write is believed: when it stands still."""

from collections.abc import Callable
from typing import Final, TypeVar

import trio

_T = TypeVar("_T")

SETTLE: Final = 0.1
"""Seconds for which something must not change before it is believed: it may be being rewritten in place."""
REREADS: Final = 5
"""So often it is read again before it is left as it was until the next look."""


async def settle(read: Callable[[], _T], last: object, rereads: Callable[[_T], int] = lambda _: 1) -> tuple[_T, bool]:
    """Read until it is as it was last time, or the same at so many rereads; False: it never was, this is the newest."""
    seen = read()
    same = 0
    for _ in range(REREADS):
        if seen == last:
            return seen, True
        await trio.sleep(SETTLE)
        before, seen = seen, read()
        same = same + 1 if seen == before else 0
        if same == rereads(seen):
            return seen, True
    return seen, False
