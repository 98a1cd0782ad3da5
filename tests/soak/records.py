"""What the harnesses have written down, and the judgement whether each end, and each start, had a cause."""

import json
import time
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs

from tests.soak.fleet import Slot
from tests.soak.ledger import Touch

CAME_UP = 3.0
"""Seconds before and after its start in which a disturbance of tmux can cost a launch its attempt."""
_STOPPED_BEFORE = 5.0
_SESSION_KILLED_BEFORE = 1.0


@attrs.define
class Start:
    """One start of a harness."""

    name: str
    pid: int
    ticks: int
    time: float
    sign: str
    tag: str | None
    deaf_to_hup: bool
    exit: int | None = None
    """The code of an end of its own."""
    heard: dict[str, float] = attrs.field(factory=dict)
    """Signals, and when each came last."""

    @property
    def lives(self) -> bool:
        """Whether this very process lives."""
        return lives(self.pid, self.ticks)

    def __str__(self) -> str:
        how = f"exit {self.exit}" if self.exit is not None else f"heard {' '.join(self.heard) or 'nothing'}"
        at = time.strftime("%H:%M:%S", time.localtime(self.time))
        return f"{self.name} {self.tag} pid {self.pid} of {at}.{self.time % 1 * 1000:03.0f} ({self.sign}; {how})"


@attrs.define
class Records:
    """All that was written down so far."""

    starts: dict[str, list[Start]] = attrs.field(factory=dict)
    children: list[tuple[str, str, int, int]] = attrs.field(factory=list)
    """Name, kind, pid and start ticks of what harnesses have left behind."""
    clashes: list[str] = attrs.field(factory=list)

    @property
    def all_starts(self) -> list[Start]:
        """The starts of all agents."""
        return [start for starts in self.starts.values() for start in starts]


def lives(pid: int, ticks: int) -> bool:
    """Whether the process that started at that time lives; a zombie is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(fields[19]) == ticks and fields[0] not in "ZX"


def read_records(folder: Path) -> Records:
    """Read the journals of all agents."""
    records = Records()
    for path in folder.glob("*/journal"):
        name = path.parent.name
        starts = records.starts[name] = []
        for line in path.read_text().splitlines():
            _take(records, name, starts, json.loads(line))
    return records


def _take(records: Records, name: str, starts: list[Start], line: Mapping[str, Any]) -> None:
    what, pid, ticks, when = line["what"], line["pid"], line["ticks"], line["time"]
    mine = next((start for start in reversed(starts) if (start.pid, start.ticks) == (pid, ticks)), None)
    if what == "start":
        starts.append(Start(name, pid, ticks, when, line["sign"], line["tag"], line["deaf_to_hup"]))
    elif what == "child":
        records.children.append((name, line["kind"], pid, ticks))
    elif mine is None:
        return
    elif what == "clash":
        records.clashes.append(f"{mine}, while these lived: {line['others']}")
    elif what == "exit":
        mine.exit = line["code"]
    else:
        mine.heard[what] = when


def unexplained(
    records: Records, wanted: Mapping[str, Slot], signs: Mapping[str, str], touches: Iterable[Touch]
) -> list[str]:
    """The ends for which there is no cause: not its own, no edit, nothing that the soak did."""
    found = []
    known = list(touches)
    for name, starts in records.starts.items():
        for number, start in enumerate(starts):
            if start.exit is not None or start.lives:
                continue
            after = starts[number + 1] if number + 1 < len(starts) else None
            slot = wanted.get(name)
            # No two versions of an entry are the same, so that a next start of the same one comes from no edit.
            edited = start.sign != (signs.get(name) if after is None else after.sign)
            timed = slot is not None and slot.timeout is not None
            if not edited and not timed and not any(_explains(touch, start, after) for touch in known):
                found.append(f"{start}; then {after}")
    return found


def _explains(touch: Touch, start: Start, after: Start | None) -> bool:
    """Whether what was done can have ended that start."""
    if touch.name not in {"", start.name}:
        return False
    until = time.time() if after is None else after.time
    if touch.begin > until:
        return False
    came_up_then = touch.begin - CAME_UP <= start.time <= touch.end + CAME_UP
    match touch.what:
        case "stop":
            return start.time <= touch.end + _STOPPED_BEFORE
        case "killed":
            return start.time <= touch.end
        case "hangup":
            return came_up_then or (start.time <= touch.end and not start.deaf_to_hup and "HUP" in start.heard)
        case "tmux":
            return came_up_then
        case _:
            message = f"nobody knows what {touch.what} does"
            raise ValueError(message)


def against_policy(
    records: Records, wanted: Mapping[str, Slot], signs: Mapping[str, str], touches: Iterable[Touch]
) -> list[str]:
    """Starts of entries as they are now that their restart policy does not allow."""
    found = []
    forgotten = [touch for touch in touches if touch.what == "stop"]
    for name, slot in wanted.items():
        starts = records.starts.get(name, [])
        for before, after in pairwise(starts):
            if before.exit is None or not before.sign == after.sign == signs[name]:
                continue
            allowed = slot.restart == "always" or (slot.restart == "on-failure" and before.exit != 0)
            if not allowed and not any(before.time <= touch.end and touch.begin <= after.time for touch in forgotten):
                found.append(f"{before}; then {after}, with restart = {slot.restart}")
    return found
