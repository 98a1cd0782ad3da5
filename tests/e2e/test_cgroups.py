"""Root's agentd, where there are cgroups (version 2): what an attempt started cannot leave it."""

import hashlib
import os
import signal
import time
from pathlib import Path

import pytest

from agentd.processes.cgroup import own_cgroup
from tests.e2e.outside import Start, World, lives, wait_for, wait_for_none

NOBODY = "mixtape = 'a card that wants no agents'\n"
HIDING = "escapee"


def _cgroups(world: World) -> list[Path]:
    """The cgroups of attempts that there are now."""
    top = own_cgroup()
    assert top is not None
    instance = hashlib.sha256(bytes(world.tmux_socket)).hexdigest()[:12]
    return list(top.glob(f"agentd-{instance}-*"))


@pytest.mark.parametrize("how", ["end", "timeout", "removal", "relaunch", "shutdown"])
def test_nothing_escapes(world: World, how: str) -> None:
    """However an attempt ends: a daemon that has cleared its environment and left session and parents ends with it."""
    env = {"FORK": HIDING, **({"AFTER": "0.3"} if how == "end" else {})}
    world.write_card(world.agent("a", env=env, timeout="1s" if how == "timeout" else None))
    world.start()
    first = world.wait_ready("a") if how != "end" else Start(world.records / "a" / "1")
    if how == "end":
        world.wait_status("a", state="completed")
    elif how == "timeout":
        world.wait_status("a", state="failed", reason="timed_out")
    elif how == "removal":
        world.write_card_text(NOBODY)
        wait_for(lambda: "a" not in world.agents(), "its removal")
    elif how == "relaunch":
        world.write_card(world.agent("a", env={"RUN": "2"}))
        world.wait_ready("a", 2)
    else:
        assert world.stop() == 0
    assert HIDING in first.children
    assert wait_for_none(first.left) == {}
    if how != "relaunch":
        assert wait_for_none(lambda: _cgroups(world)) == []


def test_a_storm_ends(world: World) -> None:
    """What is another process, with another pid, every few milliseconds, ends like everything else."""
    world.write_card(world.agent("a", env={"FORK": "storm storm"}))
    world.start()
    world.wait_ready("a")
    (cgroup,) = _cgroups(world)
    began = time.monotonic()
    world.write_card_text(NOBODY)
    wait_for(lambda: "a" not in world.agents(), "its removal")
    assert time.monotonic() - began < 6
    assert not cgroup.exists()  # which it could not be with anything in it


def test_what_an_admin_starts_stays(world: World) -> None:
    """After an agent's end, its shell stays and so does all that an admin starts there, a daemon included."""
    world.write_card(world.agent("a", env={"AFTER": "0.3", "FORK": HIDING}), world.agent("b"))
    world.start()
    world.wait_status("a", state="completed")
    wait_for(lambda: len(_cgroups(world)) == 1, "the end of the first one's cgroup")
    world.type("a", "sleep 7777 & nohup sleep 7778 & setsid -f env -i /bin/sleep 7779")
    wait_for(lambda: len(_sleeps(world, "7777", "7778", "7779")) == 3, "them")
    found = _sleeps(world, "7777", "7778", "7779")
    world.write_card(world.agent("a", env={"AFTER": "0.3", "FORK": HIDING}), world.agent("b", env={"RUN": "2"}))
    world.wait_ready("b", 2)
    assert all(map(lives, found))
    for pid in found:
        os.kill(pid, signal.SIGKILL)


def test_what_an_admin_started_before(world: World) -> None:
    """What an admin has started in the agent's own shell, beside the agent, stays when the agent ends."""
    world.write_card(world.agent("a"))
    world.start()
    start = world.wait_ready("a")
    world.tmux("send-keys", "-t", "=a:", "C-z")
    world.type("a", "sleep 7776 &")
    (admins,) = wait_for(lambda: _sleeps(world, "7776"), "the admin's command")
    os.kill(start.pid, signal.SIGCONT)
    world.type("a", "kill -INT %1; fg")
    world.wait_status("a", state="completed")
    wait_for(lambda: not _cgroups(world), "the end of its cgroup")
    assert lives(admins)


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "forgotten"])
def test_after_a_crash(world: World, noted: bool) -> None:
    """The next agentd ends what the attempts of a dead one have left, whether it knows the attempt or not."""
    world.write_card(world.agent("a", env={"FORK": HIDING}))
    world.start()
    first = world.wait_ready("a")
    assert world.process is not None
    world.process.kill()
    world.process.wait()
    if not noted:
        for note in world.run_dir.glob("*.json"):
            note.unlink()
    world.write_card_text(NOBODY)
    world.start()
    assert wait_for_none(first.left) == {}
    assert wait_for_none(lambda: _cgroups(world)) == []


def _sleeps(world: World, *seconds: str) -> list[int]:
    """The pids of `sleep` with these arguments in the agent's workdir."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                here = (entry / "cwd").readlink() == world.work
            except OSError:
                continue
            if here and words[0].endswith(b"sleep") and words[1:2] and words[1].decode() in seconds:
                found.append(int(entry.name))
    return found
