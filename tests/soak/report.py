"""The tables at the end of a soak, and their place in a page."""

import os
import platform
import re
import time
from pathlib import Path

from agentd import __version__
from tests.e2e.outside import World
from tests.soak.ledger import WRONG, Ledger
from tests.soak.records import read_records

BEGIN = "<!-- the soak's last output begins: written by `scripts/soak.py --write`, not by hand -->"
END = "<!-- the soak's last output ends -->"


def summarise(world: World, ledger: Ledger) -> None:
    """Count what only the records and the log tell, while they are there."""
    records = read_records(world.records)
    starts = records.all_starts
    pids = {str(start.pid) for start in starts}
    log = world.log
    taken = re.findall(r"state=running attempt=\d+ pid=(\d+): taken over", log)
    counts = ledger.counts
    counts["harnesses started"] = len(starts)
    counts["harnesses that ended by themselves"] = sum(start.exit is not None for start in starts)
    counts["processes that they left behind"] = len(records.children)
    counts["restarts by policy"] = log.count(" state=backoff ")
    counts["stops of agents"] = log.count(" state=stopping ")
    counts["timeouts"] = log.count(" state=failed reason=timed_out ")
    counts["running agents taken over with the same pid"] = sum(pid in pids for pid in taken)


def describe(world: World, user: str) -> str:
    """When and where this is, and as whom."""
    who = "root" if os.geteuid() == 0 else "an ordinary user"
    whose = "" if os.geteuid() else f", agents as {'root' if user == 'root' else 'another user'}"
    versions = f"agentd {__version__}, Python {platform.python_version()}, {world.tmux('-V').stdout.strip()}"
    machine = f"{platform.system()} {platform.release().split('-')[0]}, {os.cpu_count()} cores"
    return f"{time.strftime('%Y-%m-%d')}, {versions}, {machine}, as {who}{whose}"


def report(ledger: Ledger, what: str) -> str:
    """What was done, what was measured, and what must be zero."""
    lines = [
        what,
        "",
        "| done | |",
        "|---|---:|",
        *(f"| {what} | {number} |" for what, number in sorted(ledger.counts.items())),
        "",
        "| stretch without kills | agentd at its beginning and end, with the same card at rest |",
        "|---|---|",
        *(f"| {number} | {measure} |" for number, measure in enumerate(ledger.measures, start=1)),
        "",
        "| must be zero | |",
        "|---|---:|",
        *(f"| {kind} ({WRONG[kind]}) | {len(found)} |" for kind, found in ledger.mishaps.items()),
    ]
    return "\n".join(lines)


def write_into(page: Path, text: str) -> None:
    """Put the text between the marks of a page."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        message = f"{page} has no place for it, between {BEGIN} and {END}"
        raise ValueError(message)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
