"""Not enough of something, in process: every call fails in its turn, and no thread can be started."""

import errno
import logging
import os
import pwd
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import agentd.api.server
import agentd.daemon
import agentd.inputs.settle
from agentd.api.app import create_app
from agentd.attempts.memory import Memory
from agentd.errors import is_shortage, threads_as_processes
from agentd.inputs.reader import InputReader, Inputs
from agentd.inputs.watch import Watch
from agentd.processes.shortages import Shortages
from agentd.resolve import Blocked, EffectiveAgent
from agentd.sdnotify import Notifier
from agentd.settings import Settings
from agentd.status import DaemonStatus, StatusStore
from tests.faults import TAKING, WRITING, Faults
from tests.notes import note_of, status_of
from tests.settings import agent_user, settings_below

MOST = 100
CARD = '[agent]\nharness = "custom"\nargs = ["{prompt}"]\nprompt_file = "prompt.md"\n'
ATTEMPT = dict.fromkeys(("place", "typed", "accounted", "launcher", "launcher_ticks", "harness"))


def settings_of(top: Path, **changes: Any) -> Settings:
    user = agent_user(pwd.getpwuid(os.geteuid()), home=str(top), shell="/bin/sh")
    return settings_below(top, **{"agent_user": user} | changes)


def short(number: int = errno.EMFILE) -> OSError:
    return OSError(number, os.strerror(number))


def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no thread be started; those that trio keeps for a moment are of other tests."""

    def fail(*_args: object, **_keys: object) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    monkeypatch.setattr(trio._threads, "start_thread_soon", fail)


# What is said


async def test_said_once(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """A shortage is one line in the log while it lasts, whoever meets it, and a warning until it is over."""
    caplog.set_level(logging.INFO)
    shortages = Shortages()
    ends = trio.current_time() + 60

    def look() -> str:
        if trio.current_time() < ends:
            raise short()
        return "seen"

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(shortages.outlast, look)
        await trio.sleep(59)
        assert len([*shortages.warnings]) == 1
    assert trio.current_time() == pytest.approx(ends, abs=0.1)
    await trio.sleep(10)
    assert [*shortages.warnings] == []
    with pytest.raises(OSError, match="loop"):
        shortages.note(OSError(errno.ELOOP, "loop"))
    shortages.note(short())
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]


def test_thread_as_process() -> None:
    """A thread that cannot be started is a shortage like a process; another error stays what it is."""
    no_thread, other = RuntimeError("can't start new thread"), RuntimeError("other")
    with pytest.raises(OSError, match="no thread") as caught, threads_as_processes():
        raise no_thread
    assert is_shortage(caught.value)
    with pytest.raises(RuntimeError, match="other"), threads_as_processes():
        raise other


# What is read


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A card, its prompt and two secrets, which settle at once."""
    monkeypatch.setattr(agentd.inputs.settle, "SETTLE", 0)
    monkeypatch.setattr("agentd.inputs.reader.SETTLE", 0)
    (tmp_path / "secrets").mkdir()
    for name in ("ONE", "TWO"):
        (tmp_path / "secrets" / name).write_text(name.lower())
    (tmp_path / "prompt.md").write_text("Do it.")
    (tmp_path / "jcard.toml").write_text(CARD)
    return tmp_path


def digest(inputs: Inputs) -> str:
    ((_, what),) = inputs.wanted.values()
    assert isinstance(what, EffectiveAgent), what
    return what.digest


async def test_first_look(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever call of a first look fails: nothing is wanted but what the card wants, and the next look has all."""
    faults = Faults(monkeypatch, TAKING, errno.EMFILE)
    whole = digest(await InputReader(settings_of(inputs), Watch()).read())
    for call in range(MOST):
        reader = InputReader(settings_of(inputs), Watch())
        with faults.at(call):
            looked = await reader.read()
        for _, what in looked.wanted.values():
            if isinstance(what, Blocked):
                assert what.reason in {"secrets", "prompt_file"}
            else:
                assert isinstance(what, EffectiveAgent)
                assert what.digest == whole
        again = await reader.read()
        assert (digest(again), again.warnings, again.card_error) == (whole, (), None)
        if not faults.hit:
            break
    assert call > 5


async def test_later_look(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever call of a later look fails, and all after it: what was good is in force, said in one warning each."""
    faults = Faults(monkeypatch, TAKING, errno.EMFILE)
    reader = InputReader(settings_of(inputs), Watch())
    whole = digest(await reader.read())
    for call in range(MOST):
        os.utime(inputs / "prompt.md")
        with faults.at(call, MOST):
            looked = await reader.read()
        assert digest(looked) == whole
        assert len(looked.warnings) <= 1
        if not faults.hit:
            break
    assert call > 5
    assert (await reader.read()).warnings == ()


async def test_large_card_without_thread(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that is parsed in a thread waits for one, and the last good one stays in force."""
    reader = InputReader(settings_of(inputs), Watch())
    whole = digest(await reader.read())
    (inputs / "jcard.toml").write_text(CARD + 'binary = "other"\n# ' + "x" * 70_000)
    with monkeypatch.context() as patch:
        no_threads(patch)
        looked = await reader.read()
        assert digest(looked) == whole
        assert "no more processes and threads" in (looked.card_error or "")
    looked = await reader.read()
    assert looked.card_error is None
    assert digest(looked) != whole


async def test_prompt_without_process(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt file for whose reader there is no process keeps what was last read; never read, the agent waits."""
    user = agent_user(pwd.getpwnam("nobody"), home=str(inputs))
    reader = InputReader(settings_of(inputs, agent_user=user, switch_user=True), Watch())
    no_threads(monkeypatch)
    ((_, what),) = (await reader.read()).wanted.values()
    assert isinstance(what, Blocked)
    assert (what.reason, "no thread can be started" in what.message) == ("prompt_file", True)


# What is written


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE])
async def test_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: int
) -> None:
    """Whichever calls fail while a note is written or removed: the old or the new one is there, a look mends it."""
    settings = settings_of(tmp_path)
    settings.run_dir.mkdir(mode=0o711)
    faults = Faults(monkeypatch, (*WRITING, (os, "listdir")), error)
    for call in range(MOST):
        memory = Memory(settings, "instance")
        memory.write(note_of(status_of(pid=1)), ATTEMPT)
        with faults.at(call, MOST):
            memory.write(note_of(status_of(pid=2)), ATTEMPT)
            memory.catch_up(())
        failed = faults.hit
        found = Memory(settings, "instance").read().runs["a"][0].status.pid
        assert found == 2 or (found == 1 and memory.warnings)
        memory.catch_up(())
        assert memory.warnings == ()
        assert Memory(settings, "instance").read().runs["a"][0].status.pid == 2
        with faults.at(call, MOST):
            memory.forget("abc")
            memory.catch_up(())
        memory.catch_up(())
        assert list(settings.run_dir.iterdir()) == []
        if not failed and not faults.hit:
            break
    assert call > 1
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) <= 2 * call


async def test_unknown_is_not_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes that cannot be looked for, or opened, are an error and neither none nor another version's."""
    settings = settings_of(tmp_path)
    settings.run_dir.mkdir(mode=0o711)
    Memory(settings, "instance").write(note_of(status_of()), ATTEMPT)
    faults = Faults(monkeypatch, TAKING, errno.EMFILE)
    memory = Memory(settings, "instance")
    for call in range(MOST):
        with faults.at(call):
            try:
                remembered = memory.read()
            except OSError as error:
                assert is_shortage(error)  # noqa: PT017 - the other outcome is below
                continue
        assert list(remembered.runs) == ["a"]
        if not faults.hit:
            break
    assert call > 1


# Services


async def test_api_is_imported_later(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without threads or descriptors the API is imported when there are some, said once; a stop does not wait."""
    fails = [short(), short(), short(errno.ENFILE)]

    def run_sync(*_args: object) -> str:
        if fails:
            raise fails.pop()
        return "the API"

    async def in_thread(*_args: object) -> str:
        await trio.lowlevel.checkpoint()
        return run_sync()

    monkeypatch.setattr(trio.to_thread, "run_sync", in_thread)
    assert await agentd.daemon._imported_api(trio.Event()) == "the API"  # type: ignore[comparison-overlap]
    assert trio.current_time() == 3
    assert len(caplog.records) == 1
    fails += [short()] * MOST
    no_agents = trio.Event()
    with trio.fail_after(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agentd.daemon._imported_api, no_agents)
            await trio.sleep(1.5)
            no_agents.set()


async def test_api_serves_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An API for whose server there is no descriptor is served as soon as there is one, said once."""
    monkeypatch.setattr(agentd.api.server, "_PAUSE", 0.01)
    dup, fails = os.dup, [short(), short()]

    def failing(descriptor: int) -> int:
        if fails:
            raise fails.pop()
        return dup(descriptor)

    monkeypatch.setattr(os, "dup", failing)

    app = create_app(StatusStore(DaemonStatus(started=0.0, card="card")), version="1")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        shutdown = trio.Event()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:

                async def serve(task_status: trio.TaskStatus[None]) -> None:
                    await agentd.api.server.serve_api(app, listening, shutdown=shutdown, task_status=task_status)

                await nursery.start(serve)
                shutdown.set()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_refused_clients_are_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """That no client can be accepted is one line without a traceback while it lasts, however often trio says it."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log = logging.getLogger("trio.serve_listeners")
    monkeypatch.setattr(log.filters[0], "_last", -1.0)  # whatever other tests have had it say
    for pause in (100.0, 0.1, 0.1, 0.1, 6.0):
        now += pause
        log.error("accept returned EMFILE", exc_info=short())
    assert [record.exc_info for record in caplog.records] == [None, None]


async def test_notification_is_not_lost(autojump_clock: MockClock) -> None:
    """A message that the kernel has no memory for is sent again: systemd would wait for it."""
    sent: list[bytes] = []

    class Sender:
        def sendto(self, data: bytes, _flags: int, _address: bytes) -> None:
            if trio.current_time() < 1:
                raise short(errno.ENOBUFS)
            sent.append(data)

    await Notifier(Sender(), b"", 30).tell_reloaded()  # type: ignore[arg-type]
    assert sent == [b"READY=1"]
