"""After any stop nothing lives that the attempt started, and nothing else was touched."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from tests.e2e.outside import NOBODY, World, lives, processes_with, state_of, wait_for, wait_for_none

MESS = "setsid nohup daemon ignorer stopped"
STORM = f"{MESS} comet"
"""For two of them: more would leave no processor to anybody."""
PARTS = ("clear", "leave", "orphan")
WAYS = [parts for count in (1, 2, 3) for parts in combinations(PARTS, count)]
"""What a process may do to be nobody's: to clear its environment, leave its session, have no parents any more."""


@pytest.fixture
def others(world: World) -> Iterator[dict[str, int]]:
    """Start what is nobody's business: the same program, a session of the same server, an admin's second window."""
    env = {**world.env, "RECORD": str(world.records / "nobody")}
    with subprocess.Popen([world.bin / "agent"], env=env, start_new_session=True) as process:
        yield {"process": process.pid}
        assert process.poll() is None
        process.kill()
    world.tmux("kill-server", check=False)


def _start(world: World, *words: str) -> int:
    """Have tmux start something, and return its pid."""
    return int(world.tmux(*words, "-d", "-P", "-F", "#{pane_pid}", "sleep 1000").stdout)


def test_nothing_lives(world: World, others: dict[str, int]) -> None:
    """Children, `nohup`, `setsid`, daemons, ignorers, stopped ones, 200 forks a second: every kind of end ends all.

    A process of the same name, another session, an admin's window in a session that stays: none is touched.
    """
    deaf = {"IGNORE": "INT HUP TERM", "FORK": MESS}
    first = [
        world.agent("end", env={"AFTER": "0.5", "IGNORE": "HUP TERM", "FORK": STORM}),
        world.agent("timeout", timeout="2s", grace_period="100ms", env=deaf),
        world.agent("removal", grace_period="100ms", env={**deaf, "FORK": STORM}),
        world.agent("relaunch", grace_period="100ms", env=deaf),
        world.agent("restart", restart="on-failure", env={"FORK": MESS}),
        world.agent("shutdown", grace_period="100ms", env=deaf),
    ]
    world.write_card(*first)
    world.start()
    starts = {agent["name"]: world.wait_ready(agent["name"]) for agent in first if agent["name"] != "end"}
    others |= {
        "session": _start(world, "new-session", "-s", "mine"),
        "end": _start(world, "new-window", "-t", "=end:"),
        "timeout": _start(world, "new-window", "-t", "=timeout:"),
    }
    assert set(starts["removal"].children) == set(STORM.split())
    assert state_of(starts["removal"].children["stopped"]) == "T"
    changed = world.agent("relaunch", grace_period="100ms", env={"RUN": "2"})
    world.write_card(*first[:2], changed, *first[4:])
    world.look()
    os.kill(starts["restart"].pid, signal.SIGTERM)
    world.wait_ready("relaunch", 2)
    world.wait_ready("restart", 2)
    world.wait_gone("removal")
    world.wait_status("timeout", state="failed", reason="timed_out")
    world.wait_status("end", state="completed")
    assert world.starts("end")[0].left() == {}
    for name in ("timeout", "removal", "relaunch", "restart"):
        assert starts[name].left() == {}
    for name in ("end", "timeout", "removal"):
        assert wait_for_none(lambda: _of(world, name)) == {}  # noqa: B023 - used at once
    assert all(map(lives, others.values())), others
    assert world.stop() == 0
    assert processes_with(str(world.records / "shutdown")) == {}
    assert [name for name, pid in others.items() if lives(pid)] == ["process", "session"]


def _of(world: World, name: str) -> dict[int, str]:
    """What an agent has started, and not the shell and the window that have its variables."""
    found = processes_with(str(world.records / name))
    return {pid: line for pid, line in found.items() if str(world.top) in line or "python" in line}


def test_an_admins_commands(world: World) -> None:
    """In the shell that an ended agent leaves, an admin's command runs on, in front, behind, and after a hang-up.

    It ends with the session, and what has left that does not.
    """
    world.write_card(world.agent("a", env={"AFTER": "0", "FORK": "daemon"}), world.agent("b"))
    world.start()
    world.wait_status("a", state="completed")
    world.wait_ready("b")
    pids = world.top / "pids"
    world.type("a", f"sleep 1000 & echo $! >>{pids}; nohup sleep 1000 >/dev/null 2>&1 & echo $! >>{pids}")
    world.type("a", f"sh -c 'echo $$ >>{pids}; exec sleep 1000'")
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 3, "the commands")
    admins = [int(pid) for pid in pids.read_text().split()]
    world.write_card(world.agent("a", env={"AFTER": "0", "FORK": "daemon"}))
    world.look()
    world.wait_gone("b")
    assert all(map(lives, admins))
    world.write_card_text(NOBODY)
    world.look()
    world.wait_gone("a")
    assert not any(map(lives, admins))


def test_a_window_of_the_agents(world: World) -> None:
    """What an agent has tmux start in its own session ends with the session; another session of its is nobody's.

    tmux starts these, and nothing tells them from an admin's own.
    """
    tmux = f"tmux -S {world.tmux_socket}"
    script = f"{tmux} new-window -d 'sleep 1001'; {tmux} new-session -d -s its 'sleep 1002'; exec agent"
    world.write_card(world.agent("a", binary="sh", args=["-c", script]))
    world.start()
    world.wait_ready("a")
    assert world.sessions() == ["a", "its"]
    ask = ("list-panes", "-a", "-F", "#{session_name} #{window_index} #{pane_pid}")
    panes = {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in world.tmux(*ask).stdout.splitlines()}
    world.write_card_text(NOBODY)
    world.look()
    world.wait_gone("a")
    assert not lives(panes["a 1"])
    assert lives(panes["its 0"])
    world.tmux("kill-session", "-t", "=its")


def test_what_escapes(world: World) -> None:
    """Without a cgroup, who clears its environment, leaves its session and has no parents escapes a stop: only that."""
    program = world.home / "sleep"
    program.symlink_to("/bin/sleep")
    lines = []
    for parts in WAYS:
        line = " ".join([*["setsid"] * ("leave" in parts), *["env -i"] * ("clear" in parts), f"{program} 1000"])
        name = world.work / "-".join(parts)
        name.symlink_to("/bin/sleep")
        line = line.replace(str(program), str(name))
        lines.append(f"({line} &)" if "orphan" in parts else f"{line} &")
    script = world.work / "script"
    script.write_text("\n".join([*lines, "exec agent"]))
    world.write_card(world.agent("a", binary="sh", args=[str(script)]))
    world.start()
    world.wait_ready("a")
    everything = {"-".join(parts) for parts in WAYS}
    wait_for(lambda: _named(world) == everything, "all of them")
    (note,) = world.run_dir.glob("*.json")
    bounded = json.loads(note.read_text())["attempt"].get("cgroup") is not None
    world.write_card_text(NOBODY)
    world.look()
    world.wait_gone("a")
    assert _named(world) == (set() if bounded else {"-".join(PARTS)})
    for pid, line in processes_with(str(world.work)).items():
        assert line.startswith(str(world.work))
        os.kill(pid, signal.SIGKILL)


def _named(world: World) -> set[str]:
    """The names of the programs in the workdir that run."""
    lines = processes_with(str(world.work)).values()
    return {Path(line.split()[0]).name for line in lines if line.startswith(str(world.work))}
