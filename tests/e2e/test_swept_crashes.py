"""agentd is killed at each of its steps in turn, and the next one brings everything to the end that it would have had.

There are some 600, which take an hour, so a few of them are tried each time: the others, or all, with
AGENTD_CRASHES=FIRST:LAST:STRIDE.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.e2e.outside import PATIENCE, Start, World, lives, own_user, wait_for

_FIRST, _LAST, _STRIDE = map(int, os.environ.get("AGENTD_CRASHES", "34:600:97").split(":"))


class Play:
    """Agents at all stages of their lives, an edit of the card, and a stop; as far as agentd lives to see it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.edited = self.stopped = False

    def write(self) -> None:
        """Write the card as it is first, or once it was edited."""
        agent, lasting = self.world.agent, {"restart": "always", "restart_delay_max": "50ms"}
        agents = [
            agent("stays", **lasting, env={"EXIT": "137"}),
            agent("changes", **lasting, env={"LINGER": "0.1", "RUN": "2" if self.edited else "1"}),
            agent("once", env={"AFTER": "0.1", "FORK": "setsid"}),
            agent("thrice", restart="on-failure", max_restarts=2, env={"AFTER": "0.1", "EXIT": "1"}),
            agent("late", timeout="1500ms", restart="always"),
        ]
        if not self.edited:
            agents.append(agent("goes", grace_period="200ms", env={"IGNORE": "INT HUP", "FORK": "ignorer"}))
        self.world.write_card(*agents)

    def edit(self) -> None:
        """Edit the card."""
        self.edited = True
        self.write()

    def spawn(self, last: int) -> None:
        """Start an agentd that lives for so many steps."""
        command = self.world.command()
        flags = command[next(number for number, word in enumerate(command) if word == "-config") :]
        with self.world.log_file.open("ab") as log:
            self.world.process = subprocess.Popen(
                [
                    sys.executable,
                    str(Path(__file__).with_name("killed.py")),
                    str(last),
                    *flags,
                    "-agent-user",
                    own_user(),
                ],
                env=self.world.env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def go_on(self) -> bool:
        """Play until agentd is dead, or the play is over; return whether it was killed."""
        assert self.world.process is not None
        if self._comes(self._first_act):
            self.edit()
            self.world.look()
            if self._comes(self._second_act):
                self.stopped = True
                self.world.signal(signal.SIGTERM)
        return self.world.process.wait(PATIENCE) == -signal.SIGKILL

    def _comes(self, what: Callable[[], bool]) -> bool:
        process = self.world.process
        assert process is not None
        wait_for(lambda: process.poll() is not None or what(), str(what))
        return process.poll() is None

    def _state(self, name: str) -> tuple[str, str | None]:
        with suppress(OSError, HTTPException, KeyError, ValueError):
            status = self.world.status(name)
            return status["state"], status["reason"]
        return "", None

    def living(self, name: str) -> list[Start]:
        """The starts of an agent that live."""
        return [one for one in self.world.starts(name) if one.is_ready() and lives(one.pid)]

    def _first_act(self) -> bool:
        return (
            all(self._state(name)[0] == "running" for name in ("stays", "changes"))
            and self._state("once")[0] == "completed"
            and all(self._state(name)[0] == "failed" for name in ("thrice", "late"))
        )

    def _second_act(self) -> bool:
        with suppress(OSError, HTTPException, ValueError):
            gone = "goes" not in self.world.agents()
            return gone and any(one.env["RUN"] == "2" for one in self.living("changes"))
        return False


@pytest.mark.parametrize("last", range(_FIRST, _LAST, _STRIDE))
def test_killed_at_a_step(world: World, last: int) -> None:
    """Whatever agentd was about when it was killed: who lives goes on, what ended is known, nothing is doubled or lost.

    The card may change meanwhile, or be invalid for a while, an agent may end, the next agentd may be killed, too.
    """
    play = Play(world)
    play.write()
    play.spawn(last)
    if not play.go_on():
        return  # it has no more steps than that
    if last % 7 < 3:
        play.spawn(last % 61)  # it is killed while it takes over
        assert world.process is not None
        with suppress(subprocess.TimeoutExpired):
            world.process.wait(2)
        world.crash()
    lived, ended = play.living("stays"), False
    if not play.stopped and lived and last % 3 == 0:
        os.kill(lived[0].pid, signal.SIGINT)
        wait_for(lambda: not lives(lived[0].launcher), "the end of the launcher")
        ended = True
    if last % 11 < 2:
        _without_a_card(world, play)
    if last % 5 < 2 and not play.edited:
        play.edit()
    world.start()
    if not play.edited:
        play.edit()
        world.look()
    _converges(world, play, lived, ended=ended)


def _without_a_card(world: World, play: Play) -> None:
    """Whatever lives, lives on for as long as there is no valid card."""
    before = {one.pid for name in ("stays", "changes", "goes") for one in play.living(name)}
    world.write_card_text("[[agents]\n")
    world.start()
    assert all(map(lives, before))
    assert world.stop() == 0
    assert all(map(lives, before))
    play.write()


def _converges(world: World, play: Play, lived: list[Start], *, ended: bool) -> None:
    """Everything comes to the end that the card wants, and nobody had more starts than it allows."""
    wait_for(lambda: "goes" not in world.agents(), "the removal")
    stays = world.wait_status("stays", state="running")
    wait_for(lambda: [one.env["RUN"] for one in play.living("changes")] == ["2"], "the changed agent")
    world.wait_status("changes", state="running", pid=play.living("changes")[0].pid)
    once = world.wait_status("once", state="completed")
    thrice = world.wait_status("thrice", state="failed")
    late = world.wait_status("late", state="failed")
    assert world.starts("goes") == [] or all(one.left() == {} for one in world.starts("goes"))
    assert once["exit"]["code"] == 0
    assert (thrice["reason"], thrice["restarts"], thrice["exit"]["code"]) == ("restarts_exhausted", 2, 1)
    assert late["reason"] == "timed_out"
    if play.stopped:
        return  # what was stopped already, and forgotten, began anew
    assert (len(world.starts("once")), len(world.starts("thrice"))) == (1, 3)
    assert len(world.starts("late")) <= 1
    if ended:
        assert (stays["restarts"], stays["exit"]["code"], len(world.starts("stays"))) == (1, 137, 2)
    else:
        assert stays["restarts"] == 0
        assert (
            [one.pid for one in play.living("stays")]
            == [stays["pid"]]
            == [one.pid for one in lived or play.living("stays")]
        )
