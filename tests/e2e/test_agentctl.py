import json
import os
import shutil
import socket
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.outside import World, wait_for

LONG = "long-" + "n" * 85 + "-replica-7"
WIDE = "日本語のエージェント" * 10


def agentctl(world: World, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the installed agentctl, or without one what it would run."""
    installed = Path(sys.executable).with_name("agentctl")
    start = [sys.executable, "-c", "from agentd.ctl.commands import run; run()"]
    program = [str(installed)] if installed.exists() else start
    environ = {"AGENTD_API_SOCKET": str(world.api_socket)} | dict(env or {})
    return world.try_command(*program, *words, env=environ)


def width(line: str) -> int:
    """Count the cells that a terminal gives the line."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in line)
    return len(line) + wide - sum(unicodedata.combining(char) > 0 for char in line)


@pytest.fixture(scope="module")
def served() -> Iterator[World]:
    world = World()
    world.write_card(
        world.agent("Claude", harness="claude-code", env={"X": "é"}),
        world.agent("broken", workdir="/nowhere/at/all"),
        world.agent(LONG, env={"AFTER": "0", "EXIT": "3"}, session="s1"),
        world.agent(WIDE, type="sandboxed", session="s2"),
        world.agent("e\N{COMBINING ACUTE ACCENT}té ☃", workdir=f"{world.top}/no\nsuch \x1b[31m\u202e"),
        more='promt = "x"\n',
    )
    world.start()
    world.wait_ready("Claude")
    world.wait_status("broken", state="waiting")
    world.wait_status(LONG, state="failed")
    yield world
    world.close()


def test_status(served: World) -> None:
    """All agents are a table in the card's order and within 80 columns, with what is to be known below it."""
    done = agentctl(served, "status")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "SINCE", "RESTARTS", "MESSAGE"]
    starts = ["Claude ", "broken ", "long-nnn", "日本語の", "e\N{COMBINING ACUTE ACCENT}té ☃ "]
    assert all(line.startswith(start) for line, start in zip(lines[1:6], starts, strict=True)), lines
    assert lines[6:] == ["", 'warning: agents[4].promt: unknown key, ignored; did you mean "prompt"?']
    states = ["running", "waiting", "failed", "failed", "waiting"]
    assert all(f" {state} " in line for line, state in zip(lines[1:6], states, strict=True)), lines
    assert "lica-7" in lines[3]
    assert "The workdir /nowhere" in lines[2]
    assert all(width(line) <= 80 and line.isprintable() for line in lines), lines


@pytest.mark.parametrize("name", ["broken", "BROKEN", LONG, WIDE, "e\N{COMBINING ACUTE ACCENT}té ☃"])
def test_one(served: World, name: str) -> None:
    """One agent is found by its name in any case, and shown with everything that the API has of it."""
    done = agentctl(served, "status", name)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert all(width(line) <= 80 and line.isprintable() for line in lines), lines
    known = json.loads(agentctl(served, "status", "--json", name).stdout)
    assert known["name"].casefold() == name.casefold()
    shown = {line.split()[0] for line in lines if not line.startswith(" ")}
    assert shown == {key for key, value in known.items() if value not in (None, "")} - {"error"}


def test_exit_in_words(served: World) -> None:
    """How the last attempt ended is told in words."""
    assert "exited with code 3 after " in agentctl(served, "status", LONG).stdout


@pytest.mark.parametrize("words", [[], ["Claude"]])
def test_json(served: World, words: list[str]) -> None:
    """The JSON is what the API answers to curl."""
    done = agentctl(served, "status", "--json", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    path = "/".join(["/v1/agents", *words])
    assert json.loads(done.stdout) == served.get(path).json
    if curl := shutil.which("curl"):
        url = f"http://localhost{path}"
        asked = subprocess.run([curl, "-s", "--unix-socket", served.api_socket, url], capture_output=True, check=True)
        assert json.loads(done.stdout) == json.loads(asked.stdout)


def test_unknown_agent(served: World) -> None:
    """A name that no agent has is an error with the nearest one."""
    done = agentctl(served, "status", "brokn")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == 'agentctl: there is no agent "brokn"; did you mean "broken"?\n'


def test_socket(served: World) -> None:
    """The socket of the flag wins over the variable's, and both over the default."""
    path = str(served.api_socket)
    for words in (["--api-socket", path, "status"], ["status", f"-api-socket={path}"]):
        assert agentctl(served, *words, env={"AGENTD_API_SOCKET": "/nowhere"}).returncode == 0
    done = agentctl(served, "status", env={"AGENTD_API_SOCKET": "/nowhere"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("agentctl: there is no socket /nowhere: is agentd running?")


def test_dead_socket(world: World) -> None:
    """A socket that nobody listens on is an error with its path."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(world.api_socket))
    done = agentctl(world, "status")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"agentctl: nobody listens on {world.api_socket}: ")


def test_plain_locale(served: World) -> None:
    """In a locale without UTF-8 there are neither errors nor wider lines."""
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = agentctl(served, "status", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert agentctl(served, "status", WIDE, env=env).returncode == 0


INVALID = '\n[[agents]]\nharness = "custom"\nrestart = "sometimes"\nenv.PORT = 8080\n'
BROKEN = '\n[[agents]]\nharness = "custom\n'


def _has_error(world: World, error: str) -> bool:
    return bool(world.get("/v1/health").json.get("card_error") == error)


def test_card_errors(world: World) -> None:
    """`check` says of a card what the daemon says of it, and `status` shows that, too."""
    world.write_card(world.agent("a"))
    world.start()
    world.wait_ready("a")
    good = world.card.read_text()
    for text in (good + INVALID, good + BROKEN, "\n", None):
        if text is None:
            world.card.unlink()
        else:
            world.write_card_text(text)
        done = agentctl(world, "check", str(world.card))
        assert done.returncode == 1
        assert done.stderr.startswith(f"agentctl: {world.card}")
        assert done.stderr.count("\n") == 1
        error = done.stdout.rstrip("\n") or done.stderr.strip().partition(": ")[2].partition(": ")[2]
        world.look()
        wait_for(partial(_has_error, world, error), error)
        shown = agentctl(world, "status").stdout
        assert "the last good one stays in force" in " ".join(shown.split())
        assert " ".join(error.split()) in " ".join(shown.split())
        assert all(width(line) <= 80 for line in shown.splitlines())


def test_valid_card(served: World) -> None:
    """A valid card is one line, its warnings are the daemon's, and a look at it needs no daemon."""
    done = agentctl(served, "check", str(served.card), env={"AGENTD_API_SOCKET": "/nowhere"})
    assert done.returncode == 0
    first, *rest = done.stdout.splitlines()
    assert first.startswith(f"{served.card} is valid: 5 agents (Claude, broken, long-")
    assert width(first) <= 80
    warnings = served.get("/v1/health").json["warnings"]
    assert rest == [f"warning: {warning}" for warning in warnings]
    judged = json.loads(agentctl(served, "check", "--json", str(served.card)).stdout)
    assert judged == {
        "card": str(served.card),
        "valid": True,
        "errors": [],
        "warnings": warnings,
        "agents": [agent["name"] for agent in served.get("/v1/agents").json],
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root's defaults are places of the machine")
def test_defaults_of_an_ordinary_user(world: World) -> None:
    """Without flags it finds what an ordinary user's agentd has without flags."""
    world.use_defaults()
    world.write_card(world.agent("a"))
    world.start()
    world.wait_ready("a")
    assert json.loads(agentctl(world, "status", "--json", env={"AGENTD_API_SOCKET": ""}).stdout)[0]["name"] == "a"
    assert json.loads(agentctl(world, "check", "--json").stdout)["card"] == str(world.card)
