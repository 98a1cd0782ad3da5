"""The course of a soak: three rounds of a stretch with kills of agentd, one without, and a look after each."""

import random
import time

from tests.e2e.outside import World
from tests.soak.callers import Callers
from tests.soak.checks import Checks
from tests.soak.faults import Faults
from tests.soak.fleet import Fleet
from tests.soak.ledger import Ledger
from tests.soak.records import read_records
from tests.soak.report import summarise

ROUNDS = 3
WITHOUT_KILLS = 60.0
"""Seconds of the stretch without kills, in a soak that is long enough for it."""
_WARM_UP = 12.0
_EDIT = 0.8
"""Seconds between two edits, on average."""
_DISTURB = 2.5


class Soak:
    """One soak in a world of its own."""

    def __init__(self, world: World, ledger: Ledger, fleet: Fleet, faults: Faults, seconds: float) -> None:
        self._world = world
        self._ledger = ledger
        self._fleet = fleet
        self._faults = faults
        self._checks = Checks(world, ledger, fleet, faults)
        self._callers = Callers(world, ledger)
        each = seconds / ROUNDS - _WARM_UP
        self._without = max(each * 0.5, min(WITHOUT_KILLS, each * 0.7))
        self._with = each - self._without

    def run(self) -> None:
        """Do all rounds, and stop agentd at the end."""
        try:
            self._fleet.calm()
            self._faults.ensure_agentd()
            self._rest("at the beginning")
            for number in range(1, ROUNDS + 1):
                self._round(number)
            self._faults.stop_for_good()
            summarise(self._world, self._ledger)
        finally:
            self._callers.stop()
            self._ledger.do_due(all_of_it=True)
            self._faults.resume_tmux()

    def _round(self, number: int) -> None:
        self._ledger.say(f"round {number}: {self._with:.0f} s in which agentd is killed every few seconds")
        self._stretch(self._with, kills=True)
        self._rest("after the kills")
        self._faults.restart_agentd()
        self._ledger.say(f"round {number}: {_WARM_UP:.0f} + {self._without:.0f} s in which agentd lives")
        self._stretch(_WARM_UP, kills=False)
        self._calm()
        before, starts = self._checks.measure(), len(read_records(self._world.records).all_starts)
        self._stretch(self._without, kills=False)
        self._rest("after the edits")
        self._calm()
        events = len(read_records(self._world.records).all_starts) - starts
        self._checks.compare(before, self._checks.measure(), events)

    def _stretch(self, seconds: float, *, kills: bool) -> None:
        """Edit, disturb and call for so long; the disturbances kill agentd, too, or leave it alone."""
        self._callers.start()
        end = time.monotonic() + seconds
        edit = disturb = time.monotonic()
        kill = time.monotonic() + random.uniform(0.1, 6)
        while (now := time.monotonic()) < end:
            self._ledger.do_due()
            if now >= edit:
                self._fleet.edit()
                edit = now + random.expovariate(1 / _EDIT)
            if now >= disturb:
                self._faults.disturb()
                disturb = now + random.expovariate(1 / _DISTURB)
            if kills and now >= kill:
                self._faults.end_agentd()
                kill = time.monotonic() + random.uniform(0.1, 6)
            if not kills:
                self._faults.ensure_agentd()
            time.sleep(0.02)
        self._callers.stop()
        self._ledger.do_due(all_of_it=True)

    def _rest(self, when: str) -> None:
        """Leave everything alone until it is as the card says, and look."""
        self._fleet.hush.touch()
        self._fleet.mend()
        self._checks.converge()
        self._ledger.say(f"at rest {when}")
        self._fleet.hush.unlink()

    def _calm(self) -> None:
        """Have every agent at rest, as always at this point."""
        self._fleet.calm()
        self._checks.converge()
