"""agentd as a service, seen by the admin of the machine: its units, its journal, its API, its agents."""

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.e2e.outside import Connection, Reply, lives, toml, wait_for, wait_for_none

UNIT, TMUX = "agentd.service", "agentd-tmux.service"
API_SOCKET, TMUX_SOCKET = Path("/run/stereos/agentd.sock"), Path("/run/agentd/tmux.sock")
STANDIN = Path("/usr/local/bin/standin")
_CARD = Path("/etc/stereos/jcard.toml")
_DROP_INS = Path("/run/systemd/system")
_LIMIT = 60.0


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command that is to end by itself."""
    done = subprocess.run(
        command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT, check=False
    )
    assert done.returncode == 0 or not check, f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done


def run_as(user: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as somebody who has logged in."""
    return run("runuser", "-u", user, "--", *command, check=False)


def show(unit: str, *names: str) -> dict[str, str]:
    """What systemd tells of a unit."""
    lines = run("systemctl", "show", unit, *(f"--property={name}" for name in names)).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


def processes_of(user: str) -> dict[int, str]:
    """The living processes of a user."""
    uid = pwd.getpwnam(user).pw_uid
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                if entry.stat().st_uid == uid and lives(int(entry.name)):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


class Start:
    """What the stand-in wrote down of one start."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def read(self, name: str) -> str:
        """One of the facts."""
        return (self.place / name).read_text().strip("\n")

    @property
    def pid(self) -> int:
        """Its pid."""
        return int(self.read("pid"))

    @property
    def env(self) -> dict[str, str]:
        """Its environment."""
        return dict(entry.split("=", 1) for entry in self.read("environ").split("\0")[:-1])

    @property
    def events(self) -> list[str]:
        """What happened to it."""
        return self.read("events").splitlines() if (self.place / "events").exists() else []


class Service:
    """The service of one user's agentd: the system's, or, by its subclass, a person's own."""

    user = "agent"
    systemctl_words: tuple[str, ...] = ("systemctl",)
    api_socket = API_SOCKET
    tmux_socket = TMUX_SOCKET
    card = _CARD
    drop_ins = _DROP_INS

    def __init__(self) -> None:
        self.home = Path(pwd.getpwnam(self.user).pw_dir)
        self.records = self.home / "records"
        self._cursor = ""

    def prepare(self) -> None:
        """Stop what runs, and forget what was."""
        shutil.copy(Path(__file__).with_name("standin.sh"), STANDIN)
        self.systemctl("stop", UNIT, TMUX)
        self.systemctl("reset-failed", UNIT, TMUX, check=False)
        shutil.rmtree(self.records, ignore_errors=True)
        self.card.parent.mkdir(parents=True, exist_ok=True)
        self.write_card()
        tail = run("journalctl", "--no-pager", "--lines=1", "--output=json").stdout
        self._cursor = json.loads(tail)["__CURSOR"]

    def close(self) -> None:
        """Stop it, and fail if anything is left."""
        self.systemctl("stop", UNIT)
        state = self.show("ActiveState", "Result")
        tmux_state = wait_for_none(lambda: self.show("ActiveState", unit=TMUX)["ActiveState"] == "active")
        left = wait_for_none(self.processes)
        bugs = [line for line in self.log if "Traceback" in line or "has a bug" in line]
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for unit in (UNIT, TMUX):
            shutil.rmtree(self.drop_ins / f"{unit}.d", ignore_errors=True)
        self.systemctl("daemon-reload")
        log = "\n".join(self.log[-30:])
        assert state == {"ActiveState": "inactive", "Result": "success"}, log
        assert not tmux_state, f"{TMUX} is still active: {log}"
        assert not left, f"left behind: {left}"
        assert not bugs, log

    # systemd.

    def systemctl(self, *words: str, check: bool = True) -> str:
        """Ask for something, and return when it is done."""
        return run(*self.systemctl_words, *words, check=check).stdout

    def show(self, *names: str, unit: str = UNIT) -> dict[str, str]:
        """What systemd tells of a unit."""
        lines = self.systemctl("show", unit, *(f"--property={name}" for name in names)).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def start(self) -> None:
        """Start it."""
        self.systemctl("start", UNIT)

    def change(self, *lines: str, unit: str = UNIT) -> None:
        """Have a drop-in for this test, of lines of its section Service."""
        place = self.drop_ins / f"{unit}.d" / "test.conf"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("\n".join(["[Service]", *lines, ""]))
        self.systemctl("daemon-reload")

    @property
    def pid(self) -> int:
        """The pid of agentd."""
        return int(self.show("MainPID")["MainPID"])

    def wait_restarted(self, number: int = 1) -> None:
        """Wait until systemd has started agentd again that often, and it is ready."""

        def restarted() -> bool:
            return self.show("NRestarts", "ActiveState") == {"NRestarts": str(number), "ActiveState": "active"}

        wait_for(restarted, f"{number} restarts of {UNIT}")

    @property
    def entries(self) -> list[dict[str, Any]]:
        """What is in the journal of agentd since the test began."""
        lines = run("journalctl", "--output=json", f"--after-cursor={self._cursor}", *self._journal()).stdout
        return [json.loads(line) for line in lines.splitlines()]

    def _journal(self) -> tuple[str, ...]:
        return (f"_SYSTEMD_UNIT={UNIT}", "_TRANSPORT=stdout")

    @property
    def log(self) -> list[str]:
        """The messages among them."""
        return [str(entry["MESSAGE"]) for entry in self.entries]

    def processes(self) -> dict[int, str]:
        """What lives of agents and tmux."""
        return processes_of(self.user)

    # The card and the agents.

    def agent(self, name: str, **keys: Any) -> dict[str, Any]:
        """An entry of the card: the stand-in; the keyword `env` adds to its variables."""
        env = {"RECORD": str(self.records / name), **keys.pop("env", {})}
        defaults = {"name": name, "harness": "custom", "binary": str(STANDIN), "workdir": str(self.home)}
        return {**defaults, "grace_period": "5s", "restart_delay_max": "100ms", **keys, "env": env}

    def write_card(self, *agents: Mapping[str, Any], more: str = "") -> None:
        """Write the card anew, in one go."""
        entries = ["[[agents]]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in one.items()) for one in agents]
        fresh = self.card.with_suffix(".new")
        fresh.write_text("\n".join(["[machine]", *entries, more]))
        fresh.rename(self.card)

    def get(self, path: str) -> Reply:
        """Ask the API."""
        connection = Connection(self.api_socket)
        try:
            connection.request("GET", path)
            return Reply(connection.getresponse())
        finally:
            connection.close()

    def status(self, name: str) -> Any:
        """One agent as the API has it."""
        return self.get(f"/v1/agents/{quote(name)}").json

    def wait_status(self, name: str, **wanted: Any) -> Any:
        """Wait until all of these are true of the agent, and return it."""
        seen: dict[str, Any] = {}

        def find() -> bool:
            seen.clear()
            with suppress(OSError):
                seen.update(self.status(name))
            return all(seen.get(key) == value for key, value in wanted.items())

        try:
            wait_for(find, f"{name} is {wanted}")
        except AssertionError as error:
            message = f"{error}: it is {seen}; {self.log[-20:]}"
            raise AssertionError(message) from None
        return seen

    def wait_ready(self, name: str, number: int = 1) -> Start:
        """Wait until the stand-in has come up for that time, and until agentd knows."""
        start = Start(self.records / name / str(number))
        try:
            wait_for((start.place / "pid").exists, f"start {number} of {name}")
        except AssertionError as error:
            message = f"{error}: {self.log[-20:]}"
            raise AssertionError(message) from None
        self.wait_status(name, pid=start.pid, state="running")
        return start

    def starts(self, name: str) -> int:
        """How often the stand-in was started."""
        return sum(1 for _ in (self.records / name).iterdir())

    def tmux(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Ask the tmux server, as the admin."""
        return run("tmux", "-N", "-S", str(self.tmux_socket), *words, check=False)


STAMP = re.compile(r"\d{4}-\d\d-\d\d")
