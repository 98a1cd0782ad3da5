import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.outside import World, lives, wait_for, wait_for_none

ALL_CHILDREN = "setsid nohup daemon ignorer"


@pytest.fixture(scope="module")
def ended() -> Iterator[World]:
    """One agentd with agents that end by themselves, each in another way, and that have all ended."""
    world = World()
    world.write_card(
        world.agent("done", env={"AFTER": "0.1"}),
        world.agent("bad", env={"AFTER": "0.1", "EXIT": "3"}),
        world.agent("content", restart="on-failure", env={"AFTER": "0.1"}),
        world.agent("thrice", restart="on-failure", max_restarts=2, env={"AFTER": "0.1", "EXIT": "5", "SAY": "OH-NO"}),
        world.agent("always", restart="always", max_restarts=1, env={"AFTER": "0.1"}),
        world.agent("crash", env={"AFTER": "0.1", "DIE": "KILL"}),
        world.agent("crash-again", restart="on-failure", max_restarts=1, env={"AFTER": "0.1", "DIE": "SEGV"}),
        world.agent("mess", env={"AFTER": "0.1", "FORK": ALL_CHILDREN}),
        world.agent("late", timeout="2s", restart="always", env={"FORK": ALL_CHILDREN, "LINGER": "0.1"}),
        world.agent("late-deaf", timeout="2s", grace_period="300ms", env={"IGNORE": "INT TERM HUP"}),
        world.agent("late-backoff", timeout="2500ms", restart="always", restart_delay_max="3s", env={"AFTER": "0.1"}),
        world.agent("screen", env={"AFTER": "0.2", "RAW": "1"}),
        world.agent("shell", env={"AFTER": "0", "VALUE": "it's ☃"}),
        world.agent("quick", binary="true", restart="on-failure"),
        world.agent("clock", timeout="1h", env={}),
    )
    world.start()
    for name in world.agents():
        if name != "clock":
            _wait_end(world, name)
    yield world
    world.close()


def _wait_end(world: World, name: str) -> None:
    wait_for(lambda: world.status(name)["state"] in {"completed", "failed"}, f"the end of {name}", seconds=30)


def _facts(world: World, name: str) -> tuple[object, ...]:
    status = world.status(name)
    return status["state"], status["reason"], status["restarts"], len(world.starts(name)), status["running"]


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("done", ("completed", "exited", 0, 1, False)),
        ("bad", ("failed", "code", 0, 1, False)),
        ("content", ("completed", "exited", 0, 1, False)),
        ("thrice", ("failed", "restarts_exhausted", 2, 3, False)),
        ("always", ("failed", "restarts_exhausted", 1, 2, False)),
        ("crash", ("failed", "signal", 0, 1, False)),
        ("crash-again", ("failed", "restarts_exhausted", 1, 2, False)),
        ("late", ("failed", "timed_out", 0, 1, False)),
        ("late-deaf", ("failed", "timed_out", 0, 1, False)),
        ("late-backoff", ("failed", "timed_out", 0, 1, False)),
    ],
)
def test_policy(ended: World, name: str, facts: tuple[object, ...]) -> None:
    """Each policy restarts as often as it says: never after a code of 0 on-failure, three starts with two restarts."""
    assert _facts(ended, name) == facts


@pytest.mark.parametrize(
    ("name", "how", "code", "number"),
    [("done", "code", 0, None), ("bad", "code", 3, None), ("crash", "signal", 137, "SIGKILL")],
)
def test_exit_is_told(ended: World, name: str, how: str, code: int, number: str | None) -> None:
    """The API tells how an attempt ended, and after how long."""
    told = ended.status(name)["exit"]
    assert (told["how"], told["code"], told["signal"], told["wish"]) == (how, code, number, None)
    assert 0.05 < told["duration_seconds"] < 5


def test_failure_is_an_error(ended: World) -> None:
    """A failed agent has an `error` that says how to go on; a completed one has none."""
    assert "code 3" in ended.status("bad")["error"]
    assert "error" not in ended.status("done")


def test_quick_end(ended: World) -> None:
    """A program that ends at once is a start and an exit with its code, like any other."""
    status = ended.status("quick")
    assert (status["state"], status["exit"]["code"], status["restarts"]) == ("completed", 0, 0)


@pytest.mark.parametrize("name", ["mess", "late", "late-deaf"])
def test_nothing_left_at_the_end(ended: World, name: str) -> None:
    """After a natural end and after a timeout nothing lives of what the agent started, however it hid."""
    (start,) = ended.starts(name)
    assert start.left() == {}
    if name != "late-deaf":
        assert set(start.children) == set(ALL_CHILDREN.split())


@pytest.mark.parametrize("name", ["shell", "screen", "late", "mess"])
def test_shell_after_the_end(ended: World, name: str) -> None:
    """After a natural end, and a timeout, the session's shell is usable, in the workdir, with the environment."""
    ended.type(name, 'printf "<%s> " "$PWD" "$RECORD" "$VALUE"; [ -t 0 ] && stty -a | grep -ow isig')
    workdir = os.path.realpath(ended.work)
    value = "it's ☃" if name == "shell" else ""
    expected = f"<{workdir}> <{ended.records / name}> <{value}> isig"
    wait_for(lambda: expected in ended.screen(name).replace("\n", ""), f"{expected!r} on the screen")


def test_ended_attempt_starts_no_more(ended: World) -> None:
    """Up and Enter in the shell of an ended agent do not start it again."""
    ended.tmux("send-keys", "-t", "=done:", "Up", "Enter")
    ended.type("done", "echo ab''cd")
    wait_for(lambda: "abcd" in ended.screen("done"), "the shell's answer")
    assert len(ended.starts("done")) == 1


def test_screens_of_failed_attempts_stay(ended: World) -> None:
    """What an attempt showed is in the session's history after the restarts."""
    assert ended.screen("thrice").count("OH-NO") == 3
    assert ended.screen("thrice").count("agentd: exit code 5") == 3


def test_timeout_is_told(ended: World) -> None:
    """A timeout tells that it is one, on whose wish the attempt ended, and how the agent runs again."""
    status = ended.status("late")
    assert status["exit"]["wish"] == "timed_out"
    assert "Timed out 2 s after" in status["message"]


def test_deadline_is_told(ended: World) -> None:
    """An agent with a timeout has a `deadline_at`, counted from its first launch."""
    status = ended.status("clock")
    started, deadline = (datetime.fromisoformat(status[key]) for key in ("started_at", "deadline_at"))
    assert abs((deadline - started).total_seconds() - 3600) < 10


def test_exit_to_known(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """An exit is known in the API at once."""
    names = ("a", "b", "c", "d")
    world.write_card(
        *(world.agent(name, restart="always", restart_delay_max="50ms", env={"AFTER": "0.05"}) for name in names)
    )
    world.start()
    known: dict[tuple[str, int], float] = {}
    while len(known) < 20:
        for name, status in world.agents().items():
            if status["state"] == "backoff":
                known.setdefault((name, status["attempt"]), time.time())
    starts = {name: {int(start.path.name): start for start in world.starts(name)} for name in names}
    delays = [when - starts[name][number].events[0][0] for (name, number), when in known.items()]
    median = statistics.median(delays)
    with capsys.disabled():
        print(f" [exit to known in the API: median {median * 1000:.1f} ms, most {max(delays) * 1000:.1f} ms]", end="")  # noqa: T201 - it is to be read
    assert median < 1


@pytest.fixture(scope="module")
def stopped() -> Iterator[tuple[World, dict[str, float]]]:
    """One agentd whose agents were all removed from the card, but one, and how long each one's stop took."""
    world = World()
    agents = [
        world.agent("stays", grace_period="1s"),
        world.agent("polite", grace_period="20s", env={"LINGER": "0.2"}),
        world.agent("slow", grace_period="20s", env={"LINGER": "2"}),
        world.agent("deaf", grace_period="500ms", env={"IGNORE": "INT TERM HUP"}),
        world.agent("raw-2", grace_period="20s", env={"RAW": "2"}),
        world.agent("raw-3", grace_period="20s", env={"RAW": "3"}),
        world.agent("suspended", grace_period="20s"),
        world.agent("copy-mode", grace_period="20s"),
        world.agent("second-window", grace_period="20s"),
        world.agent("grouped", grace_period="20s"),
        world.agent("mess", grace_period="20s", env={"FORK": ALL_CHILDREN}),
        world.agent("backoff", restart="always", restart_delay_max="1h", env={"AFTER": "0"}),
        world.agent("over", env={"AFTER": "0"}),
        world.agent("timing-out", grace_period="500ms", timeout="600ms", env={"IGNORE": "INT TERM HUP"}),
    ]
    world.write_card(*agents)
    world.start()
    for agent in agents:
        if agent["name"] not in {"backoff", "over", "timing-out"}:
            world.wait_ready(agent["name"])
    world.wait_status("backoff", state="backoff")
    world.wait_status("over", state="completed")
    world.tmux("send-keys", "-t", "=suspended:", "C-z")
    (suspended,) = world.starts("suspended")
    wait_for(lambda: _is_stopped(suspended.pid), "the suspension")
    world.tmux("copy-mode", "-t", "=copy-mode:")
    world.tmux("new-window", "-t", "=second-window:", "sleep 1000")
    world.tmux("new-session", "-d", "-t", "=grouped:", "-s", "looking-on")
    world.write_card(agents[0])
    world.look()
    names = {agent["name"] for agent in agents[1:]}
    began = time.monotonic()
    took: dict[str, float] = {}
    seen_stopping = set()
    while names - took.keys():
        assert time.monotonic() - began < 30, f"stops take too long: {names - took.keys()}"
        there = world.agents()
        seen_stopping |= {name for name, status in there.items() if status["state"] == "stopping"}
        took |= dict.fromkeys(names - there.keys() - took.keys(), time.monotonic() - began)
        time.sleep(0.02)
    assert "slow" in seen_stopping
    yield world, took
    world.close()


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("polite", 0.2, 4),
        ("slow", 2, 6),
        ("deaf", 2.5, 8),
        ("raw-2", 0.3, 5),
        ("raw-3", 0.6, 5),
        ("suspended", 0, 4),
        ("copy-mode", 0, 4),
        ("second-window", 0, 4),
        ("grouped", 0, 4),
        ("mess", 2, 8),
        ("backoff", 0, 4),
        ("over", 0, 4),
        ("timing-out", 0, 8),
    ],
)
def test_stop_takes_as_long_as_needed(
    stopped: tuple[World, dict[str, float]], name: str, least: float, most: float
) -> None:
    """A removed agent ends as soon as it can, well within its grace period, and one that will not is made to."""
    world, took = stopped
    assert least <= took[name] < most
    assert all(start.left() == {} for start in world.starts(name))
    assert name not in world.sessions()


def test_stop_disturbs_nobody(stopped: tuple[World, dict[str, float]]) -> None:
    """While others are stopped, an agent that stays in the card runs on undisturbed."""
    world, _ = stopped
    (start,) = world.starts("stays")
    assert lives(start.pid)
    assert start.events == []
    assert world.sessions() == ["stays"]


@pytest.mark.parametrize("name", ["polite", "slow", "mess", "suspended", "copy-mode", "second-window", "grouped"])
def test_cooked_gets_one_interrupt(stopped: tuple[World, dict[str, float]], name: str) -> None:
    """A program on a cooked terminal is interrupted once, so that its clean-up is not aborted."""
    (start,) = stopped[0].starts(name)
    assert [what for _, what in start.events if what in {"INT", "TERM"}] == ["INT"]


def test_forced_stop_asks_first(stopped: tuple[World, dict[str, float]]) -> None:
    """An agent that ignores the C-c is sent SIGTERM when its grace period is over, not before."""
    (start,) = stopped[0].starts("deaf")
    events = [(when, what) for when, what in start.events if what in {"INT", "TERM"}]
    assert [what for _, what in events] == ["INT", "TERM"]
    assert 0.4 < events[1][0] - events[0][0] < 2


def test_raw_gets_a_volley(stopped: tuple[World, dict[str, float]]) -> None:
    """A full-screen program that asks for further C-c within 0.8 s gets them."""
    for name, presses in ("raw-2", 2), ("raw-3", 3):
        (start,) = stopped[0].starts(name)
        assert [what for _, what in start.events] == ["C-c"] * presses


def test_launcher_killed(world: World) -> None:
    """A harness that outlives its killed launcher is ended before the next attempt begins."""
    deaf = {"IGNORE": "INT TERM HUP", "FORK": ALL_CHILDREN}
    world.write_card(
        world.agent("again", restart="on-failure", grace_period="100ms", env=deaf),
        world.agent("once", env=deaf),
    )
    world.start()
    starts = {name: world.wait_ready(name) for name in ("again", "once")}
    for start in starts.values():
        os.kill(start.launcher, signal.SIGKILL)
    again = world.wait_ready("again", 2)
    assert starts["again"].left() == {}
    assert lives(again.pid)
    once = world.wait_status("once", state="failed", reason="killed")
    assert once["exit"]["how"] == "killed"
    wait_for_none(starts["once"].left)
    assert starts["once"].left() == {}
    assert world.status("again")["restarts"] == 1


def test_killed_from_outside(world: World) -> None:
    """A harness, a shell or a session that somebody kills is an end like others; a restart makes what is missing."""
    names = ["harness", "shell", "session", "server"]
    world.write_card(*(world.agent(name, restart="on-failure") for name in names))
    world.start()
    first = {name: world.wait_ready(name) for name in names}
    os.kill(first["harness"].pid, signal.SIGKILL)
    world.wait_ready("harness", 2)
    shell = world.tmux("display-message", "-p", "-t", "=shell:", "#{pane_pid}").stdout
    os.kill(int(shell), signal.SIGKILL)
    world.wait_ready("shell", 2)
    world.tmux("kill-session", "-t", "=session:")
    world.wait_ready("session", 2)
    world.tmux("kill-server")
    for name, number in ("harness", 3), ("shell", 3), ("session", 3), ("server", 2):
        world.wait_ready(name, number, seconds=30)
    assert all(start.left() == {} for start in first.values())
    assert world.sessions() == sorted(names)


def test_restart_keeps_the_session(world: World) -> None:
    """A restart reuses the session: an attached admin stays attached."""
    world.write_card(world.agent("a", restart="on-failure", env={"EXIT": "1"}))
    world.start()
    first = world.wait_ready("a")
    ids = "#{session_id} #{pane_id} #{session_attached}"
    admin = subprocess.Popen(
        ["tmux", "-C", "-S", str(world.tmux_socket), "attach", "-t", "=a"],
        env=world.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        before = wait_for(
            lambda: (
                (shown := world.tmux("display-message", "-p", "-t", "=a:", ids).stdout.strip()).endswith(" 1") and shown
            ),
            "the attached admin",
        )
        os.kill(first.pid, signal.SIGTERM)
        world.wait_ready("a", 2)
        assert world.tmux("display-message", "-p", "-t", "=a:", ids).stdout.strip() == before
        assert admin.poll() is None
    finally:
        admin.kill()
        admin.communicate()


def test_missing_things_heal(world: World) -> None:
    """A missing workdir or program, or a foreign session of that name, is the reason, and heals by itself."""
    later = world.top / "later"
    world.write_card(
        world.agent("workdir", workdir=str(later / "work")),
        world.agent("binary", binary=str(later / "tool")),
        world.agent("on-path", binary="tool", env={"PATH": f"{later}:{world.env['PATH']}"}),
        world.agent("taken", session="mine"),
        world.agent("late-prompt", prompt_file=str(later / "prompt")),
    )
    world.spawn()
    wait_for(lambda: world.tmux("has-session", check=False).returncode == 0, "the tmux server")
    world.wait_api()
    for name, reason in ("workdir", "workdir_missing"), ("binary", "binary_missing"), ("on-path", "binary_missing"):
        status = world.wait_status(name, state="waiting", reason=reason)
        assert str(later) in status["error"]
        assert status["restarts"] == 0
    assert str(later / "prompt") in world.wait_status("late-prompt", state="waiting", reason="prompt_file")["error"]
    (later / "work").mkdir(parents=True)
    world.put_program(later / "tool")
    (later / "prompt").write_text("  the prompt\n")
    world.look()
    for name in "workdir", "binary", "on-path", "late-prompt":
        start = world.wait_ready(name)
        status = world.status(name)
        assert (status["state"], status["restarts"], "error" in status) == ("running", 0, False)
    assert world.starts("late-prompt")[0].argv == ["agent", "the prompt"]
    (start,) = world.starts("workdir")
    assert start.cwd == os.path.realpath(later / "work")
    # What vanishes later stops nothing that runs.
    (later / "prompt").unlink()
    (later / "tool").unlink()
    world.look()
    world.wait_log("looks again")
    assert world.status("late-prompt")["state"] == "running"


def test_foreign_session(world: World) -> None:
    """A session of that name that agentd did not make is never touched: the agent waits until it is gone."""
    world.write_card()
    world.start()
    world.tmux("new-session", "-d", "-s", "mine", "exec sleep 1000")
    pid = int(world.tmux("display-message", "-p", "-t", "=mine:", "#{pane_pid}").stdout)
    world.write_card(world.agent("a", session="mine"))
    world.look()
    status = world.wait_status("a", state="waiting", reason="session_taken")
    assert "kill-session" in status["error"]
    assert lives(pid)
    world.tmux("kill-session", "-t", "=mine")
    world.look()
    world.wait_ready("a")
    assert "error" not in world.status("a")


def test_foreign_session_survives(world: World) -> None:
    """A clean stop ends the server only if nobody else has a session in it."""
    world.write_card(world.agent("a"))
    world.start()
    world.wait_ready("a")
    world.tmux("new-session", "-d", "-s", "mine", "exec sleep 1000")
    assert world.stop() == 0
    assert world.sessions() == ["mine"]
    world.tmux("kill-server")


def test_stop_while_starting(world: World) -> None:
    """A stop in the middle of the launches ends them at once, and leaves nothing."""
    (world.home / ".bash_profile").write_text("sleep 60\n")
    (world.home / ".profile").write_text("sleep 60\n")
    world.write_card(*(world.agent(f"a{number}", grace_period="20s") for number in range(12)))
    world.start()
    wait_for(lambda: sum(status["state"] == "starting" for status in world.agents().values()) == 8, "the launches")
    began = time.monotonic()
    assert world.stop() == 0
    assert time.monotonic() - began < 8
    assert not list(world.records.iterdir())


def test_second_signal_hurries(world: World) -> None:
    """The API says stopping while a slow agent stops; a second SIGTERM ends the waiting, with exit code 0."""
    world.write_card(world.agent("a", grace_period="1h", env={"IGNORE": "INT TERM HUP", "FORK": "ignorer"}))
    world.start()
    start = world.wait_ready("a")
    world.signal(signal.SIGTERM)
    status = world.wait_status("a", state="stopping", reason="shutdown")
    assert (status["wanted"], status["running"]) == ("stopped", True)
    assert world.get("/v1/health").json["state"] == "stopping"
    began = time.monotonic()
    assert world.stop() == 0
    assert time.monotonic() - began < 8
    assert start.left() == {}


def test_stop_is_parallel(world: World) -> None:
    """Twenty agents that take half a second each are stopped in little more than that."""
    names = [f"a{number}" for number in range(20)]
    world.write_card(*(world.agent(name, grace_period="20s", env={"LINGER": "0.5"}) for name in names))
    world.start()
    starts = [world.wait_ready(name) for name in names]
    began = time.monotonic()
    assert world.stop() == 0
    assert time.monotonic() - began < 6
    assert all(start.left() == {} for start in starts)


def test_a_forced_timeout_leaves_no_files(world: World) -> None:
    """An agent that its timeout had to kill has its shell still, but no descriptor and no directory of agentd's."""
    world.write_card(world.agent("a", timeout="1s", grace_period="300ms", env={"IGNORE": "INT"}))
    world.start()
    assert world.process is not None
    world.wait_ready("a")
    world.wait_status("a", state="failed", reason="timed_out")
    assert wait_for_none(lambda: [path for path in world.run_dir.iterdir() if path.is_dir()]) == []
    assert wait_for_none(partial(_open_lifelines, world.process.pid)) == []


def _open_lifelines(pid: int) -> list[str]:
    """The lifelines that a process has open."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # others come and go meanwhile
            found.append(str(descriptor.readlink()))
    return [path for path in found if "lifeline" in path]
