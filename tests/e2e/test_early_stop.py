"""agentd is stopped before it is connected to tmux, or before it even listens to signals."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.e2e.outside import PATIENCE, World, processes_with, wait_for


def _put_tmux(world: World, *lines: str) -> Path:
    """Have agentd find a tmux that does this first, and goes on once the file that is returned is there."""
    gate, real = world.top / "gate", shutil.which("tmux")
    fake = world.put_program(world.home / "tmux")
    wait = f"touch {world.top}/asked; while ! [ -e {gate} ]; do sleep 0.02; done"
    fake.write_text("\n".join(("#!/bin/sh", *lines, wait, f'exec {real} "$@"')))
    world.env["PATH"] = f"{world.home}:{world.env['PATH']}"
    return gate


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("left", [False, True], ids=["ours", "left"])
def test_stop_while_tmux_starts(world: World, count: int, left: bool) -> None:
    """However often agentd is told to stop while it starts tmux, it ends the server that it has started.

    But one in which there are agents that it has not looked at is left alone.
    """
    real = shutil.which("tmux")
    server = f"{real} -f /dev/null -S {world.tmux_socket}"
    only = f"case $1 in -V) exec {real} -V;; esac"
    start = f"{server} new-session -d -s _agentd sleep infinity; {server} set-option -s exit-empty off"
    gate = _put_tmux(world, only, start)
    if left:
        world.tmux("new-session", "-d", "-s", "somebody", "sleep infinity")
    world.write_card(world.agent("a"))
    world.spawn()
    wait_for((world.top / "asked").exists, "the connection under way")
    for number in range(1, count + 1):
        world.signal(signal.SIGTERM)
        if number < 3:
            wait_for(lambda: world.log.count("SIGTERM") >= number, "the signal")  # noqa: B023 - used at once
    gate.touch()
    assert world.process is not None
    assert world.process.wait(PATIENCE) == 0
    assert world.starts("a") == []
    assert world.sessions() == ["somebody"] * left
    if left:
        world.tmux("kill-server")


@pytest.mark.parametrize("count", [1, 2])
def test_stop_while_tmux_cannot_be_had(world: World, count: int) -> None:
    """agentd that was told to stop does so cleanly, though it would have failed for want of tmux."""
    _put_tmux(world, "case $1 in -V) echo tmux 3.3a; exit;; esac", f"touch {world.top}/asked; exit 1")
    world.spawn()
    wait_for((world.top / "asked").exists, "the first failure")
    for _ in range(count):
        world.signal(signal.SIGTERM)
    assert world.process is not None
    assert world.process.wait(PATIENCE) == 0
    assert "ERROR" not in world.log
    assert world.log_lines[-1].endswith(" stopped")
    world.env["PATH"] = world.env["PATH"].partition(":")[2]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 1)])
def test_stop_before_anything_is_started(world: World, number: signal.Signals, code: int) -> None:
    """A signal that comes before agentd listens ends it at once, and nothing is left.

    By SIGTERM it dies as any program does: who supervises it takes that for a clean end, as systemd does.
    """
    gate = _put_tmux(world)  # asked for its version before the imports
    world.write_card(world.agent("a"))
    world.spawn()
    wait_for((world.top / "asked").exists, "the question for the version")
    process, world.process = world.process, None
    assert process is not None
    process.send_signal(number)
    if number == signal.SIGINT:
        gate.touch()  # Python waits for what it has called
    assert process.wait(PATIENCE) == code
    gate.touch()
    wait_for(lambda: not processes_with(os.fspath(world.top)), "the end of the question")
    assert not world.tmux_socket.exists()
    assert not world.api_socket.exists()
    assert world.starts("a") == []


def test_reload_before_anything_is_started(world: World) -> None:
    """A SIGHUP that comes before agentd listens asks for nothing: the first look is still to come."""
    gate = _put_tmux(world)
    world.write_card(world.agent("a"))
    world.spawn()
    wait_for((world.top / "asked").exists, "the question for the version")
    world.look()
    gate.touch()
    world.wait_api()
    world.wait_ready("a")
