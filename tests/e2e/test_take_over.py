"""agentd is killed, and the next one goes on where it was: nothing is lost, and nothing is doubled."""

import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.outside import Start, World, halted, lives, wait_for


def _events(start: Start) -> list[str]:
    return [what for _, what in start.events]


def test_a_running_agent_is_taken_over(world: World) -> None:
    """An agent that lives keeps its pid, session, start and restarts, and hears nothing of it."""
    world.write_card(world.agent("a", restart="always", env={"FORK": "setsid daemon"}))
    world.start()
    os.kill(world.wait_ready("a").pid, signal.SIGTERM)
    second = world.wait_ready("a", 2)
    before = world.status("a")
    world.crash()
    world.start()
    assert world.status("a") == before
    assert before["restarts"] == 1
    world.wait_log("taken over")
    assert _events(second) == []
    assert len(world.starts("a")) == 2
    # It is supervised like any other: its end is known, and the policy goes on counting.
    os.kill(second.pid, signal.SIGTERM)
    world.wait_ready("a", 3)
    assert (world.status("a")["restarts"], world.status("a")["exit"]["code"]) == (2, 143)
    assert second.left() == {}


@pytest.mark.parametrize(
    ("policy", "code", "state", "starts"),
    [
        ("no", "0", "completed", 1),
        ("no", "1", "failed", 1),
        ("no", "143", "failed", 1),
        ("on-failure", "137", "running", 2),
    ],
)
def test_an_end_meanwhile_is_known(world: World, policy: str, code: str, state: str, starts: int) -> None:
    """What ended while no agentd was there has its exit code, and the policy does with it what it says."""
    world.write_card(world.agent("a", restart=policy, env={"EXIT": code}))
    world.start()
    first = world.wait_ready("a")
    world.crash()
    os.kill(first.pid, signal.SIGINT)
    wait_for(lambda: not lives(first.launcher), "the end of the launcher")
    world.start()
    status = world.wait_status("a", state=state)
    assert status["exit"]["code"] == int(code)
    assert status["restarts"] == starts - 1
    if starts > 1:
        world.wait_ready("a", starts)
    assert len(world.starts("a")) == starts


@pytest.mark.parametrize(("code", "state"), [("0", "completed"), ("3", "failed")])
def test_an_ended_agent_stays_ended(world: World, code: str, state: str) -> None:
    """Nobody is launched again because agentd was killed; the shell of an ended agent stays."""
    world.write_card(world.agent("a", env={"AFTER": "0", "EXIT": code}))
    world.start()
    before = world.wait_status("a", state=state)
    world.crash()
    world.start()
    assert world.status("a") == before
    assert world.sessions() == ["a"]
    world.write_card(world.agent("a", env={"RUN": "2"}))
    world.wait_ready("a", 2)


def test_a_backoff_goes_on(world: World) -> None:
    """The time and the number of the next restart are what they were."""
    world.write_card(world.agent("a", restart="always", max_restarts=1, restart_delay_max="3s", env={"AFTER": "0"}))
    world.start()
    before = world.wait_status("a", state="backoff")
    world.crash()
    world.start()
    assert world.status("a")["next_restart_at"] == before["next_restart_at"]
    status = world.wait_status("a", state="failed")
    assert (status["reason"], status["restarts"], len(world.starts("a"))) == ("restarts_exhausted", 1, 2)


def test_a_deadline_stays(world: World) -> None:
    """A timeout goes on counting, and ends the attempt that was taken over."""
    world.write_card(world.agent("a", timeout="4s"))
    world.start()
    first = world.wait_ready("a")
    before = world.status("a")["deadline_at"]
    world.crash()
    world.start()
    assert world.status("a")["deadline_at"] == before
    world.wait_status("a", state="failed", reason="timed_out")
    assert _events(first) == ["INT"]


@pytest.mark.parametrize("change", ["changed", "removed"])
def test_a_card_that_changed_meanwhile(world: World, change: str) -> None:
    """An agent whose entry changed, or went, while no agentd was there has its C-c and its grace period now."""
    world.write_card(world.agent("a", env={"LINGER": "0.5"}), world.agent("b"))
    world.start()
    first, other = world.wait_ready("a"), world.wait_ready("b")
    world.crash()
    world.write_card(*([world.agent("a", env={"RUN": "2"})] if change == "changed" else []), world.agent("b"))
    world.start()
    if change == "changed":
        world.wait_ready("a", 2)
    wait_for(lambda: not lives(first.pid), "the end of the first")
    assert _events(first) == ["INT"]
    assert world.wait_ready("b").pid == other.pid
    wait_for(lambda: world.sessions() == (["a", "b"] if change == "changed" else ["b"]), "the sessions")


@pytest.mark.parametrize("text", ["[[agents]\n", None], ids=["invalid", "missing"])
def test_without_a_card_nothing_is_touched(world: World, text: str | None) -> None:
    """Until the first valid card nothing that a dead agentd left behind is stopped; with it, it is taken over."""
    world.write_card(world.agent("a"))
    good = world.card.read_text()
    world.start()
    first = world.wait_ready("a")
    world.crash()
    if text is None:
        world.card.unlink()
    else:
        world.write_card_text(text)
    world.start()  # the API answers after the first look
    assert lives(first.pid)
    assert world.stop() == 0
    assert lives(first.pid)
    assert _events(first) == []
    world.start()
    world.write_card_text(good)
    world.look()
    assert world.wait_ready("a").pid == first.pid


def test_an_unreadable_prompt_is_waited_for(world: World) -> None:
    """An agent whose prompt file cannot be read just then is taken over; its end waits for the file, for its policy."""
    prompt = world.top / "prompt"
    prompt.write_text("do it")
    world.write_card(world.agent("a", prompt_file=str(prompt), restart="always"))
    world.start()
    first = world.wait_ready("a")
    world.crash()
    prompt.unlink()
    world.start()
    assert world.status("a")["pid"] == first.pid
    os.kill(first.pid, signal.SIGTERM)
    world.wait_status("a", running=False)
    prompt.write_text("do it")
    world.wait_ready("a", 2)
    assert world.status("a")["restarts"] == 1


def _kill_session(world: World) -> None:
    world.tmux("kill-session", "-t", "=a")


def _kill_server(world: World) -> None:
    world.tmux("kill-server")


@pytest.mark.parametrize("kill", [_kill_session, _kill_server])
def test_a_lost_session(world: World, kill: Callable[[World], None]) -> None:
    """A harness that outlives its session, or the whole tmux server, while no agentd is there, is never doubled."""
    world.write_card(world.agent("a", env={"IGNORE": "HUP"}))
    world.start()
    first = world.wait_ready("a")
    world.crash()
    kill(world)
    wait_for(lambda: "HUP" in _events(first), "the hang-up")
    world.start()
    assert world.wait_ready("a").pid == first.pid
    os.kill(first.pid, signal.SIGINT)
    assert world.wait_status("a", state="completed", running=False)["exit"]["code"] == 0


def test_what_ended_unheard_is_swept(world: World) -> None:
    """What an attempt has left that came up and ended while no agentd was there is ended, too."""
    gate = world.home / "gate"
    (world.home / ".bash_profile").write_text(f"until [ -e {gate} ]; do sleep 0.05; done\n")
    world.write_card(world.agent("a", env={"FORK": "setsid daemon", "AFTER": "0.3"}))
    world.start()
    wait_for(lambda: list(world.run_dir.glob("*/launch")), "the script")
    _typed(world)
    world.crash()
    gate.touch()
    start = Start(world.records / "a" / "1")
    wait_for(lambda: start.is_ready() and not lives(start.launcher), "the end of the launcher")
    world.start()
    world.wait_status("a", state="completed")
    wait_for(lambda: start.left() == {}, "the end of what it left")
    assert len(world.starts("a")) == 1
    assert world.sessions() == ["a"]


def _typed(world: World) -> None:
    """Wait until the keys were typed: the terminal shows them, and the cursor is in the line below."""
    ask = ("display-message", "-p", "-t", "=a:", "#{cursor_x} #{cursor_y}")
    wait_for(lambda: world.tmux(*ask, check=False).stdout.strip() not in {"", "0 0"}, "the keys")


def test_a_stop_that_agentd_did_not_survive(world: World) -> None:
    """Who ended by the C-c of a stop on wish neither failed nor restarts when the next agentd comes: it starts anew."""
    world.write_card(world.agent("a"), world.agent("b", grace_period="30s", env={"IGNORE": "INT"}))
    world.start()
    first, slow = world.wait_ready("a"), world.wait_ready("b")
    world.signal(signal.SIGTERM)
    wait_for(lambda: not lives(first.launcher) and "INT" in _events(slow), "the stop")
    world.crash()
    world.start()
    world.wait_ready("a", 2)
    assert (world.status("a")["restarts"], world.status("a").get("exit")) == (0, None)
    world.signal(signal.SIGTERM)  # the slow one is in its second grace period
    wait_for(lambda: world.log.count("SIGTERM: stops the agents") == 2, "the signal")
    world.signal(signal.SIGTERM)


def test_a_lost_session_is_interrupted_all_the_same(world: World) -> None:
    """The stop of a harness that has outlived its session begins with SIGINT."""
    world.write_card(world.agent("a", env={"IGNORE": "HUP"}))
    world.start()
    first = world.wait_ready("a")
    world.crash()
    _kill_session(world)
    wait_for(lambda: "HUP" in _events(first), "the hang-up")
    world.start()
    world.wait_ready("a")
    world.write_card_text("mixtape = 'a card that wants no agents'\n")
    wait_for(lambda: not lives(first.pid), "its end")
    assert set(_events(first)[:-1]) == {"HUP"}
    assert _events(first)[-1] == "INT"


def test_notes_are_ours_alone(world: World) -> None:
    """What agentd remembers is in files that only it can read, without prompt, arguments, variables or secrets."""
    (world.secrets / "TOKEN").write_text("t0ken-value")
    world.write_card(world.agent("a", prompt="pr0mpt-value", args=["arg-value"], env={"V": "v4r-value"}))
    world.start()
    world.wait_ready("a")
    notes = list(world.run_dir.glob("*.json"))
    assert [path.stat().st_mode & 0o777 for path in notes] == [0o600]
    text = notes[0].read_text()
    assert not [word for word in ("t0ken-value", "pr0mpt-value", "arg-value", "v4r-value") if word in text]
    assert world.stop() == 0
    assert not list(world.run_dir.glob("*.json")), "a clean stop forgets"


def test_after_a_reboot(world: World) -> None:
    """What was remembered in another life of the machine, or the container, is forgotten: all agents start."""
    world.write_card(world.agent("a", env={"AFTER": "0"}))
    world.start()
    world.wait_status("a", state="completed")
    world.crash()
    (note,) = world.run_dir.glob("*.json")
    content = json.loads(note.read_text())
    note.write_text(json.dumps(content | {"life": "another"}))
    world.tmux("kill-server")
    world.start()
    world.wait_status("a", state="completed")
    assert len(world.starts("a")) == 2
    assert not note.exists()


def _damaged(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


def _of_the_future(path: Path) -> None:
    path.write_text(path.read_text().replace('"version": 1', '"version": 99'))


def _without_a_key(path: Path) -> None:
    path.write_text(path.read_text().replace('"accounted"', '"forgotten"'))


@pytest.mark.parametrize("alter", [_damaged, _of_the_future, _without_a_key])
def test_an_unknown_note(world: World, alter: Callable[[Path], None]) -> None:
    """What another version of agentd has left is not touched: its agent waits until somebody has ended the session."""
    world.write_card(world.agent("a"), world.agent("b"))
    world.start()
    first, other = world.wait_ready("a"), world.wait_ready("b")
    world.crash()
    (note,) = (path for path in world.run_dir.glob("*.json") if '"a"' in path.read_text())
    alter(note)
    world.start()
    status: Any = world.wait_status("a", state="waiting", reason="session_taken")
    assert "kill-session" in status["message"]
    assert world.wait_ready("b").pid == other.pid
    assert lives(first.pid)
    assert _events(first) == []
    world.tmux("kill-session", "-t", "=a")
    world.look()
    assert world.stop() == 0
    assert note.exists()
    world.start()
    world.wait_ready("a", 2)
    assert not note.exists(), "without its session it is about nothing"


def test_crashes_at_any_moment(world: World) -> None:
    """agentd may be killed at whatever moment of its start: in the end every agent runs, once, and none was doubled."""
    names = [f"a{number}" for number in range(6)]
    world.write_card(*(world.agent(name, restart="always", env={"IGNORE": "HUP"}) for name in names))
    for step in range(16):
        world.spawn()
        time.sleep(0.25 + step * 0.03)  # from before the first launch to after the last; a moment, and no event
        world.crash()
    world.start()
    for name in names:
        start = wait_for(partial(_only_living, world, name), f"one living {name}")
        world.wait_status(name, state="running", pid=start.pid, restarts=0)


def _only_living(world: World, name: str) -> Start | None:
    living = [start for start in world.starts(name) if start.is_ready() and lives(start.pid)]
    return living[0] if len(living) == 1 else None


def test_a_kept_shell_is_an_admins(world: World) -> None:
    """What an admin has started in the shell of an agent that had ended is not looked for by the next agentd."""
    world.write_card(world.agent("a", env={"AFTER": "0", "FORK": "setsid"}))
    world.start()
    world.wait_status("a", state="completed")
    wait_for(lambda: '"swept": true' in next(world.run_dir.glob("*.json")).read_text(), "the note of its sweep")
    pids = world.top / "pids"
    world.type("a", f"(nohup sleep 1000 >/dev/null 2>&1 & echo $! >>{pids}); sleep 1000 & echo $! >>{pids}")
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2, "the commands")
    admins = pids.read_text().split()
    world.crash()
    world.start()
    world.write_card(world.agent("a", env={"AFTER": "0", "FORK": "setsid"}), world.agent("b"))
    world.wait_ready("b")
    assert all(lives(int(pid)) for pid in admins)
    assert world.status("a")["state"] == "completed"
    for pid in admins:
        os.kill(int(pid), signal.SIGKILL)  # the one that has left the shell's session is nobody's


def test_an_unreadable_prompt_while_it_starts(world: World) -> None:
    """What came up in a launch that was under way is not begun anew, though its prompt cannot be read just then."""
    gate = world.home / "gate"
    (world.home / ".bash_profile").write_text(f"until [ -e {gate} ]; do sleep 0.05; done\n")
    prompt = world.top / "prompt"
    prompt.write_text("do it")
    world.write_card(world.agent("a", prompt_file=str(prompt), restart="always"))
    world.start()
    wait_for(lambda: list(world.run_dir.glob("*/launch")), "the script")
    _typed(world)
    assert world.process is not None
    with halted(world.process.pid):
        gate.touch()
        first = Start(world.records / "a" / "1")
        wait_for(first.is_ready, "the start")
        world.crash()
    prompt.unlink()
    world.start()
    assert world.wait_ready("a").pid == first.pid
    assert first.argv == ["agent", "do it"]
    os.kill(first.pid, signal.SIGTERM)
    world.wait_status("a", running=False)
    prompt.write_text("do it")
    world.wait_ready("a", 2)
    assert world.status("a")["restarts"] == 1


def test_a_crash_before_the_shell_is_ready(world: World) -> None:
    """What agentd had typed into a shell that was not ready yet comes up once, or is begun anew."""
    gate = world.home / "gate"
    (world.home / ".bashrc").write_text(f"until [ -e {gate} ]; do sleep 0.05; done\n")
    (world.home / ".bash_profile").write_text(". ~/.bashrc\n")
    world.write_card(world.agent("a"))
    world.start()
    world.wait_status("a", state="starting")
    wait_for(lambda: list(world.run_dir.glob("*/launch")), "the script")
    world.crash()
    world.spawn()
    gate.touch()
    world.wait_api()
    start = wait_for(lambda: _only_living(world, "a"), "one living harness")
    world.wait_status("a", state="running", pid=start.pid, restarts=0)
