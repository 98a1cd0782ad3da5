import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.outside import Start, World, halted, lives, processes_with, state_of, wait_for

LEFTOVER = "ends a session that an earlier agentd, or attempt, left behind"
NOBODY = "mixtape = 'a card that wants no agents'\n"


def _forget(world: World) -> None:
    """Lose what a dead agentd has remembered."""
    for note in world.run_dir.glob("*.json"):
        note.unlink()


def _crash_with_tmux(world: World) -> None:
    """Kill agentd, its client of tmux, and end the tmux server; return when all three are gone."""
    server = world.server()
    clients = [pid for pid, line in processes_with(str(world.tmux_socket)).items() if " -C " in line and pid != server]
    assert clients
    world.crash()
    for pid in clients:
        os.kill(pid, signal.SIGKILL)
    world.tmux("kill-server")
    wait_for(lambda: not any(map(lives, (server, *clients))), "the end of tmux")


def _write_rc(world: World, text: str) -> None:
    for name in (".bash_profile", ".profile"):
        (world.home / name).write_text(text)


def _shut_gate(world: World) -> Path:
    """Have the shells wait in their rc files until the file that is returned is there."""
    gate = world.top / "gate"
    _write_rc(world, f"while ! [ -e {gate} ]; do sleep 0.02; done\n")
    return gate


def _wait_keys(world: World, session: str) -> None:
    """Wait until the keys were typed: the terminal shows them, and the cursor is in the line below."""

    def typed() -> bool:
        ask = ("display-message", "-p", "-t", f"={session}:", "#{cursor_x} #{cursor_y}")
        column, _, line = world.tmux(*ask, check=False).stdout.partition(" ")
        return column == "0" and int(line) > 0

    wait_for(typed, "the keys")


def _events(start: Start) -> list[str]:
    return [what for _, what in start.events]


# What a dead agentd left behind, and no note tells of


def test_stop_while_ending_leftovers(world: World) -> None:
    """A SIGTERM while agentd ends what a dead one left behind lets that come to its end: nothing is left."""
    world.write_card(world.agent("a", env={"IGNORE": "INT TERM HUP", "FORK": "setsid ignorer"}))
    world.start()
    first = world.wait_ready("a")
    world.crash()
    _forget(world)
    assert lives(first.pid)
    world.spawn()
    world.wait_log(LEFTOVER)
    world.signal(signal.SIGTERM)
    assert world.stop() == 0
    assert first.left() == {}
    assert world.sessions() == []
    assert len(world.starts("a")) == 1


@pytest.mark.parametrize(("name", "without_tmux"), [("a", True), ("b", True), ("b", False)])
def test_leftovers_end_first(world: World, name: str, without_tmux: bool) -> None:
    """What a dead agentd left is gone before anything is launched: without its session, and under another name too."""
    env = {"IGNORE": "HUP", "RECORD": str(world.records / "a")}  # one record for both, so that two at once are seen
    world.write_card(world.agent("a", env=env))
    world.start()
    first = world.wait_ready("a")
    directories = [path for path in world.run_dir.iterdir() if path.is_dir()]
    assert len(directories) == 1
    if without_tmux:
        _crash_with_tmux(world)
    else:
        world.crash()
    _forget(world)
    assert lives(first.pid)
    world.write_card(world.agent(name, env=env))
    world.start()
    second = Start(world.records / "a" / "2")
    wait_for(second.is_ready, "the second start")
    assert first.left() == {}
    assert not any(path.exists() for path in directories)
    world.wait_status(name, state="running", pid=second.pid)
    assert world.sessions() == [name]


def test_tmux_ends_while_ending_leftovers(world: World) -> None:
    """A tmux server that ends while agentd ends what a dead one left behind is no bug: it goes on with a new one."""
    world.write_card(world.agent("a", env={"IGNORE": "INT TERM HUP"}))
    world.start()
    first = world.wait_ready("a")
    world.crash()
    _forget(world)
    world.spawn()
    world.wait_log(LEFTOVER)
    world.tmux("kill-server")
    world.wait_ready("a", 2)
    assert first.left() == {}


# A tmux server that does not answer


def test_start_while_tmux_hangs(world: World) -> None:
    """A start is known at once, though the tmux server has stopped to answer when the keys were typed."""
    gate = _shut_gate(world)
    world.write_card(world.agent("a"))
    world.start()
    _wait_keys(world, "a")
    with halted(world.server()):
        gate.touch()
        start = Start(world.records / "a" / "1")
        wait_for(start.is_ready, "the start")
        world.wait_status("a", state="running", pid=start.pid, seconds=1.5)
    assert world.stop() == 0
    assert len(world.starts("a")) == 1


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "shutdown"])
def test_stop_while_tmux_hangs(world: World, removed: bool) -> None:
    """An agent is interrupted within a second or two of its grace period, though tmux does not press the key."""
    world.write_card(world.agent("a", grace_period="30s"))
    world.start()
    start = world.wait_ready("a")
    with halted(world.server()):
        began = time.time()
        if removed:
            world.write_card_text(NOBODY)
            world.look()
        else:
            world.signal(signal.SIGTERM)
        wait_for(lambda: "INT" in _events(start), "the interrupt")
        assert start.events[0][0] - began < 5
        wait_for(lambda: not lives(start.pid), "its end")
    if removed:
        wait_for(lambda: "a" not in world.agents(), "its removal")
    assert world.stop() == 0
    assert _events(start) == ["INT"]


# Shells that are different


@pytest.mark.parametrize(
    "rc",
    [
        pytest.param(
            '[ -z "$IN" ] && { export IN=1; exec script -q /dev/null; }\n',
            marks=pytest.mark.skipif(shutil.which("script") is None, reason="there is no script"),
            id="script",
        ),
        pytest.param("exec setsid -w bash\n", id="setsid"),
    ],
)
def test_shell_in_another_session(world: World, rc: str) -> None:
    """An rc file that moves the shell to another session or terminal hides neither start, nor exit, from agentd."""
    _write_rc(world, rc)
    world.write_card(
        world.agent("a", grace_period="20s"), world.agent("ends", env={"AFTER": "0.3", "EXIT": "7"}, restart="no")
    )
    world.start()
    first = world.wait_ready("a")
    assert world.status("a")["state"] == "running"
    ends = world.wait_status("ends", state="failed", reason="code")
    assert ends["exit"]["code"] == 7
    world.write_card(world.agent("a", grace_period="20s", args=["new"]))
    began = time.monotonic()
    world.look()
    world.wait_ready("a", 2)
    assert time.monotonic() - began < 10
    assert _events(first) == ["INT"]
    assert len(world.starts("ends")) == 1


@pytest.mark.parametrize("how", ["false", "exit", "late-exit", "kill"])
def test_shell_that_ends(world: World, how: str) -> None:
    """A shell that ends before the harness was started is known at once, and said: its last words too, if it can be."""
    gate = _shut_gate(world)
    if how == "false":
        world.env["SHELL"] = shutil.which("false") or "/bin/false"
    elif how == "exit":
        _write_rc(world, "exit 1\n")
    elif how == "late-exit":
        _write_rc(world, f"while ! [ -e {gate} ]; do sleep 0.02; done; echo LAST-WORDS; exit 1\n")
    world.write_card(world.agent("a", restart="no"))
    world.start()
    if how in {"late-exit", "kill"}:
        _wait_keys(world, "a")
    if how == "late-exit":
        gate.touch()
    elif how == "kill":
        world.tmux("kill-session", "-t", "=a")
    status = world.wait_status("a", state="failed", reason="never_started", seconds=5)
    assert "its shell ended" in status["error"]
    assert ("LAST-WORDS" in status["error"]) == (how == "late-exit")
    assert world.starts("a") == []


# Agents, admins and agentd itself that are different


def test_flooded_lifeline(world: World) -> None:
    """A harness that floods its lifeline ends like any other: its end is known, and the policy acts."""
    flood = world.bin / "flood"
    lines = (
        "#!/bin/sh",
        f"head -c 300000 /dev/zero >$(echo {world.run_dir}/*/lifeline)",
        f"echo x >>{world.top}/floods",
    )
    flood.write_text("\n".join(lines))
    flood.chmod(0o755)
    world.write_card(world.agent("a", binary=str(flood), restart="always", max_restarts=2))
    world.start()
    status = world.wait_status("a", state="failed", reason="restarts_exhausted")
    assert status["exit"]["how"] == "killed"
    assert (world.top / "floods").read_text() == "x\n" * 3


def test_background_with_another_in_front(world: World) -> None:
    """An agent that an admin has put into the background is interrupted itself, and not the admin's command alone."""
    world.write_card(world.agent("a", grace_period="20s"))
    world.start()
    start = world.wait_ready("a")
    world.tmux("send-keys", "-t", "=a:", "C-z")
    wait_for(lambda: state_of(start.pid) == "T", "the suspension")
    world.type("a", "bg")
    wait_for(lambda: state_of(start.pid) != "T", "the continuation")
    world.type("a", "cat")
    ask = ("display-message", "-p", "-t", "=a:", "#{pane_current_command}")
    wait_for(lambda: world.tmux(*ask).stdout == "cat\n", "the admin's command")
    began = time.monotonic()
    world.write_card_text(NOBODY)
    world.look()
    wait_for(lambda: "a" not in world.agents(), "its removal")
    assert time.monotonic() - began < 10
    assert _events(start) == ["INT"]


def test_agentd_stands_still(world: World) -> None:
    """An agent that starts and ends while agentd stands still has ended with its code, and its shell lives."""
    gate = _shut_gate(world)
    world.write_card(world.agent("a", env={"AFTER": "0.1", "EXIT": "6"}))
    world.start()
    _wait_keys(world, "a")
    shell = int(world.tmux("display-message", "-p", "-t", "=a:", "#{pane_pid}").stdout)
    assert world.process is not None
    with halted(world.process.pid):
        gate.touch()
        start = Start(world.records / "a" / "1")
        wait_for(start.is_ready, "the start")
        wait_for(lambda: not lives(start.launcher), "its launcher's end")
    status = world.wait_status("a", state="failed", reason="code")
    assert (status["exit"]["code"], status["restarts"]) == (6, 0)
    wait_for(lambda: not any(path.is_dir() for path in world.run_dir.iterdir()), "the end of the sweep")
    world.type("a", "echo ab''cd")
    wait_for(lambda: "abcd" in world.screen("a"), "the shell's answer")
    assert lives(shell)
    assert len(world.starts("a")) == 1
