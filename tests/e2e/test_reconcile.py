import os
import signal
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.e2e.outside import World, lives, wait_for

TICK = 5
"""Seconds between two looks that nobody asks for."""
MASTERBLASTER = """
mixtape = "coder"
name = "box"

[resources]
cpus = 4
memory = "8GiB"

[network]
mode = "nat"
egress_allow = ["a.example"]

[[shared]]
host = "./"
guest = "/workspace"

[secrets]
TOKEN = "${TOKEN}"

"""


@pytest.fixture(scope="module")
def steady() -> Iterator[World]:
    """One agentd with one agent that nothing in these tests may disturb."""
    world = World()
    (world.secrets / "TOKEN").write_text("one")
    world.write_card_text(MASTERBLASTER + _card_text(world))
    world.start()
    world.wait_ready("a")
    yield world
    world.stop()
    (start,) = world.starts("a")
    events = [what for _, what in start.events]
    world.close()
    assert events == ["INT"]


def _card_text(world: World, **keys: object) -> str:
    world.write_card(world.agent("a", **{"env": {"TOKEN": "the card's"}, **keys}))
    return world.card.read_text()


def _wait_error(world: World, part: str | None) -> None:
    """Wait for a card error with that in it, or for the end of all, and see that the agent did not notice."""
    wait_for(lambda: (part or "None") in str(world.get("/v1/health").json.get("card_error")), f"the card error {part}")
    _assert_undisturbed(world)


def _assert_undisturbed(world: World) -> None:
    (start,) = world.starts("a")
    assert (world.status("a")["pid"], len(world.starts("a"))) == (start.pid, 1)
    assert lives(start.pid)


def test_masterblaster_card(steady: World) -> None:
    """A whole masterblaster card loads: everything that is not about agents is ignored."""
    assert steady.status("a")["running"]
    assert "card_error" not in steady.get("/v1/health").json


def test_irrelevant_edits(steady: World) -> None:
    """Comments, order, unknown keys, other sections and a secret that the card overrides change nothing."""
    text = _card_text(steady)
    (steady.secrets / "TOKEN").write_text("two")
    steady.write_card_text(
        f"# a comment\n{text.replace('grace_period', 'nobody_knows = 1 # why' + chr(10) + 'grace_period')}"
        "[other]\nx=1\n"
    )
    # The warning is published in the same breath as what comes of the look.
    wait_for(lambda: "nobody_knows" in str(steady.get("/v1/health").json["warnings"]), "the warning")
    _assert_undisturbed(steady)
    _card_text(steady)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "the card is blank"),
        ("  \n", "the card is blank"),
        ("agents = 1", "agents: "),
        ("[[agents]\n", "line 1"),
        ("[agent]\nharness = 'nobody'\n", "agent.harness: "),
        ("\xff\x00", "NUL"),
    ],
)
def test_bad_card(steady: World, text: str, error: str) -> None:
    """An invalid, blank or torn card stops nothing; it is an error in health while it lasts."""
    steady.write_card_text(text)
    _wait_error(steady, error)
    _card_text(steady)
    _wait_error(steady, None)
    assert "card_error" not in steady.get("/v1/health").json


def test_missing_card(steady: World) -> None:
    """A missing card stops nothing; health says so while it lasts, and the log once."""
    steady.card.unlink()
    _wait_error(steady, "the card is missing")
    _look(steady)
    _look(steady)
    assert steady.get("/v1/health").json["card_error"] == "the card is missing"
    assert sum("the card is missing" in line for line in steady.log_lines) == 1
    _card_text(steady)
    _wait_error(steady, None)


def test_invalid_card_logged_once(steady: World) -> None:
    """An invalid card is one error in the log, however long it lasts."""
    steady.write_card_text("[[agents]]\nharness = 'nobody-at-all'\n")
    _wait_error(steady, "nobody-at-all")
    _look(steady)
    _look(steady)
    assert sum("nobody-at-all" in line for line in steady.log_lines) == 1
    _card_text(steady)
    _wait_error(steady, None)


def _look(world: World) -> None:
    """Have agentd look, and return when it has: a new warning tells that."""
    name = f"not-a-name-{len(list(world.secrets.iterdir()))}"
    (world.secrets / name).touch()
    world.look()
    wait_for(lambda: name in str(world.get("/v1/health").json["warnings"]), "the look")
    _assert_undisturbed(world)


def test_bad_card_from_the_start(world: World) -> None:
    """With an invalid card from the start agentd runs, says what is wrong, and starts what the mended one wants."""
    world.write_card_text("[agent]\nharness = 'claud-code'\n")
    world.start()
    assert world.get("/v1/agents").json == []
    assert "claude-code" in world.get("/v1/health").json["card_error"]
    world.write_card(world.agent("a"))
    world.look()
    world.wait_ready("a")


def test_edits_within_a_second(world: World) -> None:
    """An edit is acted on within a second: changed agents relaunch, new ones start, others end."""
    world.write_card(*(world.agent(name, prompt="one") for name in ("changed", "same", "gone")))
    world.start()
    first = {name: world.wait_ready(name) for name in ("changed", "same", "gone")}
    began = time.time()
    world.write_card(
        world.agent("changed", prompt="two"), world.agent("same", prompt="one"), world.agent("new", prompt="one")
    )
    second = world.wait_ready("changed", 2)
    world.wait_ready("new")
    wait_for(lambda: "gone" not in world.agents(), "the end of gone")
    assert second.argv == ["agent", "two"]
    assert world.status("changed")["restarts"] == 0
    ((when, what),) = first["changed"].events
    assert (what, when - began < TICK / 2) == ("INT", True), "half a second, and no tick"
    assert lives(first["same"].pid)
    assert len(world.starts("same")) == 1
    assert world.sessions() == ["changed", "new", "same"]
    assert list(world.agents()) == ["changed", "same", "new"]


def test_hangup_looks_at_once(world: World) -> None:
    """SIGHUP has agentd look at once: at the card, a prompt file and the secrets."""
    prompt = world.top / "prompt"
    prompt.write_text("one\n")
    world.write_card(world.agent("a", prompt_file=str(prompt)))
    world.start()
    world.wait_ready("a")
    prompt.write_text("two\n")
    world.look()
    assert world.wait_ready("a", 2).argv == ["agent", "two"]
    times = [time.monotonic()]
    (world.secrets / "VALUE").write_text("t")
    world.look()
    assert world.wait_ready("a", 3).env["VALUE"] == "t"
    times.append(time.monotonic())
    world.write_card(world.agent("a", prompt_file=str(prompt), args=["x"]))
    world.look()
    assert world.wait_ready("a", 4).argv == ["agent", "x", "two"]
    times.append(time.monotonic())
    # By the clock alone each of these would take a whole tick.
    assert min(later - earlier for earlier, later in pairwise(times)) < TICK / 2


def test_ended_agent_runs_again_when_changed(world: World) -> None:
    """An agent that has ended is launched again when its entry changes, and only then."""
    world.write_card(world.agent("a", env={"AFTER": "0"}))
    world.start()
    world.wait_status("a", state="completed")
    world.look()
    world.write_card(world.agent("a", env={"AFTER": "0", "RUN": "2"}))
    world.look()
    wait_for(lambda: len(world.starts("a")) == 2, "the second start")
    world.wait_status("a", state="completed", attempt=1, restarts=0)
    assert len(world.starts("a")) == 2


def test_last_agents_go(world: World) -> None:
    """A card without agents means that none are wanted."""
    world.write_card(world.agent("a"), world.agent("b", env={"AFTER": "0"}))
    world.start()
    start = world.wait_ready("a")
    world.wait_status("b", state="completed")
    world.write_card_text("[resources]\ncpus = 1\n")
    world.look()
    wait_for(lambda: world.get("/v1/agents").json == [], "the end of all")
    assert start.left() == {}
    assert world.sessions() == []


def test_slow_stop_delays_nobody(world: World) -> None:
    """While one changed agent takes its time to stop, the others are relaunched; its successor waits for it."""
    slow = {"grace_period": "1h", "env": {"IGNORE": "INT"}}
    world.write_card(world.agent("slow", **slow), world.agent("fast"))
    world.start()
    first = world.wait_ready("slow")
    world.wait_ready("fast")
    world.write_card(world.agent("slow", args=["x"], **slow), world.agent("fast", args=["x"]))
    world.look()
    world.wait_ready("fast", 2)
    assert world.status("slow")["state"] == "stopping"
    world.write_card(world.agent("slow", args=["y"]), world.agent("fast", args=["y"]))
    world.look()
    world.wait_ready("fast", 3)
    assert world.status("slow")["state"] == "stopping"
    assert lives(first.pid)
    os.kill(first.pid, signal.SIGKILL)
    assert world.wait_ready("slow", 2).argv == ["agent", "y"]


def test_session_is_handed_over(world: World) -> None:
    """A session's name goes from one agent to another when the first one has ended."""
    world.write_card(world.agent("old", session="s", env={"LINGER": "0.5"}))
    world.start()
    old = world.wait_ready("old")
    world.write_card(world.agent("new", session="s"))
    world.look()
    world.wait_ready("new")
    assert old.left() == {}
    assert world.sessions() == ["s"]
    assert list(world.agents()) == ["new"]
