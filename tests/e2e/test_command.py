import os
import re
import signal
import socket
import stat
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.outside import PATIENCE, World, own_user, wait_for

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO |WARN |ERROR) \S.*")


def program(world: World) -> list[str]:
    command = world.command()
    return command[: command.index("-config")]


@pytest.mark.parametrize("flag", ["-version", "--version"])
def test_version(world: World, flag: str) -> None:
    """The version is printed on stdout, with exit code 0."""
    done = world.try_command(*program(world), flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"agentd \S+\n", done.stdout)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(world: World, flag: str) -> None:
    """The help names every flag, on stdout, with exit code 0."""
    done = world.try_command(*program(world), flag)
    assert done.returncode == 0
    flags = "config secret-dir tmux-socket api-socket run-dir agent-user admin-group debug version h"
    assert all(f" -{name} " in done.stdout or f" -{name}\n" in done.stdout for name in flags.split())


@pytest.mark.parametrize("words", [["-wrong"], ["word"], ["-config"], ["-debug=maybe"], ["-config="]])
def test_usage(world: World, words: list[str]) -> None:
    """A command line that cannot be used is refused in one line on stderr, with exit code 2."""
    done = world.try_command(*program(world), *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "-h" in done.stderr


def refused(world: World, *flags: str, env: dict[str, str] | None = None) -> str:
    """Start agentd in vain, and return the one error that it printed."""
    user = [] if any("-agent-user" in flag for flag in flags) else ["-agent-user", own_user()]
    done = world.try_command(*world.command(*user, *flags), env=env)
    assert done.returncode == 1, done
    errors = [line for line in done.stderr.splitlines() if "ERROR" in line]
    assert all(LINE.fullmatch(line) for line in done.stderr.splitlines()), done.stderr
    assert len(errors) == 1, done.stderr
    return errors[0]


@pytest.mark.parametrize("flag", ["-tmux-socket", "-api-socket"])
def test_long_socket(world: World, flag: str) -> None:
    """A path too long for a socket is refused with its flag, before anything is made."""
    path = world.top / ("x" * 100) / "sock"
    error = refused(world, flag, str(path))
    assert flag in error
    assert "107" in error
    assert not path.parent.exists()


def test_no_tmux(world: World) -> None:
    """Without tmux agentd does not start, and says so."""
    assert "tmux is needed" in refused(world, env={"PATH": str(world.home)})


def test_old_tmux(world: World) -> None:
    """A tmux older than 3.2 is refused with its version."""
    fake = world.home / "tmux"
    fake.write_text("#!/bin/sh\necho tmux 3.1c\n")
    fake.chmod(0o755)
    error = refused(world, env={"PATH": f"{world.home}:{world.env['PATH']}"})
    assert "3.1c" in error
    assert "3.2" in error


@pytest.mark.parametrize("flag", ["-tmux-socket", "-api-socket", "-run-dir"])
def test_unusable_directory(world: World, flag: str) -> None:
    """A directory that cannot be had is refused with its path."""
    (world.home / "file").touch()
    assert f"{world.home}/file" in refused(world, flag, f"{world.home}/file/x/y")


@pytest.mark.parametrize("flag", ["-tmux-socket", "-api-socket"])
def test_not_a_socket(world: World, flag: str) -> None:
    """A file in a socket's place is refused with its path, and left alone."""
    path = world.home / "precious"
    path.write_text("x")
    assert str(path) in refused(world, flag, str(path))
    assert path.read_text() == "x"


def test_no_such_user(world: World) -> None:
    """An agent user that does not exist is refused by name."""
    assert "agentd-nobody-has-this" in refused(world, "-agent-user", "agentd-nobody-has-this")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may run agents as others")
def test_other_user(world: World) -> None:
    """An ordinary user cannot have agents run as somebody else."""
    assert "only root can run agents as root" in refused(world, "-agent-user", "root")


def test_single_owner(world: World) -> None:
    """Another agentd of the same API socket, or tmux socket, is refused with that socket; the first goes on."""
    world.write_card(world.agent("a"))
    world.start()
    start = world.wait_ready("a")
    other = world.top / "o"
    for flag, path in ("-tmux-socket", world.tmux_socket), ("-api-socket", world.api_socket):
        mine, other_flag = (flag, "-api-socket") if flag == "-tmux-socket" else (flag, "-tmux-socket")
        error = refused(world, other_flag, f"{other}.sock", mine, str(path))
        assert str(path) in error
        assert str(world.process.pid if world.process else "") in error
    assert world.status("a")["pid"] == start.pid


def test_live_api_socket_of_another_kind(world: World) -> None:
    """An API socket on which somebody else listens, agentd or not, is refused, and left to its owner."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(world.api_socket))
        listening.listen()
        assert str(world.api_socket) in refused(world)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(world.api_socket))


def test_stale_sockets(world: World) -> None:
    """Sockets that nobody listens on any more are replaced."""
    for path in world.api_socket, world.tmux_socket:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
    world.write_card(world.agent("a"))
    world.start()
    world.wait_ready("a")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop(world: World, number: signal.Signals) -> None:
    """SIGTERM and SIGINT are a clean stop: agents, sockets and the tmux server go, and the exit code is 0."""
    world.write_card(world.agent("a"))
    world.start()
    start = world.wait_ready("a")
    found = world.api_socket.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o660, "the API is for owner and group"
    assert world.tmux_socket.stat().st_mode & 0o007 == 0, "tmux lets nobody else in either"
    world.signal(number)
    assert world.process is not None
    assert world.process.wait(PATIENCE) == 0
    assert [what for _, what in start.events] == ["INT"]
    assert not world.api_socket.exists()
    assert world.tmux("list-sessions", check=False).returncode != 0


def test_signals_until_the_very_end(world: World) -> None:
    """However many signals come while agentd stops, and whenever, its exit code is 0."""
    world.write_card(world.agent("a"))
    world.start()
    world.wait_ready("a")
    assert world.process is not None
    code = None
    while code is None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            world.signal(number)
        with suppress(subprocess.TimeoutExpired):
            code = world.process.wait(0.002)
    assert code == 0
    assert sum("without waiting for grace periods" in line for line in world.log_lines) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_stop_while_tmux_is_out_of_reach(world: World, count: int) -> None:
    """A SIGTERM while agentd waits for tmux is a clean stop, too; a second one does not wait any longer."""
    fake = world.home / "tmux"
    fake.write_text(
        f'#!/bin/sh\n[ "$1" != -V ] || exec echo tmux 3.3a\ntouch {world.home}/asked\nexec cat >/dev/null\n'
    )
    fake.chmod(0o755)
    world.env["PATH"] = f"{world.home}:{world.env['PATH']}"
    world.write_card(world.agent("a"))
    world.spawn()
    wait_for((world.home / "asked").exists, "the first attempt to connect")
    assert world.process is not None
    for number in range(1, count + 1):
        world.signal(signal.SIGTERM)
        wait_for(lambda: world.log.count("SIGTERM") >= number, "the signal")  # noqa: B023 - used at once
    assert world.process.wait(PATIENCE) == 0
    assert "ERROR" not in world.log
    assert world.log_lines[-1].endswith(" stopped")
    world.env["PATH"] = world.env["PATH"].partition(":")[2]


@pytest.mark.parametrize("nohup", [False, True])
def test_hangup_in_a_terminal(world: World, nohup: bool) -> None:
    """A hang-up of agentd's terminal is a stop, even when it is said twice; with nohup it asks for a look."""
    world.write_card(world.agent("a", env={"LINGER": "0.5"}))
    ours, theirs = os.openpty()
    trap = "trap '' HUP; " if nohup else ""
    command = [
        "/bin/sh",
        "-c",
        f'{trap}exec "$@" <{os.ttyname(theirs)}',
        "sh",
        *world.command("-agent-user", own_user()),
    ]
    with world.log_file.open("ab") as log:
        world.process = subprocess.Popen(
            command, env=world.env, cwd="/", stdout=log, stderr=log, start_new_session=True
        )
    world.wait_api()
    start = world.wait_ready("a")
    world.signal(signal.SIGHUP)
    world.wait_log("SIGHUP")
    if nohup:
        world.wait_log("SIGHUP: looks again")
        assert world.status("a")["pid"] == start.pid
        assert world.stop() == 0
    else:
        world.signal(signal.SIGHUP)
        assert world.process.wait(PATIENCE) == 0
        assert [what for _, what in start.events] == ["INT"]
        assert "grace periods" not in world.log
    os.close(ours)
    os.close(theirs)


def test_dashes(world: World) -> None:
    """One dash or two, and a value after a space or an equals sign, are the same."""
    world.card = world.top / "other.toml"
    world.write_card(world.agent("a", workdir=None))
    world.start(f"--config={world.card}", "--debug=true", f"-secret-dir={world.secrets}")
    start = world.wait_ready("a")
    assert start.cwd == os.path.realpath(world.card.parent), "the own user's workdir is the card's directory"
    assert any(" DEBUG " in line for line in world.log_lines)


def test_without_a_card(world: World) -> None:
    """Without a card agentd says once which path it waits for, and has no agents; the card that comes is taken."""
    world.start()
    assert world.get("/v1/agents").json == []
    world.look()
    world.wait_log("looks again")
    world.write_card(world.agent("a"))
    world.look()
    world.wait_ready("a")
    assert sum(f"waiting for a card at {world.card}" in line for line in world.log_lines) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root's defaults are places of the machine")
def test_defaults_of_an_ordinary_user(world: World) -> None:
    """Without flags an ordinary user's agentd has its card in XDG_CONFIG_HOME and its sockets in XDG_RUNTIME_DIR."""
    config = world.use_defaults()
    (config / "secrets").mkdir()
    (config / "secrets" / "VALUE").write_text("t")
    world.write_card(world.agent("a"))
    world.start()
    assert world.wait_ready("a").env["VALUE"] == "t"
    assert stat.S_IMODE(world.api_socket.parent.stat().st_mode) == 0o700
    assert world.run_dir.is_dir()


def test_log(world: World) -> None:
    """The log has one event a line, each with its time and level, whatever names and prompts hold."""
    world.write_card(
        world.agent("é ☃", prompt="a\nb\x1b[31m"),
        world.agent("b", workdir=f"{world.top}/no\nsuch \x1b[31m"),
    )
    (world.secrets / "bad\nname").write_text("x")
    world.start("-debug")
    world.wait_status("b", state="waiting")
    wait_for(lambda: world.agents()["é ☃"]["running"], "the other agent")
    assert world.stop() == 0
    assert world.log_lines
    assert [line for line in world.log_lines if not LINE.fullmatch(line)] == []
    assert all(line.isprintable() for line in world.log_lines)


def _is_known(world: World, name: str) -> bool:
    return name in world.agents()


def test_nothing_repeated(world: World) -> None:
    """While states last nothing is said again, however often agentd looks."""
    world.write_card()
    world.start()
    world.tmux("new-session", "-d", "-s", "mine", "exec sleep 1000")
    (world.secrets / "bad-name").write_text("x")
    agents = [
        world.agent("workdir", workdir=f"{world.top}/nowhere"),
        world.agent("binary", binary="nowhere-to-be-found"),
        world.agent("path", binary=f"{world.top}/nowhere/x"),
        world.agent("taken", session="mine"),
        world.agent("prompt", prompt_file=f"{world.top}/nowhere"),
        world.agent("large", prompt="x" * 200_000),
        world.agent("sandbox", type="sandboxed"),
        world.agent("over", env={"AFTER": "0"}),
        world.agent("ok"),
    ]
    world.write_card(*agents)
    world.look()
    for name, state in [(agent["name"], "waiting") for agent in agents[:6]] + [("over", "completed")]:
        world.wait_status(name, state=state)
    world.wait_ready("ok")
    before = len(world.log_lines)
    for name in (f"look-{number}" for number in range(5)):
        # That an agent of the new card is known tells that agentd has looked.
        world.write_card(*agents, world.agent(name, prompt_file=f"{world.top}/nowhere"))
        world.look()
        wait_for(partial(_is_known, world, name), "the look")
    news = [line for line in world.log_lines[before:] if "looks again" not in line and "look-" not in line]
    assert news == []
    world.tmux("kill-session", "-t", "=mine")


def test_unreadable_standard_streams(world: World) -> None:
    """agentd runs with its standard streams closed."""
    done = world.try_command("/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *program(world), "-version")
    assert done.returncode == 0


def test_same_interpreter(world: World) -> None:
    """The tests run the agentd that is installed beside them."""
    assert Path(program(world)[0]).parent == Path(sys.executable).parent
