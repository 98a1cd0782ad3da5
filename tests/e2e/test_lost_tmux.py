"""The tmux server, sessions, panes, agentd's client or the socket go, or stand still: told apart, and recovered."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.e2e.outside import NOBODY, Start, World, halted, lives, wait_for

HUP = {"IGNORE": "HUP"}


def _name(start: Start) -> str:
    return start.path.parent.name


def _kill_server(world: World, _start: Start) -> None:
    world.tmux("kill-server")


def _kill_server_hard(world: World, _start: Start) -> None:
    os.kill(world.server(), signal.SIGKILL)


def _kill_session(world: World, start: Start) -> None:
    world.tmux("kill-session", "-t", f"={_name(start)}")


def _kill_pane(world: World, start: Start) -> None:
    world.tmux("new-window", "-d", "-t", f"={_name(start)}:", "sleep 1000")
    world.tmux("kill-pane", "-t", f"={_name(start)}:0.0")


def _kill_shell(world: World, start: Start) -> None:
    os.kill(int(world.tmux("display-message", "-p", "-t", f"={_name(start)}:", "#{pane_pid}").stdout), signal.SIGKILL)


def _kill_launcher(_world: World, start: Start) -> None:
    os.kill(start.launcher, signal.SIGKILL)


def _kill_harness(_world: World, start: Start) -> None:
    os.kill(start.pid, signal.SIGHUP)


_KILLS: dict[str, tuple[Callable[[World, Start], None], str]] = {
    "session": (_kill_session, "Was ended by SIGHUP (its tmux session is gone)"),
    "pane": (_kill_pane, "Was ended by SIGHUP (its tmux pane was closed)"),
    "shell": (_kill_shell, "Was ended by SIGHUP (its shell has ended)"),
    "launcher": (_kill_launcher, "Was killed (its launcher was killed)"),
    "harness": (_kill_harness, "Was ended by SIGHUP;"),
}
_AWAY = {
    # What the launcher leaves in a session has gone with it; and a session without its pane is a left-over.
    "session": "Was killed (its tmux session is gone)",
    "pane": "Was killed (its tmux session is gone)",
}


@pytest.mark.parametrize("away", [False, True], ids=["here", "away"])
def test_told_apart(world: World, away: bool) -> None:
    """What took an agent's terminal away is in its message and in the log, also if agentd was not there to see it.

    The policy then has it run again, in a session of its name.
    """
    world.write_card(*(world.agent(name, restart="on-failure", restart_delay_max="1s") for name in _KILLS))
    world.start()
    starts = {name: world.wait_ready(name) for name in _KILLS}
    if away:
        world.crash()
    for name, (kill, _) in _KILLS.items():
        kill(world, starts[name])
    if away:
        wait_for(lambda: not any(lives(start.launcher) for start in starts.values()), "the end of the launchers")
        world.start()
    for name, (_, words) in _KILLS.items():
        line = world.wait_log(f"agent={name} wanted=running state=backoff")
        assert (_AWAY.get(name, words) if away else words) in line
        world.wait_ready(name, 2)
        assert world.status(name)["restarts"] == 1
    assert world.sessions() == sorted(_KILLS)
    assert all(start.left() == {} for start in starts.values())


@pytest.mark.parametrize("kill", [_kill_server, _kill_server_hard])
@pytest.mark.parametrize("away", [False, True], ids=["here", "away"])
def test_lost_server(world: World, kill: Callable[[World, Start], None], away: bool) -> None:
    """That the whole tmux server is gone is told as that, and everybody runs again on a new one, by policy."""
    agents = ["a", "b"]
    world.write_card(*(world.agent(name, restart="on-failure", restart_delay_max="1s") for name in agents))
    world.start()
    starts = [world.wait_ready(name) for name in agents]
    if away:
        world.crash()
    kill(world, starts[0])
    if away:
        wait_for(lambda: not any(lives(start.launcher) for start in starts), "the end of the launchers")
        world.start()
    how = "killed" if away else "ended by SIGHUP"
    for name in agents:
        assert f"Was {how} (the tmux server is gone)" in world.wait_log(f"agent={name} wanted=running state=backoff")
        world.wait_ready(name, 2)
    if not away:
        world.wait_log("lost the connection to tmux")


@pytest.mark.parametrize("kill", [_kill_server, _kill_server_hard])
def test_never_doubled(world: World, kill: Callable[[World, Start], None]) -> None:
    """A harness that ignores the hang-up, with all that it has started, is gone before the next attempt begins.

    Where it has only lost its terminal it goes on; without its launcher, nobody could tell its end any more.
    """
    kills = {name: _KILLS[name][0] for name in ("session", "pane", "shell", "launcher")} | {"server": kill}
    env = {"IGNORE": "HUP", "FORK": "setsid nohup daemon"}
    world.write_card(*(world.agent(name, restart="always", env=env) for name in kills))
    world.start()
    starts = {name: world.wait_ready(name) for name in kills}
    for name, start in starts.items():
        kills[name](world, start)
        if name not in {"launcher", "server"}:
            wait_for(lambda: "HUP" in [what for _, what in start.events], "the hang-up")  # noqa: B023 - used at once
            assert world.status(name)["pid"] == start.pid
    for start in starts.values():
        with suppress(ProcessLookupError):
            os.kill(start.launcher, signal.SIGKILL)
    for name, start in starts.items():
        world.wait_ready(name, 2)
        assert start.left() == {}
        assert world.status(name)["restarts"] == 1
    assert world.sessions() == sorted(kills)


# agentd's client


@pytest.mark.parametrize("signals", [("STOP",), ("KILL",), ("STOP", "KILL")])
def test_signalled_client(world: World, signals: tuple[str, ...]) -> None:
    """An agent that stops or kills agentd's client is no end of anybody, and soon agentd can do everything again."""
    world.write_card(world.agent("a"))
    world.start()
    first, client = world.wait_ready("a"), world.client()
    world.type("a", "x")  # anything: the harness does not read
    for name in signals:
        os.kill(client, signal.Signals[f"SIG{name}"])
    world.write_card(world.agent("a"), world.agent("b"))
    world.look()
    second = world.wait_ready("b")
    assert (world.status("a")["pid"], world.status("a")["restarts"], first.events) == (first.pid, 0, [])
    if "KILL" in signals:
        world.wait_log("lost the connection to tmux")
    world.write_card_text(NOBODY)
    world.look()
    for start in (first, second):
        wait_for(lambda: not lives(start.pid), "its end")  # noqa: B023 - used at once
        assert [what for _, what in start.events] == ["INT"]


def test_deleted_socket(world: World) -> None:
    """A socket that somebody deletes is no end of anybody, is said, and is there again for admins."""
    world.write_card(world.agent("a"))
    world.start()
    first, server = world.wait_ready("a"), world.server()
    world.tmux_socket.unlink()
    wait_for(world.tmux_socket.exists, "the socket")
    world.wait_log("was deleted")
    assert world.server() == server
    assert (world.status("a")["pid"], first.events) == (first.pid, [])


# A server that stands still


@pytest.mark.parametrize("how", ["removed", "shutdown", "twice"])
def test_stop_while_the_server_stands_still(world: World, how: str) -> None:
    """A stop takes little more than the grace period, and nothing of it is left when the server goes on.

    agentd itself has the server go on at its end.
    """
    world.write_card(world.agent("a", grace_period="1s", env={"IGNORE": "INT", "FORK": "setsid"}))
    world.start()
    first = world.wait_ready("a")
    with halted(world.server()):
        began = time.monotonic()
        if how == "removed":
            world.write_card_text(NOBODY)
            world.look()
            world.wait_gone("a", seconds=8)
            assert first.left() == {}
        else:
            world.signal(signal.SIGTERM)
            if how == "twice":
                wait_for(lambda: "INT" in [what for _, what in first.events], "the stop")
                world.signal(signal.SIGTERM)
            assert world.stop() == 0
            assert time.monotonic() - began < 8
    wait_for(lambda: world.sessions() == [], "the end of its session")
    assert first.left() == {}


def test_stop_without_a_server(world: World) -> None:
    """A stop waits for no tmux server that is gone and cannot be had again."""
    fake, real = world.put_program(world.home / "tmux"), shutil.which("tmux")
    fake.write_text(f'#!/bin/sh\n[ -e {world.top}/gone ] && exit 1\nexec {real} "$@"\n')
    world.env["PATH"] = f"{world.home}:{world.env['PATH']}"
    world.write_card(world.agent("a", grace_period="30s", env={"PATH": f"{world.bin}:{os.environ['PATH']}", **HUP}))
    world.start()
    first = world.wait_ready("a")
    (world.top / "gone").touch()
    server = world.server()
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: "HUP" in [what for _, what in first.events], "the hang-up")
    began = time.monotonic()
    assert world.stop() == 0
    assert time.monotonic() - began < 9
    assert first.left() == {}
    (world.top / "gone").unlink()


def _numbered(world: World, name: str, number: int) -> Start:
    start = Start(world.records / name / str(number))
    wait_for(start.is_ready, f"start {number} of {name}")
    return start


def test_an_end_while_the_server_stands_still(world: World) -> None:
    """What ends meanwhile is known with its code, also by an agentd that comes only then; nobody else is dead."""
    world.write_card(
        world.agent("ends", restart="on-failure", restart_delay_max="50ms", env={"EXIT": "3"}), world.agent("stays")
    )
    world.start()
    ends, stays = world.wait_ready("ends"), world.wait_ready("stays")
    ask = ("display-message", "-p", "-t", "=ends:", "#{session_id} #{pane_id}")
    session = world.tmux(*ask).stdout
    with halted(world.server()):
        os.kill(ends.pid, signal.SIGINT)
        world.wait_status("ends", running=False, reason="code", seconds=3)
        world.wait_status("ends", state="waiting", reason="tmux_unavailable", seconds=8)
        assert "is stopped" in world.status("ends")["message"]
        attempt = world.status("ends")["attempt"]
        card = world.card.read_text()
        for text in ("agents = 1\n", card, "agents = 1\n", card):  # a look for each, at which it is not tried again
            world.write_card_text(text)
            wait_for(lambda: ("card_error" not in world.get("/v1/health").json) == (text == card), "a look")  # noqa: B023
        assert world.status("ends")["attempt"] == attempt
        world.wait_log("is stopped: agents go on")
    world.wait_ready("ends", 2)
    world.wait_log("goes on")
    status = world.status("ends")
    assert (status["exit"]["code"], status["restarts"]) == (3, 1)
    assert (world.status("stays")["pid"], stays.events) == (stays.pid, [])
    assert world.tmux(*ask).stdout == session
