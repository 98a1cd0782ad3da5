import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from agentd.attempts import launch, script
from agentd.attempts.attempt import TmuxAttempt
from agentd.attempts.tmux_sessions import TmuxSessions
from agentd.card.card import Agent
from agentd.lifecycle import How
from agentd.processes.ending import Scanner
from agentd.resolve import EffectiveAgent
from agentd.sessions import AttemptRequest, LaunchBlockedError, NeverStartedError
from agentd.settings import Settings
from agentd.tmux.connection import Tmux, open_tmux
from tests.tmux.connections import generation, lost, reconnected

SHELLS = [name for name in ("bash", "dash", "zsh") if shutil.which(name)]
PATIENCE = 15.0
NAMED = (("a", 1), ("b", 2))


class World:
    """Attempts of one agent on a tmux server of its own."""

    def __init__(self, sessions: TmuxSessions, directory: Path) -> None:
        self.sessions = sessions
        self.directory = directory

    def attempt(
        self,
        *argv: str,
        env: dict[str, str] | None = None,
        number: int = 1,
        previous: TmuxAttempt | None = None,
        typed: bool = True,
        name: str = "a",
    ) -> TmuxAttempt:
        """Make an attempt."""
        effective = EffectiveAgent(
            agent=Agent(name=name, harness="custom", session=name),
            argv=argv,
            env=env or {},
            workdir=str(self.directory),
            digest="d",
        )
        request = AttemptRequest(
            effective=effective,
            run="abc",
            number=number,
            typed=typed,
            previous=previous,
        )
        attempt = self.sessions.attempt(request)
        assert isinstance(attempt, TmuxAttempt)
        return attempt

    async def names(self) -> list[str]:
        """The sessions that are not agentd's own."""
        lines = await self.sessions.world.tmux.command("list-sessions", "-F", "#{session_name}")
        return sorted(set(lines) - {"_agentd"})

    async def type(self, line: str) -> None:
        """Type a line into the agent's session."""
        await self.sessions.world.tmux.command("send-keys", "-l", "-t", "=a:", line)
        await self.sessions.world.tmux.command("send-keys", "-t", "=a:", "Enter")

    def written(self) -> list[str]:
        """What is left in the run directory."""
        return [str(path.relative_to(self.sessions.world.settings.run_dir)) for path in self._run_dir.rglob("*")]

    @property
    def _run_dir(self) -> Path:
        return self.sessions.world.settings.run_dir

    def lifeline(self, number: int = 1) -> Path:
        """Where an attempt's lifeline is."""
        return self._run_dir / f"{self.sessions.world.instance}-abc-{number}" / "lifeline"


@asynccontextmanager
async def open_world(settings: Settings, directory: Path) -> AsyncIterator[World]:
    settings.run_dir.mkdir(mode=0o711)
    home = directory / "home"
    home.mkdir()
    async with open_tmux(settings) as tmux:
        with trio.fail_after(60):
            yield World(TmuxSessions(settings, tmux, Scanner(os.geteuid()), time.time), directory)


@pytest.fixture(autouse=True)
def quick_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the shells in tmux a home of their own, so that nobody's rc files run."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SHELL", shutil.which("bash") or "/bin/sh")


@pytest.fixture
async def world(settings: Settings, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(settings, tmp_path) as world:
        yield world


async def until(found: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not found():  # noqa: ASYNC110 - what is waited for are files
            await trio.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("shell", SHELLS)
async def test_life_in_each_shell(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    """Whatever shell the agent user has: launched, interrupted, ended, swept, and its session closed."""
    path = shutil.which(shell)
    assert path is not None
    monkeypatch.setenv("SHELL", path)
    async with open_world(settings, tmp_path) as world:
        (tmp_path / "home" / ".zshrc").touch()  # without one, zsh asks questions
        attempt = world.attempt("sh", "-c", "trap 'exit 4' INT; touch up; while :; do sleep 0.01; done")
        pid = await attempt.launch()
        assert lives(pid)
        await until((tmp_path / "up").exists)
        assert await attempt.interrupt(again=False) is False
        ended = await attempt.ended()
        assert (ended.how, ended.code) == (How.CODE, 4)
        assert await attempt.sweep() == 0
        assert world.written() == []
        assert await world.names() == ["a"]
        await world.type("pwd -P >where")
        await until(lambda: (tmp_path / "where").exists() and (tmp_path / "where").read_text() != "")
        assert (tmp_path / "where").read_text().strip() == os.path.realpath(tmp_path)  # noqa: ASYNC240 - which takes no time
        await attempt.close()
        assert await world.names() == []


async def test_environment_over_rc_files(world: World, tmp_path: Path) -> None:
    """What an rc file makes of a variable of the card is overridden; read-only names break nothing."""
    rc = "export SECRET=rc ONLY=rc PATH=/usr/bin:/bin\nreadonly SECRET\n"
    for name in (".bash_profile", ".profile"):
        (tmp_path / "home" / name).write_text(rc)
    env = {"SECRET": "card's\n☃", "UID": "4711", "PPID": "1", "BASHOPTS": "x", "SHELLOPTS": "noexec", "_": "x"}
    attempt = world.attempt("sh", "-c", 'printf "%s|" "$SECRET" "$ONLY" >out', env=env)
    await attempt.launch()
    assert (await attempt.ended()).code == 0
    assert (tmp_path / "out").read_text() == "card's\n☃|rc|"
    await attempt.sweep()
    await attempt.close()


async def test_unavailable_shell_start(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that is not ready in time never started, and one that becomes ready after that starts nothing."""
    monkeypatch.setattr(launch, "START_LIMIT", 0.3)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    for name in (".bash_profile", ".profile"):
        (tmp_path / "home" / name).write_text(f"echo WAITING; read x <{gate}\n")
    attempt = world.attempt("touch", "started")
    with pytest.raises(NeverStartedError, match=r"no sign of life within 0\.3 s; its screen: .*WAITING"):
        await attempt.launch()
    assert world.written() == []
    gate.write_text("go\n")
    await world.type("touch ready")
    await until((tmp_path / "ready").exists)
    assert not (tmp_path / "started").exists()
    assert await attempt.sweep() == 0
    # The next one needs no keys.
    for name in (".bash_profile", ".profile"):
        (tmp_path / "home" / name).unlink()
    monkeypatch.setattr(launch, "START_LIMIT", 10)
    again = world.attempt("touch", "started", number=2, previous=attempt, typed=False)
    await again.launch()
    assert (await again.ended()).code == 0
    assert (tmp_path / "started").exists()
    await again.sweep()
    await world.type("touch usable")
    await until((tmp_path / "usable").exists)
    await again.close()


@pytest.mark.parametrize("comes", [True, False])
async def test_launcher_slower_than_the_limit(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    """A launcher that has begun when its time is over has as much again: its start is taken, and never made twice."""
    monkeypatch.setattr(launch, "START_LIMIT", 3)
    slow = "while [ -e {lifeline} ]; do sleep 0.01; done" if comes else "read never"
    monkeypatch.setattr(script, "_TEMPLATE", script._TEMPLATE.replace("\ntrap :", f"\n{slow}\ntrap :"))
    attempt = world.attempt("sh", "-c", "echo $$ >>pids; exec sleep 1000")
    if comes:
        pid = await attempt.launch()
        await until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text() == f"{pid}\n")
        assert await attempt.interrupt(again=False) is False
        assert (await attempt.ended()).how is How.SIGNAL
    else:
        with pytest.raises(NeverStartedError, match=r"no sign of life within 3 s"):
            await attempt.launch()
    assert await attempt.sweep() == 0
    assert world.written() == []
    await attempt.close()
    assert await world.names() == []
    assert (tmp_path / "pids").exists() == comes


@pytest.mark.parametrize("what", ["pane", "server"])
async def test_retry_without_a_pane(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A retry without typing whose pane is gone launches in a new session at once, and starts no shell in vain."""
    monkeypatch.setattr(launch, "START_LIMIT", 0.1)
    for name in (".bash_profile", ".profile"):
        (tmp_path / "home" / name).write_text("echo begun >>$HOME/shells; sleep 1000\n")
    first = world.attempt("touch", "started")
    with pytest.raises(NeverStartedError):
        await first.launch()
    await until((tmp_path / "home" / "shells").exists)
    monkeypatch.setattr(launch, "START_LIMIT", 10)
    tmux = world.sessions.world.tmux
    if what == "pane":
        await tmux.command("kill-session", "-t", "=a")
    else:
        number = generation(tmux)
        (server,) = await tmux.command("display-message", "-p", "#{pid}")
        os.kill(int(server), signal.SIGKILL)
        await lost(tmux, number)
    assert await first.sweep() == 0
    again = world.attempt("touch", "started", number=2, previous=first, typed=False)
    await again.launch()
    assert (await again.ended()).code == 0
    assert (tmp_path / "started").exists()
    assert await world.names() == ["a"]
    await _end(again)
    assert world.written() == []
    assert (tmp_path / "home" / "shells").read_text() == "begun\n"


@pytest.mark.parametrize("typed", [True, False])
async def test_shell_that_ends_at_once(world: World, monkeypatch: pytest.MonkeyPatch, typed: bool) -> None:
    """A shell that ends as soon as it begins never started, which is known at once, and leaves nothing."""
    await world.sessions.world.tmux.command("set-option", "-g", "default-shell", shutil.which("false") or "/bin/false")
    monkeypatch.setenv("SHELL", shutil.which("false") or "/bin/false")
    attempt = world.attempt("true", typed=typed)
    with trio.fail_after(5), pytest.raises(NeverStartedError, match="its shell ended before that"):
        await attempt.launch()
    await _end(attempt)
    assert world.written() == []
    assert await world.names() == []


@pytest.mark.parametrize("after", [0.0, 0.005, 0.01, 0.02, 0.04, 0.08])
async def test_cancelled_launch(world: World, tmp_path: Path, after: float) -> None:
    """A launch that is cancelled, whenever, leaves nothing once it was swept and closed."""
    attempt = world.attempt("sh", "-c", "echo $$ >>pids; exec sleep 1000")
    with trio.move_on_after(after):
        await attempt.launch()
    await attempt.sweep()
    await attempt.close()
    assert await world.names() == []
    assert world.written() == []
    pids = (tmp_path / "pids").read_text().split() if (tmp_path / "pids").exists() else []
    assert not any(lives(int(pid)) for pid in pids)


async def test_prompt_of_a_launch_that_fails(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that ends before its harness runs is known at once, and so is why, but nothing of its command line."""
    for name in (".bash_profile", ".profile"):
        (tmp_path / "home" / name).write_text("ulimit -s 512\n")
    attempt = world.attempt("true", "hunter2 " * 40, "x" * 100_000, env={"BIG": "x" * 40_000})
    with trio.fail_after(10), pytest.raises(NeverStartedError, match=r"ended with code 126 .*too long") as caught:
        await attempt.launch()
    assert "hunter2" not in str(caught.value)
    assert await attempt.sweep() == 0
    await world.type("touch usable")
    await until((tmp_path / "usable").exists)
    await attempt.close()


async def test_exit_that_tmux_does_not_tell_yet(world: World) -> None:
    """The code of an end that nobody heard is waited for while the tmux server stands still; in a stop it is not."""
    attempts = [world.attempt("sh", "-c", "read x; exit 7", name=name, number=number) for name, number in NAMED]
    (server,) = await world.sessions.world.tmux.command("display-message", "-p", "#{pid}")
    for attempt in attempts:
        await attempt.launch()
        assert attempt.state.lifeline is not None
        attempt.state.lifeline.close()
        attempt.state.lifeline, attempt._taken_over = None, True
        await world.sessions.world.tmux.command("send-keys", "-t", f"={attempt._agent.session}:", "Enter")
        await until(attempt.is_over)
    waits, stops = attempts
    told = []
    os.kill(int(server), signal.SIGSTOP)
    try:
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                told.append(await waits.ended())

            nursery.start_soon(wait)
            await stops.interrupt(again=False)
            with trio.fail_after(2):
                assert (await stops.ended()).how is How.KILLED
            assert told == []
            os.kill(int(server), signal.SIGCONT)
    finally:
        os.kill(int(server), signal.SIGCONT)
    assert [ended.code for ended in told] == [7]
    for attempt in attempts:
        await _end(attempt)


@pytest.mark.parametrize("kind", ["file", "link", "directory", "nothing"])
async def test_lifeline_replaced(world: World, tmp_path: Path, kind: str) -> None:
    """Whatever is in the place of the lifeline of an attempt that is taken over, its end is known all the same."""
    attempt = world.attempt("sh", "-c", "read x; exit 7")
    await attempt.launch()
    assert attempt.state.lifeline is not None
    attempt.state.lifeline.close()
    attempt.state.lifeline, attempt._taken_over = None, True
    lifeline = world.lifeline()
    lifeline.unlink()
    match kind:
        case "file":
            lifeline.write_text("exit 0\n")
        case "link":
            lifeline.symlink_to(tmp_path / "nowhere")
        case "directory":
            lifeline.mkdir()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.type, "")
        assert (await attempt.ended()).code == 7
    await _end(attempt)
    assert world.written() == []


async def test_restart_in_the_same_session(world: World) -> None:
    """The next attempt takes the session over, and what the one before showed is in its history."""
    first = world.attempt("sh", "-c", "echo WORDS-OF-THE-FIRST; exit 1")
    await first.launch()
    await first.ended()
    await first.sweep()
    before = await world.sessions.world.tmux.command("list-panes", "-a", "-F", "#{session_id} #{pane_id}")
    second = world.attempt("sleep", "1000", number=2, previous=first)
    await second.launch()
    assert await world.sessions.world.tmux.command("list-panes", "-a", "-F", "#{session_id} #{pane_id}") == before
    shown = await world.sessions.world.tmux.command("capture-pane", "-p", "-S", "-", "-t", "=a:")
    assert "WORDS-OF-THE-FIRST" in shown
    await second.sweep()
    assert (await second.ended()).how is How.SIGNAL
    await second.close()


async def test_ids_of_a_new_server(world: World, tmp_path: Path) -> None:
    """After the tmux server was killed, an attempt touches nobody else who has its ids on the new one."""
    attempt = world.attempt("sh", "-c", "sleep 1000")
    await attempt.launch()
    tmux = world.sessions.world.tmux
    number = generation(tmux)
    (server,) = await tmux.command("display-message", "-p", "#{pid}")
    os.kill(int(server), signal.SIGKILL)
    await reconnected(tmux, number)
    (pane,) = await tmux.command("new-session", "-d", "-P", "-F", "#{session_id} #{pane_id} #{pane_pid}", "-s", "b")
    assert (await attempt.ended()).how in {How.SIGNAL, How.KILLED}
    await attempt.interrupt(again=False)
    await attempt.sweep()
    again = world.attempt("true", number=2, previous=attempt)
    await again.launch()
    await again.ended()
    await again.sweep()
    await again.close()
    await attempt.close()
    assert await tmux.command("list-panes", "-s", "-t", "=b:", "-F", "#{session_id} #{pane_id} #{pane_pid}") == (pane,)
    await tmux.command("kill-session", "-t", "=b")


async def test_junk_in_the_lifeline(world: World) -> None:
    """Junk from a harness does not end its attempt: the launcher's end does."""
    for number, junk in enumerate([b"exit 256\n", b"\xff\n", b"x" * 5000, b"start 1 1\n", b"exit -1\n"], start=1):
        attempt = world.attempt("sh", "-c", "read x; exit 5", number=number)
        pid = await attempt.launch()
        _say(world.lifeline(number), junk)
        with trio.move_on_after(0.2) as scope:
            await attempt.ended()
        assert scope.cancelled_caught
        assert lives(pid)
        await world.type("")
        assert (await attempt.ended()).how is How.KILLED
        assert await attempt.sweep() == 0
        await attempt.close()
        assert world.written() == []


@pytest.mark.parametrize(
    "forged",
    [
        b"start 1 1\n",
        b"start 0 1\n",
        b"start 99999999999999999999 1\n",
        b"start " + b"9" * 4500 + b" 1\n",
        "start ² ²\n".encode(),
        b"start\n",
        b"\n",
        b"nonsense\n",
    ],
    ids=["init", "zero", "huge", "longest", "unicode", "short", "empty", "nonsense"],
)
async def test_forged_start(world: World, tmp_path: Path, forged: bytes) -> None:
    """A start that the kernel does not confirm is not believed: the true one is, or the attempt never started."""
    for name in (".bash_profile", ".profile"):
        (tmp_path / "home" / name).write_text("while ! [ -e go ]; do sleep 0.01; done\n")
    attempt = world.attempt("sleep", "1000")
    pid = 0
    async with trio.open_nursery() as nursery:

        async def forge() -> None:
            await until(world.lifeline().exists)
            end = os.open(world.lifeline(), os.O_RDWR | os.O_NONBLOCK)
            try:
                os.write(end, forged)
                await trio.sleep(0.05)
                (tmp_path / "go").touch()
            finally:
                os.close(end)

        nursery.start_soon(forge)
        try:
            pid = await attempt.launch()
        except NeverStartedError:
            assert len(forged) > 4096
    if pid:
        words = Path(f"/proc/{pid}/cmdline")
        await until(lambda: words.read_bytes() == b"sleep\x001000\x00")
    await attempt.sweep()
    await attempt.close()
    assert not pid or not lives(pid)


async def test_flooded_lifeline(world: World) -> None:
    """A harness that fills its lifeline and ends is known to have ended: its launcher is not left waiting to say so."""
    attempt = world.attempt("sh", "-c", f"head -c 300000 /dev/zero >{world.lifeline()}; exit 3")
    await attempt.launch()
    with trio.fail_after(10):
        assert (await attempt.ended()).how is How.KILLED
    await _end(attempt)
    assert world.written() == []


async def test_lifeline_taken_away(world: World, tmp_path: Path) -> None:
    """A lifeline that is removed before the start is no bug: the attempt fails, with a reason, and leaves nothing."""
    for name in (".bash_profile", ".profile"):
        (tmp_path / "home" / name).write_text("while ! [ -e go ]; do sleep 0.01; done\n")
    attempt = world.attempt("sleep", "1000")
    async with trio.open_nursery() as nursery:

        async def take() -> None:
            await until(world.lifeline().exists)
            end = os.open(world.lifeline(), os.O_RDWR | os.O_NONBLOCK)
            await trio.sleep(0.05)
            world.lifeline().unlink()
            os.close(end)

        nursery.start_soon(take)
        with pytest.raises((LaunchBlockedError, NeverStartedError)):
            await attempt.launch()
    await attempt.sweep()
    await attempt.close()
    assert world.written() == []


async def test_many_at_once(world: World) -> None:
    """Eight launches at once all come up, each in its session."""
    attempts = [world.attempt("sleep", "1000", number=number, name=f"a{number}") for number in range(8)]
    async with trio.open_nursery() as nursery:
        for one in attempts:
            nursery.start_soon(one.launch)
    assert len(await world.names()) == 8
    async with trio.open_nursery() as nursery:
        for one in attempts:
            nursery.start_soon(_end, one)
    assert await world.names() == []


async def _end(attempt: TmuxAttempt) -> None:
    assert await attempt.sweep() == 0
    await attempt.close()


def _say(lifeline: Path, what: bytes) -> None:
    end = os.open(lifeline, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.write(end, what)
    finally:
        os.close(end)


class Asked:
    """What tmux was asked, by the first word of each command."""

    def __init__(self, tmux: Tmux, monkeypatch: pytest.MonkeyPatch) -> None:
        self._words: list[str] = []
        real = tmux.command

        async def command(*words: str, **options: Any) -> tuple[str, ...]:
            self._words.append(words[0])
            return await real(*words, **options)

        monkeypatch.setattr(tmux, "command", command)

    def since(self) -> list[str]:
        """The commands since the last time that somebody asked."""
        words, self._words = self._words, []
        return words


async def test_commands_of_an_attempt(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch or a restart is five commands to tmux, a stop four; the start and the end of an agent are none."""
    tmux, env = world.sessions.world.tmux, {"SECRET": "x" * 1000}
    asked = Asked(tmux, monkeypatch)
    first = world.attempt("sh", "-c", "read x", env=env)
    await first.launch()
    assert asked.since() == [*("list-panes", "new-session", "set-option", "send-keys", "send-keys")]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.ended)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert asked.since() == []
        await tmux.command("send-keys", "-t", "=a:", "Enter")
        asked.since()
    await first.sweep()
    assert asked.since() == []
    second = world.attempt("sleep", "1000", env=env, number=2, previous=first)
    await second.launch()
    assert asked.since() == [*("send-keys", "respawn-pane", "list-panes", "send-keys", "send-keys")]
    await second.interrupt(again=False)
    assert asked.since() == ["copy-mode", "send-keys"]
    await second.ended()
    await second.sweep()
    await second.close()
    assert asked.since() == ["kill-pane", "kill-session"]
