"""What the soak has done, what of it explains that an agent ended, and what went wrong."""

import heapq
import itertools
import time
from collections import Counter
from collections.abc import Callable

import attrs

WRONG = {
    "lost: does not run, and should": "an agent that should run and does not within the bound of a quiet phase",
    "lost: ended, and nobody touched it": "an agent that ended, or was started anew, without a cause",
    "lost: agentd ended by itself": "agentd exited, and nobody had told it to",
    "doubled: two at once": "a start while anything of the agent's last one lived; two living harnesses of a name",
    "doubled: restarted against its policy": "a start that the restart policy does not allow",
    "leaked: processes": "alive after the stop, or the end, of what started them; zombies of agentd's",
    "leaked: tmux sessions": "sessions of no agent in the card",
    "leaked: files": "notes, directories and sockets of nobody",
    "leaked: descriptors of agentd": "more at the end of a stretch without kills than at its beginning",
    "leaked: memory of agentd": "RSS at the end of that stretch above the bound",
    "wrong answers of the API": "a status of 500 or above, or no JSON, or none at all in a quiet phase",
    "tracebacks in the log": "bugs",
}
"""What must be zero, and what that is."""


@attrs.frozen
class Touch:
    """Something that the soak did to an agent (or to all: an empty name) from one time to another."""

    what: str
    name: str
    begin: float
    end: float


class Ledger:
    """Counts, touches, mishaps, and what is to be done later."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.counts: Counter[str] = Counter()
        self.touches: list[Touch] = []
        self.mishaps: dict[str, list[str]] = {kind: [] for kind in WRONG}
        self.measures: list[str] = []
        self.history: list[str] = []
        """What was done, and when (UTC): for whoever looks for the cause of a mishap."""
        self.say = say
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def count(self, what: str, number: int = 1) -> None:
        """Note that this was done."""
        self.counts[what] += number
        self._record(what)

    def most(self, what: str, number: float) -> None:
        """Note how long the longest took."""
        self.counts[what] = max(self.counts[what], int(number))

    def touch(self, what: str, name: str = "", *, lasting: float = 0.0) -> None:
        """Note that this was done to an agent, or to all, now and for so many seconds."""
        now = time.time()
        self.touches.append(Touch(what, name, now, now + lasting))
        self._record(f"touched by {what}: {name or 'all'}")

    def wrong(self, kind: str, text: str) -> None:
        """Note a mishap, each once."""
        if text not in self.mishaps[kind]:
            self.mishaps[kind].append(text)
            self._record(f"{kind}: {text}")
            self.say(f"!! {kind}: {text}")

    def _record(self, text: str) -> None:
        now = time.time()
        self.history.append(f"{time.strftime('%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03} {text}")

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        return not any(self.mishaps.values())

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        """Have something done after so many seconds."""
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), do))

    def do_due(self, *, all_of_it: bool = False) -> None:
        """Do what is due, or all that was put off."""
        while self._later and (all_of_it or self._later[0][0] <= time.monotonic()):
            heapq.heappop(self._later)[2]()
