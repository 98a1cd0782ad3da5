"""A server that a systemd unit holds; systemctl is a stand-in that keeps a record, the server is real."""

import logging
import os
import signal
from contextlib import suppress
from pathlib import Path

import attrs
import pytest
import trio

from agentd.errors import StartupError, TmuxUnknownError
from agentd.settings import Settings
from agentd.tmux.connection import Tmux, open_tmux
from agentd.tmux.unit import ends_unit
from tests.tmux.connections import lost

_UNIT = "agentd-tmux.service"
_MANAGER = "" if os.geteuid() == 0 else "--user "
_START = f"{_MANAGER}start --no-block --no-ask-password {_UNIT}"
_STOP = f"{_MANAGER}stop --no-block --no-ask-password {_UNIT}"
_IS_ACTIVE = f"{_MANAGER}is-active --quiet {_UNIT}"
_SHOW = f"{_MANAGER}show --property=ControlGroup --value {_UNIT}"

# "mode" has what is to go wrong. A server that is there already is left alone, as systemd leaves an active unit.
_SYSTEMCTL = """#!/bin/sh
cd {place}
echo "$*" >>calls
alive() {{ [ -f pid ] && grep -q '^State:.[^ZX]' "/proc/$(cat pid)/status" 2>/dev/null; }}
case $* in
*is-active*) alive; exit ;;
*list-jobs*) cat jobs; exit ;;
*show*) echo /agents; exit ;;
*start*) ;;
*) exit 0 ;;
esac
case $(cat mode) in
fail) echo "Failed to start: no such unit" >&2; exit 5 ;;
hang) exec sleep infinity ;;
queue) exit 0 ;;
esac
alive && exit 0
setsid {tmux} -D -f /dev/null -u -S {socket} </dev/null >/dev/null 2>&1 &
echo $! >pid
"""


class Systemd:
    """What stands in for it."""

    def __init__(self, settings: Settings, place: Path) -> None:
        self.place = place
        self.mode("work")
        self.jobs("")
        program = place / "systemctl"
        program.write_text(_SYSTEMCTL.format(place=place, tmux=settings.tmux, socket=settings.tmux_socket))
        program.chmod(0o755)
        self.settings = attrs.evolve(settings, tmux_unit=_UNIT, systemctl=str(program))

    def mode(self, word: str) -> None:
        """Choose what a start does: work, fail, hang, or be put in a queue."""
        (self.place / "mode").write_text(word)

    def jobs(self, lines: str) -> None:
        """Choose what systemd has to do."""
        (self.place / "jobs").write_text(lines)

    @property
    def calls(self) -> list[str]:
        """What systemctl was asked to do."""
        return (self.place / "calls").read_text().splitlines()

    @property
    def server(self) -> int:
        """The pid of the unit's server."""
        return int((self.place / "pid").read_text())

    def kill_server(self) -> None:
        """End the server as nobody wants it."""
        os.kill(self.server, signal.SIGKILL)


@pytest.fixture
def systemd(settings: Settings, tmp_path: Path) -> Systemd:
    return Systemd(settings, tmp_path)


async def _pid(tmux: Tmux) -> int:
    (line,) = await tmux.command("display-message", "-p", "#{pid}")
    return int(line)


def _servers(settings: Settings) -> list[int]:
    """Find every tmux server of the socket, whoever started it."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            server = Path(f"/proc/{pid}/comm").read_text() == "tmux: server\n"
            if server and bytes(settings.tmux_socket) in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


async def test_unit_starts_the_server(systemd: Systemd) -> None:
    """The server is the unit's and the only one, prepared as any; a clean stop ends it without a word to systemd."""
    async with open_tmux(systemd.settings) as tmux:
        assert await _pid(tmux) == systemd.server
        assert _servers(systemd.settings) == [systemd.server]
        assert await tmux.command("show-options", "-gv", "history-limit") == ("20000",)
        assert await tmux.end_server()
    assert _servers(systemd.settings) == []
    assert set(systemd.calls) == {_START, _SHOW}


async def test_killed_server_of_a_unit(systemd: Systemd) -> None:
    """When the server was killed the unit is started again, and no server comes from anywhere else."""
    async with open_tmux(systemd.settings) as tmux:
        before = systemd.server
        for _ in range(2):
            systemd.kill_server()
            with suppress(TmuxUnknownError):  # On the connection that is about to be lost.
                await tmux.command("display-message")
            assert await _pid(tmux) == systemd.server != before
            assert _servers(systemd.settings) == [systemd.server]
            before = systemd.server
        assert await tmux.end_server()


async def test_unit_that_runs(systemd: Systemd) -> None:
    """A server that outlived its agentd is the one that the next agentd has, even if systemd cannot be asked."""
    async with open_tmux(systemd.settings) as tmux:
        server = await _pid(tmux)
    systemd.mode("fail")
    async with open_tmux(systemd.settings) as tmux:
        assert await _pid(tmux) == server
        assert await tmux.end_server()


async def test_cgroup_that_cannot_be_found(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not tell of its mounts just now, the unit has no cgroup, and the connection is there."""
    monkeypatch.setattr("agentd.processes.cgroup._MOUNTS", systemd.place / "nothing")
    async with open_tmux(systemd.settings) as tmux:
        assert await _pid(tmux) == systemd.server
        assert tmux.cgroup is None
        assert await tmux.end_server()


async def test_unit_that_cannot_start(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """What systemd has against the unit is the reason why agentd does not start."""
    monkeypatch.setattr("agentd.tmux.connection._UNIT_PATIENCE", 0)
    systemd.mode("fail")
    words = rf"\(see systemctl status {_UNIT}\) cannot be used: Failed to start: no such unit$"
    with pytest.raises(StartupError, match=words):
        async with open_tmux(systemd.settings):
            pass
    assert _servers(systemd.settings) == []


@pytest.mark.parametrize(
    ("mode", "words"), [("hang", r"systemctl .*start.* did not answer within 0\.2 s"), ("queue", "no server|No such")]
)
async def test_unit_that_does_not_come(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, mode: str, words: str
) -> None:
    """Neither a systemd without an answer nor a start that waits for another holds anything up."""
    monkeypatch.setattr("agentd.tmux.connection._UNIT_PATIENCE", 0)
    monkeypatch.setattr("agentd.tmux.unit._TIMEOUT", 0.2)
    systemd.mode(mode)
    with trio.fail_after(10), pytest.raises(StartupError, match=words):
        async with open_tmux(systemd.settings):
            pass
    assert systemd.calls[-1] == _STOP


async def test_missing_systemctl(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A systemctl that is gone is named."""
    monkeypatch.setattr("agentd.tmux.connection._UNIT_PATIENCE", 0)
    with pytest.raises(StartupError, match=r"systemctl .* does not start: No such file"):
        async with open_tmux(attrs.evolve(systemd.settings, systemctl="/nowhere/systemctl")):
            pass


async def test_unit_that_fails_later(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the unit cannot be started again that is a warning with the reason, and it is tried until it can."""
    monkeypatch.setattr("agentd.tmux.connection._LONGEST_DELAY", 1.6)
    caplog.set_level(logging.WARNING)
    async with open_tmux(systemd.settings) as tmux:
        systemd.mode("fail")
        systemd.kill_server()
        with trio.fail_after(10):
            while not any("Failed to start: no such unit" in record.message for record in caplog.records):
                await trio.lowlevel.checkpoint()
        systemd.mode("work")
        with suppress(TmuxUnknownError):
            await tmux.command("display-message")
        assert await _pid(tmux) == systemd.server
        assert await tmux.end_server()


async def test_start_that_is_queued_at_the_end(systemd: Systemd) -> None:
    """A start that has not begun when agentd ends is taken back: its server would run when agentd is gone."""
    async with open_tmux(systemd.settings) as tmux:
        systemd.mode("queue")
        systemd.kill_server()
        assert not await tmux.end_server()
    assert systemd.calls[-2:] == [_IS_ACTIVE, _STOP]
    assert _servers(systemd.settings) == []


@pytest.mark.parametrize(
    ("jobs", "ends"),
    [
        ("", False),
        ("71 agentd-tmux.service start waiting\n", False),
        ("71 agentd-tmux.service stop waiting\n", True),
        ("71 agentd-tmux.service restart running\n", True),
    ],
)
async def test_end_of_the_unit(systemd: Systemd, jobs: str, ends: bool) -> None:
    """That systemd is about to end the unit, in a shutdown of the machine say, is known by its jobs."""
    systemd.jobs(jobs)
    assert await ends_unit(systemd.settings) is ends
    (systemd.place / "jobs").unlink()
    assert not await ends_unit(systemd.settings), "where systemd does not answer nobody knows"


async def test_unit_that_runs_at_the_end(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit that runs is never stopped, even if its server cannot be reached at the end: people may be in it."""
    monkeypatch.setattr("agentd.tmux.connection._END_TIMEOUT", 0.2)
    monkeypatch.setattr("agentd.tmux.connection.resume_server", lambda *_: None)
    async with open_tmux(systemd.settings) as tmux:
        client = (await tmux.command("list-clients", "-F", "#{client_pid}"))[0]
        os.kill(systemd.server, signal.SIGSTOP)
        os.kill(int(client), signal.SIGKILL)
        await lost(tmux, 1)
        assert not await tmux.end_server()
    os.kill(systemd.server, signal.SIGCONT)
    assert systemd.calls[-1] == _IS_ACTIVE
    assert _servers(systemd.settings) == [systemd.server]
