"""What is looked at in a quiet phase: all runs that should, once, and nothing is there that should not be."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from tests.e2e.outside import World, wait_for
from tests.soak.faults import Faults
from tests.soak.fleet import Fleet, Slot
from tests.soak.ledger import Ledger
from tests.soak.records import Records, Start, against_policy, lives, read_records, unexplained

BOUND = 90.0
"""Seconds in a quiet phase until all runs that should. Alone on two cores it takes about 5; 30 are a launch's limit."""
SETTLE = 30.0
"""Seconds in which what is just ending may end before it counts as leaked."""
STEADY = 2.0
"""Seconds for which a number is the same before it is believed."""
MOST_MORE_MEMORY = 6.0
"""MB by which agentd's RSS may be larger at the end of a stretch without kills."""


@attrs.frozen
class Measure:
    """agentd in a quiet phase, all agents at rest."""

    pid: int
    rss: float
    """MB."""
    descriptors: int


class Checks:
    """The looks of quiet phases; what is wrong goes into the ledger."""

    def __init__(self, world: World, ledger: Ledger, fleet: Fleet, faults: Faults) -> None:
        self._world = world
        self._ledger = ledger
        self._fleet = fleet
        self._faults = faults

    def converge(self) -> None:
        """Wait until everything is as the card says, and judge all that has happened until then."""
        began = time.monotonic()
        trouble: list[str] = ["nothing was asked yet"]

        def settled() -> bool:
            self._faults.ensure_agentd()
            trouble[:] = self._not_as_wanted()
            return not trouble

        try:
            wait_for(settled, "all that should run", seconds=BOUND)
        except AssertionError:
            for what in trouble:
                self._ledger.wrong("lost: does not run, and should", what)
        else:
            self._ledger.most("longest way to rest (ms)", 1000 * (time.monotonic() - began))
        self._judge_past()
        self._judge_present()

    def measure(self) -> Measure:
        """Measure agentd, once its descriptors are those of agents at rest."""
        process = self._faults.agentd
        assert process is not None, "it is there in a quiet phase"
        descriptors = _when_steady(lambda: len(os.listdir(f"/proc/{process.pid}/fd")))
        status = Path(f"/proc/{process.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, flags=re.MULTILINE)
        assert found is not None, "every process has it"
        return Measure(process.pid, int(found[1]) / 1024, descriptors)

    def compare(self, before: Measure, after: Measure, events: int) -> None:
        """Judge two measures at the ends of a stretch without kills."""
        self._ledger.measures.append(
            f"RSS {before.rss:.1f} → {after.rss:.1f} MB, descriptors {before.descriptors} → {after.descriptors},"
            f" over {events} starts of harnesses"
        )
        self._ledger.say(self._ledger.measures[-1])
        if before.pid != after.pid:
            self._ledger.wrong("lost: agentd ended by itself", "in a stretch without kills")
        if after.rss > before.rss + MOST_MORE_MEMORY:
            self._ledger.wrong("leaked: memory of agentd", self._ledger.measures[-1])
        if after.descriptors > before.descriptors:
            links = sorted(_link(fd) for fd in Path(f"/proc/{after.pid}/fd").iterdir())
            self._ledger.wrong("leaked: descriptors of agentd", f"{self._ledger.measures[-1]}: {links}")

    # What should run.

    def _not_as_wanted(self) -> list[str]:
        try:
            health = self._world.get("/v1/health").json
            agents = self._world.agents()
        except (OSError, ValueError) as error:
            return [f"the API does not answer: {error!r}"]
        if health.get("card_error"):
            return [f"the card that the soak has written is not in force: {health['card_error']}"]
        records = read_records(self._world.records)
        wanted = self._fleet.wanted()
        trouble = [f"{name} is not in the card, and there: {agents[name]}" for name in agents.keys() - wanted]
        for name, slot in wanted.items():
            living = [start for start in records.starts.get(name, []) if start.lives]
            problem = self._problem(slot, agents.get(name), living, records)
            if problem:
                trouble.append(f"{name}: {problem}; living {[*map(str, living)]}; {slot}; {agents.get(name)}")
        return trouble

    def _problem(self, slot: Slot, status: Any, living: list[Start], records: Records) -> str:
        sign = self._fleet.sign(slot)
        if status is None:
            return "the API does not know it"
        if status["state"] == "running":
            if [start.pid for start in living] != [status["pid"]]:
                return f"runs as pid {status['pid']}"
            return "" if living[0].sign == sign else f"runs as it was, and not as {sign}"
        if status["state"] not in {"completed", "failed"}:
            return "does not run"
        ended = [start for start in records.starts.get(slot.name, []) if start.sign == sign and not start.lives]
        if slot.unlimited or not (ended or slot.timeout):
            return "is over"
        return "is over, and lives" if living else ""

    # What should not be there, and should not have been.

    def _judge_past(self) -> None:
        records, wanted = read_records(self._world.records), self._fleet.wanted()
        signs = {name: self._fleet.sign(slot) for name, slot in wanted.items()}
        for text in unexplained(records, wanted, signs, self._ledger.touches):
            self._ledger.wrong("lost: ended, and nobody touched it", text)
        for text in against_policy(records, wanted, signs, self._ledger.touches):
            self._ledger.wrong("doubled: restarted against its policy", text)
        for text in records.clashes:
            self._ledger.wrong("doubled: two at once", text)
        log = self._world.log
        for place in re.finditer("Traceback", log):
            self._ledger.wrong("tracebacks in the log", log[place.start() - 300 : place.start() + 3000])

    def _judge_present(self) -> None:
        for kind, find in (
            ("leaked: processes", self._stray_processes),
            ("leaked: processes", self._zombies),
            ("leaked: tmux sessions", self._stray_sessions),
            ("leaked: files", self._stray_files),
            ("doubled: two at once", self._twins),
        ):
            for text in _lasting(find):
                self._ledger.wrong(kind, text)

    def _twins(self) -> list[str]:
        starts = read_records(self._world.records).starts.values()
        living = [[str(start) for start in of_one if start.lives] for of_one in starts]
        return [" and ".join(twins) for twins in living if len(twins) > 1]

    def _stray_processes(self) -> list[str]:
        """What carries a tag, or was left behind, of a start that is over."""
        records = read_records(self._world.records)
        living = {start.tag for start in records.all_starts if start.lives}
        names = {start.name for start in records.all_starts if start.lives}
        strays = [text for tag, text in _tagged(self._world.top) if tag not in living]
        for name, kind, pid, ticks in records.children:
            if name not in names and lives(pid, ticks):
                strays.append(f"pid {pid}, a {kind} of {name}")
        return strays

    def _zombies(self) -> list[str]:
        process = self._faults.agentd
        assert process is not None, "it is there in a quiet phase"
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                except OSError:
                    continue
                if state == "Z" and int(parent) == process.pid:
                    found.append(f"a zombie of agentd's, pid {entry.name}")
        return found

    def _stray_sessions(self) -> list[str]:
        servers = self._faults.servers()
        twins = [] if len(servers) <= 1 else [f"{len(servers)} servers of one socket: {servers}"]
        return twins + sorted(set(self._world.sessions()) - set(self._fleet.wanted()))

    def _stray_files(self) -> list[str]:
        """Notes of no agent, attempts' directories of none that runs, half-written notes."""
        records, wanted = read_records(self._world.records), self._fleet.wanted()
        living = {(start.tag or "").replace("/", "-") for start in records.all_starts if start.lives}
        names = sorted(path.name for path in self._world.run_dir.iterdir())
        notes = [name for name in names if name.endswith(".json")]
        strays = [name for name in names if name not in notes and name not in living]
        if len(notes) > len(wanted):
            strays.append(f"{len(notes)} notes of {len(wanted)} agents")
        return strays


def _lasting(find: Callable[[], list[str]]) -> list[str]:
    """What is found, and still found when all that was just ending has ended."""
    deadline = time.monotonic() + SETTLE
    while (found := find()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def _when_steady(count: Callable[[], int]) -> int:
    """A number, once it has been the same for a while, or what it is then: what is just ending ends."""
    deadline = time.monotonic() + SETTLE
    same_since, last = time.monotonic(), count()
    while time.monotonic() < min(deadline, same_since + STEADY):
        time.sleep(0.2)
        now = count()
        if now != last:
            same_since, last = time.monotonic(), now
    return last


def _tagged(top: Path) -> list[tuple[str, str]]:
    """The tags of living processes of this soak, and what they are."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            environ = (entry / "environ").read_bytes()
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:150]
        except OSError:
            continue
        tag = re.search(rb"(?:^|\0)AGENTD_ATTEMPT=([^\0]*)", environ)
        if tag is not None and os.fsencode(top) in environ:
            found.append((tag[1].decode(), f"pid {entry.name} with tag {tag[1].decode()}: {line}"))
    return found


def _link(fd: Path) -> str:
    try:
        return os.readlink(fd)
    except OSError:
        return "?"
