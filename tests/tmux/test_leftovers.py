import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from agentd.attempts import session
from agentd.attempts.attempt import TmuxAttempt
from agentd.attempts.tmux_sessions import TmuxSessions
from agentd.card.card import Agent
from agentd.processes.ending import Scanner
from agentd.processes.scan import Snapshot, is_halted
from agentd.resolve import EffectiveAgent
from agentd.sessions import AttemptRequest
from agentd.settings import Settings
from agentd.tmux.connection import Tmux, open_tmux
from tests.tmux.connections import generation, reconnected

WORDS = "nobody knows whether"


@pytest.fixture(autouse=True)
def quick_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the shells in tmux a home of their own, so that nobody's rc files run."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", shutil.which("bash") or "/bin/sh")


@pytest.fixture
def sessions(settings: Settings, tmux: Tmux) -> TmuxSessions:
    return sessions_of(settings, tmux)


@pytest.fixture
def escaped(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Start what an attempt of a dead agentd has left, and no tmux session leads to."""
    tag = f"{sessions_of(settings, None).world.instance}/dead/1"
    with subprocess.Popen(["sleep", "1000"], env={"AGENTD_ATTEMPT": tag}, start_new_session=True) as process:
        yield process
        process.kill()


def sessions_of(settings: Settings, tmux: Tmux | None) -> TmuxSessions:
    return TmuxSessions(settings, tmux, Scanner(os.geteuid()), time.time)  # type: ignore[arg-type]


def attempt_of(sessions: TmuxSessions) -> TmuxAttempt:
    effective = EffectiveAgent(
        agent=Agent(name="a", harness="custom", session="a"),
        argv=("sleep", "1000"),
        env={},
        workdir=sessions.world.settings.default_workdir,
        digest="d",
    )
    request = AttemptRequest(effective=effective, run="dead", number=1)
    attempt = sessions.attempt(request)
    assert isinstance(attempt, TmuxAttempt)
    return attempt


def make_directory(sessions: TmuxSessions, name: str) -> Path:
    path = sessions.world.settings.run_dir / name
    path.mkdir(parents=True)
    (path / "launch").touch()
    os.mkfifo(path / "lifeline")
    return path


async def names(tmux: Tmux) -> list[str]:
    lines = await tmux.command("list-sessions", "-F", "#{session_name}")
    return sorted(set(lines) - {"_agentd"})


class HaltingScanner(Scanner):
    """Has the tmux server stand still from the first scan on."""

    server = 0

    async def scan(self) -> Snapshot:
        """Halt it, and scan."""
        os.kill(self.server, signal.SIGSTOP)
        return await super().scan()


async def kill_unanswering(tmux: Tmux, server: int, change: Callable[[], Awaitable[object]]) -> object:
    """Kill a server that stands still, as soon as the change waits for it, or gives up; return what comes of that."""
    results = []
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:

                async def do() -> None:
                    results.append(await change())

                nursery.start_soon(do)
                while not results and (tmux._client is None or not tmux._client._unanswered):  # noqa: ASYNC110 - nobody tells of it
                    await trio.sleep(0.01)
                os.kill(server, signal.SIGKILL)
    finally:
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)
    return results[0]


async def test_all_of_ours_ends(sessions: TmuxSessions, tmux: Tmux, escaped: subprocess.Popen[bytes]) -> None:
    """Sessions with a mark of ours, tagged processes and directories end, and nobody else's do."""
    sessions.world.settings.run_dir.mkdir()
    dead = attempt_of(sessions)
    pid = await dead.launch()
    workdir = sessions.world.settings.default_workdir
    await session.create(tmux, "unrecorded", f"{sessions.world.instance}/dead", session.Inside(workdir=workdir, env={}))
    await session.create(
        tmux, "of-another-agentd", f"{sessions.world.instance[:-1]}/dead", session.Inside(workdir=workdir, env={})
    )
    await tmux.command("new-session", "-d", "-s", "foreign")
    ours = make_directory(sessions, f"{sessions.world.instance}-0123abcd-12")
    others = [
        make_directory(sessions, name)
        for name in (
            "0123456789ab-0123abcd-1",
            f"{sessions.world.instance}-01.3abcd-1",
            f"{sessions.world.instance}-0123abcd-x",
        )
    ]
    assert await sessions.recover() == ()
    assert await names(tmux) == ["foreign", "of-another-agentd"]
    assert escaped.wait(0) == -signal.SIGTERM
    assert not os.path.exists(f"/proc/{pid}")  # noqa: ASYNC240 - which takes no time
    assert not ours.exists()
    assert all(path.exists() for path in others)
    assert len(list(sessions.world.settings.run_dir.iterdir())) == len(others)
    dead.state.tidy()


async def test_nothing_there(sessions: TmuxSessions) -> None:
    """Where no agentd was before, that is done at once."""
    assert await sessions.recover() == ()


async def test_unknown(settings: Settings, escaped: subprocess.Popen[bytes]) -> None:
    """While tmux cannot tell what there is, nothing is touched and it is not done."""
    async with open_tmux(settings) as tmux:
        sessions = sessions_of(settings, tmux)
        directory = make_directory(sessions, f"{sessions.world.instance}-dead-1")
    assert await sessions.recover() is None
    assert escaped.poll() is None
    assert directory.exists()


async def test_tmux_dies_in_the_midst(
    settings: Settings,
    sessions: TmuxSessions,
    tmux: Tmux,
    escaped: subprocess.Popen[bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A tmux server that dies while a left-over session is ended makes it not done; the next time does it."""
    caplog.set_level(logging.WARNING)
    await session.create(
        tmux,
        "a",
        f"{sessions.world.instance}/dead",
        session.Inside(workdir=sessions.world.settings.default_workdir, env={}),
    )
    (server,) = await tmux.command("display-message", "-p", "#{pid}")
    scanner = HaltingScanner(os.geteuid())
    scanner.server = int(server)
    halting = TmuxSessions(settings, tmux, scanner, time.time)
    number = generation(tmux)
    assert await kill_unanswering(tmux, int(server), halting.recover) is None
    await reconnected(tmux, number)
    assert sum(WORDS in record.getMessage() for record in caplog.records) == 1
    assert escaped.wait(5) == -signal.SIGTERM
    assert await sessions.recover() == ()


async def behind(sessions: TmuxSessions, tmux: Tmux, run: str) -> tuple[TmuxAttempt, int]:
    """Make an attempt with a session of another run in its way, which it is about to end; tell the server's pid."""
    inside = session.Inside(workdir=sessions.world.settings.default_workdir, env={})
    await session.create(tmux, "a", f"{sessions.world.instance}/{run}", inside)
    (server,) = await tmux.command("display-message", "-p", "#{pid}")
    attempt = attempt_of(sessions)
    attempt.state.leftover = await session.find(tmux, "a", sessions.world.instance)
    assert attempt.state.leftover is not None
    return attempt, int(server)


async def test_tmux_dies_in_a_close(sessions: TmuxSessions, tmux: Tmux, caplog: pytest.LogCaptureFixture) -> None:
    """A close that has to end the session that was in its way survives the death of the tmux server."""
    caplog.set_level(logging.WARNING)
    attempt, server = await behind(sessions, tmux, "dead")
    os.kill(server, signal.SIGSTOP)
    await kill_unanswering(tmux, server, attempt.close)
    assert sum(WORDS in record.getMessage() for record in caplog.records) == 1
    await attempt.close()
    assert await names(tmux) == []


async def test_tmux_stands_still_in_a_close(sessions: TmuxSessions, tmux: Tmux) -> None:
    """A session that was in the way of a launch, and could not be ended at its close, ends when tmux answers again."""
    attempt, server = await behind(sessions, tmux, "another")
    os.kill(server, signal.SIGSTOP)
    with trio.fail_after(10):
        while not is_halted(server):  # noqa: ASYNC110 - nobody tells of it
            await trio.sleep(0.01)
        await attempt.close()
        os.kill(server, signal.SIGCONT)
        while await names(tmux) != []:  # noqa: ASYNC110 - nobody tells of it
            await trio.sleep(0.01)
