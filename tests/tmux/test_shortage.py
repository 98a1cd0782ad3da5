"""Every call that may fail for want of something does so, on real tmux: nothing escapes, is lost or stays behind."""

import errno
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from agentd.attempts import attempt as attempt_module
from agentd.attempts.attempt import TmuxAttempt
from agentd.attempts.tmux_sessions import TmuxSessions
from agentd.card.card import Agent
from agentd.lifecycle import State
from agentd.processes.ending import Scanner
from agentd.resolve import EffectiveAgent
from agentd.sessions import AttemptRequest, LaunchBlockedError, RunNote
from agentd.settings import Settings
from agentd.tmux.connection import Tmux, open_tmux
from tests.faults import TAKING, WRITING, Faults
from tests.notes import note_of, status_of

MOST = 200
"""More calls than anything here makes."""
HARNESS = ("sh", "-c", "trap 'exit 4' INT; while :; do sleep 0.01; done")


@pytest.fixture(autouse=True)
def quick_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the shells in tmux a home of their own, and let them be quick."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/sh")


@pytest.fixture
async def tmux(settings: Settings) -> AsyncIterator[Tmux]:
    async with open_tmux(settings) as tmux:
        yield tmux


def sessions_on(settings: Settings, tmux: Tmux) -> TmuxSessions:
    return TmuxSessions(settings, tmux, Scanner(os.geteuid()), time.time)


def request(number: int, workdir: str = "/") -> AttemptRequest:
    agent = Agent(name="a", harness="custom", session="a", grace_period=3.0)
    effective = EffectiveAgent(agent=agent, argv=HARNESS, env={}, workdir=workdir, digest="d")
    return AttemptRequest(effective=effective, run="abc", number=number)


def note(request: AttemptRequest, pid: int, state: State = State.RUNNING) -> RunNote:
    status = status_of(state=state, running=True, since=time.time(), pid=pid, attempt=request.number, digest="d")
    return note_of(status, run=request.run, started=trio.current_time())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def whole_life(sessions: TmuxSessions, number: int) -> None:
    """All that becomes of an attempt, as a run has it: a launch that is blocked is swept, and that is its end."""
    mine = request(number)
    attempt = sessions.attempt(mine)
    assert isinstance(attempt, TmuxAttempt)
    try:
        sessions.remember(note(mine, 0, State.STARTING), attempt)
        pid = await attempt.launch()
    except LaunchBlockedError as blocked:
        assert blocked.blocked.reason in {"shortage", "run_dir"}  # noqa: PT017 - which it may be
    else:
        sessions.remember(note(mine, pid), attempt)
        await attempt.interrupt(again=False)
        with trio.fail_after(10):
            assert (await attempt.ended()).code in {4, 130}  # 130: before it had its trap
    assert await attempt.sweep() == 0
    await attempt.close()
    sessions.forget("abc")


@pytest.mark.parametrize(
    ("calls", "error"), [(TAKING, errno.EMFILE), (WRITING, errno.ENOSPC)], ids=["descriptors", "space"]
)
async def test_life(
    settings: Settings, tmux: Tmux, monkeypatch: pytest.MonkeyPatch, calls: tuple[tuple[object, str], ...], error: int
) -> None:
    """Whichever call fails between a launch and its end: the agent runs and ends, or waits, and nothing is left."""
    settings.run_dir.mkdir(mode=0o711)
    sessions = sessions_on(settings, tmux)
    faults = Faults(monkeypatch, calls, error)
    await sessions.recover()
    await whole_life(sessions, MOST + 1)
    before = descriptors()
    for call in range(MOST):
        with faults.at(call):
            await whole_life(sessions, call + 1)
        sessions.catch_up()
        assert list(settings.run_dir.iterdir()) == [], call
        assert descriptors() <= before, call
        if not faults.hit:
            break
    assert call > 10
    assert await tmux.command("list-sessions", "-F", "#{session_name}") == ("_agentd",)


async def test_take_over(settings: Settings, tmux: Tmux, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever calls fail while a running agent is taken over: it goes on, and its end is known."""
    monkeypatch.setattr(attempt_module, "LISTEN_PAUSE", 0.01)
    settings.run_dir.mkdir(mode=0o711)
    faults = Faults(monkeypatch, TAKING, errno.EMFILE)
    first = sessions_on(settings, tmux)
    mine = request(1)
    attempt = first.attempt(mine)
    assert isinstance(attempt, TmuxAttempt)
    pid = await attempt.launch()
    first.remember(note(mine, pid), attempt)
    assert attempt.state.lifeline is not None
    attempt.state.lifeline.close()
    for call in range(MOST):
        sessions = sessions_on(settings, tmux)
        with faults.at(call, 3):
            while (notes := await sessions.recover()) is None:
                assert faults.hit
            assert [(one.run, one.status.pid) for one in notes] == [("abc", pid)]
            taken = sessions.adopt(mine)
            assert isinstance(taken, TmuxAttempt)
            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(taken.ended)
                    while taken.state.lifeline is None:  # noqa: ASYNC110 - it is no event
                        await trio.sleep(0.01)
                    nursery.cancel_scope.cancel()
        if not faults.hit:
            break
        assert taken.state.lifeline is not None
        taken.state.lifeline.close()
    assert call > 5
    os.kill(pid, signal.SIGINT)
    with trio.fail_after(10):
        assert (await taken.ended()).code == 4
    await taken.sweep()
    await taken.close()


async def test_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at all processes that fails anywhere is made again: it never has fewer than there are."""
    monkeypatch.setattr(trio.to_thread, "run_sync", _no_thread)  # so that it is the main thread that looks
    faults = Faults(monkeypatch, TAKING, errno.EMFILE)
    scanner = Scanner(os.geteuid())
    for call in (0, 1, 2, 3, 10, 11, 12):
        with faults.at(call):
            snapshot = await scanner.scan()
        assert faults.hit
        assert {os.getpid(), os.getppid()} <= snapshot.processes.keys()
    assert len(scanner.shortages.warnings) == 1


async def _no_thread(*_args: object, **_keys: object) -> None:
    await trio.lowlevel.checkpoint()
    message = "can't start new thread"
    raise RuntimeError(message)
