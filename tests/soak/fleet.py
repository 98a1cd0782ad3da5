"""The soak's agents as the card wants them, and random edits of the card, of its prompt files and of the secrets."""

import random
import time
from typing import Any

import attrs

from tests.e2e.outside import World
from tests.soak.ledger import Ledger

MOODS = ("calm", "calm", "restless", "restless", "restless", "quick", "deaf", "slow", "forker", "forker")
_BROKEN = (
    '[[agents]\nname = "x"',
    "[[agents]]\nharness = 7\n",
    '[[agents]]\nharness = "custom"\nname = "same"\n[[agents]]\nharness = "custom"\nname = "SAME"\n',
    "\0\0\0",
    '[[agents]]\nharness = "custom"\ntimeout = "1 fortnight"\n',
    "",
)


@attrs.define
class Slot:
    """One agent, under whatever name it has just now."""

    name: str
    version: str = "0"
    mood: str = "calm"
    present: bool = True
    ignore_hup: bool = False
    restart: str = "always"
    max_restarts: int | None = None
    timeout: float | None = None
    grace: float = 2.0
    delay: float = 1.0
    prompt: str = "go"
    prompt_file: bool = False
    withheld: bool = False
    """Whether the prompt file is missing."""

    @property
    def unlimited(self) -> bool:
        """Whether it has to run, whatever happens."""
        return self.restart == "always" and self.max_restarts is None and self.timeout is None


class Fleet:
    """All agents of the soak; every edit gives its entries a version of their own, so that none goes unnoticed."""

    def __init__(self, world: World, ledger: Ledger, count: int, *, cleared: bool) -> None:
        self.slots = [Slot(f"a{number:02}", ignore_hup=number % 3 == 0) for number in range(count)]
        self._world = world
        self._ledger = ledger
        self._cleared = cleared
        self._edits = 0
        self._secret_a, self._secret_b = "0", "0"
        self.hush = world.top / "hush"
        self._prompts = world.work / "prompts"
        self._prompts.mkdir()
        self._prompts.chmod(0o755)

    # What is wanted.

    def sign(self, slot: Slot) -> str:
        """What a start of that entry, as it is now, writes down of itself."""
        return f"{slot.version}/{slot.prompt}/{self._secret_a}/{self._secret_b}"

    def wanted(self) -> dict[str, Slot]:
        """The slots in the card, by name."""
        return {slot.name: slot for slot in self.slots if slot.present}

    def write(self) -> None:
        """Write the card as it is to be, in one go or, as some do, in place."""
        for slot in self.slots:
            if slot.prompt_file and not slot.withheld:
                self._write_prompt(slot)
        if random.random() < 0.7:
            self._world.write_card(*map(self._entry, self.wanted().values()))
            return
        before, card = self._world.card, self._world.top / "jcard.aside"
        try:
            self._world.card = card
            self._world.write_card(*map(self._entry, self.wanted().values()))
        finally:
            self._world.card = before
        text = card.read_text()
        with before.open("w") as file:
            for start in range(0, len(text), 4096):
                file.write(text[start : start + 4096])
                file.flush()
                time.sleep(0.005)

    def calm(self) -> None:
        """Want the same as ever before at this point: every agent, harmless, under its own name, for ever."""
        self._edits += 1
        self.slots = [
            Slot(f"a{number:02}", version=f"calm-{self._edits:06}", ignore_hup=number % 3 == 0)
            for number in range(len(self.slots))
        ]
        self._put_secrets("calm", "calm")
        self.write()

    # Edits.

    def edit(self) -> None:
        """Do one random edit, to one agent or a few."""
        kinds = {
            self._edit_entries: 10,
            self._remove: 2,
            self._return: 4,
            self._rename: 1.5,
            self._edit_prompt_file: 2,
            self._break_card: 1.5,
            self._edit_secrets: 0.35,
        }
        (what,) = random.choices(list(kinds), weights=list(kinds.values()))
        what()

    def mend(self) -> None:
        """Have nothing stand in the way of what is wanted."""
        for slot in self.slots:
            slot.withheld = False
        self.write()

    def _edit_entries(self) -> None:
        for slot in random.sample(self.slots, random.randint(1, 3)):
            for change in random.sample((self._mood, self._policy, self._times, self._prompt), random.randint(1, 2)):
                change(slot)
            self._renew(slot, present=slot.present)
        self.write()

    def _mood(self, slot: Slot) -> None:
        slot.mood = random.choice(MOODS)
        slot.ignore_hup = random.random() < 0.4
        self._ledger.count("edits: env")

    def _policy(self, slot: Slot) -> None:
        slot.restart = random.choice(("always", "always", "always", "on-failure", "no"))
        slot.max_restarts = random.choice((None, None, None, 2, 5))
        self._ledger.count("edits: restart policy")

    def _times(self, slot: Slot) -> None:
        slot.timeout = random.choice((None, None, None, None, 4.0, 12.0))
        slot.grace = random.choice((0.1, 0.5, 2.0, 4.0))
        slot.delay = random.choice((0.2, 1.0, 3.0))
        self._ledger.count("edits: timeouts")

    def _prompt(self, slot: Slot) -> None:
        slot.prompt_file = random.random() < 0.4
        slot.prompt = f"do thing {random.randint(0, 99)} 'now' é"
        self._ledger.count("edits: prompt")

    def _remove(self) -> None:
        slot = random.choice(self.slots)
        if slot.present and len(self.wanted()) > len(self.slots) * 0.8:
            slot.present = False
            self._ledger.count("edits: agent removed")
            self.write()

    def _return(self) -> None:
        gone = [slot for slot in self.slots if not slot.present]
        if gone:
            self._renew(random.choice(gone), present=True)
            self._ledger.count("edits: agent returned")
            self.write()

    def _rename(self) -> None:
        slot = random.choice(self.slots)
        if slot.present:
            slot.name = f"{slot.name[:3]}-{self._edits:x}"
            self._renew(slot, present=True)
            self._ledger.count("edits: agent renamed")
            self.write()

    def _edit_prompt_file(self) -> None:
        """Edit a prompt file, or take it away, which stops nothing that runs."""
        having = [slot for slot in self.slots if slot.prompt_file and slot.present]
        if not having:
            return
        slot = random.choice(having)
        slot.withheld = random.random() < 0.3
        if slot.withheld:
            (self._prompts / slot.name).unlink(missing_ok=True)
            self._ledger.count("edits: prompt file removed")
        else:
            self._edits += 1
            slot.prompt = f"from a file, edit {self._edits}"
            self._write_prompt(slot)
            self._ledger.count("edits: prompt file")

    def _break_card(self) -> None:
        self._world.write_card_text(random.choice(_BROKEN))
        self._ledger.count("edits: invalid card")
        self._ledger.later(random.uniform(0.2, 3.0), self.write)

    def _edit_secrets(self) -> None:
        self._edits += 1
        b = random.choice((None, f"b{self._edits}"))
        self._put_secrets(f"a{self._edits}", b)
        self._ledger.count("edits: secret written")
        if b is None:
            self._ledger.count("edits: secret removed")

    def _renew(self, slot: Slot, *, present: bool) -> None:
        """Make it another entry than it ever was."""
        self._edits += 1
        slot.version, slot.present = f"v{self._edits}", present

    def _put_secrets(self, a: str, b: str | None) -> None:
        for name, value in (("SECRET_A", a), ("SECRET_B", b)):
            path = self._world.secrets / name
            if value is None:
                path.unlink(missing_ok=True)
            else:
                fresh = path.with_name(f".{name}")
                fresh.write_text(value)
                fresh.rename(path)
        self._secret_a, self._secret_b = a, b or "-"

    def _write_prompt(self, slot: Slot) -> None:
        path = self._prompts / slot.name
        if not path.exists() or path.read_text() != slot.prompt:
            path.write_text(slot.prompt)
            path.chmod(0o644)

    def _entry(self, slot: Slot) -> dict[str, Any]:
        env = {"MOOD": slot.mood, "VERSION": slot.version, "HUSH": str(self.hush), "HISTFILE": "/dev/null"}
        if slot.ignore_hup:
            env["IGNORE_HUP"] = "1"
        if self._cleared:
            env["CLEARED"] = "1"
        prompt = {"prompt_file": str(self._prompts / slot.name)} if slot.prompt_file else {"prompt": slot.prompt}
        return self._world.agent(
            slot.name,
            restart=slot.restart,
            max_restarts=slot.max_restarts,
            timeout=None if slot.timeout is None else f"{slot.timeout:g}s",
            grace_period=f"{slot.grace:g}s",
            restart_delay_max=f"{slot.delay:g}s",
            env=env,
            **prompt,
        )
