"""agentd ends with -keep-agents, and the next one, of another release perhaps, goes on with its agents."""

import os
import signal

from tests.e2e.outside import Start, World, lives, wait_for

KEEP = "-keep-agents"


def _events(start: Start) -> list[str]:
    return [what for _, what in start.events]


def test_agents_are_kept(world: World) -> None:
    """A clean end takes agentd's own socket and connection away, nothing else; the next one has every agent again."""
    world.write_card(
        world.agent("runs", restart="always", env={"FORK": "setsid daemon"}),
        world.agent("done", env={"AFTER": "0"}),
        world.agent("waits", workdir=str(world.top / "missing")),
    )
    world.start(KEEP)
    first = world.wait_ready("runs")
    world.wait_status("done", state="completed")
    before = {name: world.status(name) for name in ("runs", "done")}
    assert world.stop() == 0
    assert not world.api_socket.exists()
    assert (lives(first.pid), _events(first), world.sessions()) == (True, [], ["done", "runs", "waits"])
    assert world.tmux("list-clients").stdout == ""
    world.start(KEEP)
    assert {name: world.status(name) for name in before} == before
    world.wait_status("waits", state="waiting", reason="workdir_missing")
    os.kill(first.pid, signal.SIGTERM)
    world.wait_ready("runs", 2)
    assert world.status("runs")["restarts"] == 1
    assert first.left() == {}
    # Without the flag, an end is what it always was: nothing is left, as the world's end sees.
    assert world.stop() == 0
    world.start()
    assert (len(world.starts("runs")), len(world.starts("done"))) == (2, 1)


def test_what_happens_in_between(world: World) -> None:
    """An exit while no agentd is there is known with its code, and an edit is applied, by the next one."""
    world.write_card(world.agent("a", restart="on-failure", env={"EXIT": "3"}), world.agent("b"), world.agent("c"))
    world.start(KEEP)
    first, second, third = (world.wait_ready(name) for name in "abc")
    assert world.stop() == 0
    os.kill(first.pid, signal.SIGINT)
    wait_for(lambda: not lives(first.launcher), "its end")
    world.write_card(world.agent("a", restart="on-failure", env={"EXIT": "3"}), world.agent("b", env={"RUN": "2"}))
    world.start()
    world.wait_ready("a", 2)
    assert (world.status("a")["restarts"], world.status("a")["exit"]["code"]) == (1, 3)
    world.wait_ready("b", 2)
    wait_for(lambda: not lives(third.pid), "the end of who is not in the card any more")
    assert (_events(second), _events(third)) == (["INT"], ["INT"])


def test_a_stop_under_way(world: World) -> None:
    """Who is being stopped for an edit when agentd ends has the grace period; a second signal does not wait for it."""
    world.write_card(world.agent("slow", grace_period="30s", env={"IGNORE": "INT"}), world.agent("a"))
    world.start(KEEP)
    slow, other = world.wait_ready("slow"), world.wait_ready("a")
    world.write_card(world.agent("a"))
    wait_for(lambda: _events(slow) == ["INT"], "the C-c")
    world.signal(signal.SIGTERM)
    wait_for(lambda: world.get("/v1/health").json["state"] == "stopping", "the stop")
    assert lives(slow.pid)
    assert world.stop() == 0  # the second SIGTERM
    assert (slow.left(), _events(other), world.sessions()) == ({}, [], ["a"])
    world.start()
    assert world.wait_ready("a").pid == other.pid


def test_without_agents_nothing_stays(world: World) -> None:
    """Where there is no agent to keep, the tmux server ends as always."""
    world.write_card_text("mixtape = 'a card that wants no agents'\n")
    world.start(KEEP)
    assert world.stop() == 0
    assert world.tmux("list-sessions", check=False).returncode != 0
