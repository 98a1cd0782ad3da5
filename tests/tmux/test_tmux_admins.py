"""Who may attach to the server of another user. The users are the machine's own, none is made."""

import grp
import os
import pwd
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from typing import cast

import attrs
import pytest
import trio

import agentd.tmux.admins
from agentd.errors import TmuxError
from agentd.settings import Settings
from agentd.tmux.admins import admit_admins, group_members
from agentd.tmux.client import Client, Request
from agentd.tmux.connection import Tmux, open_tmux
from tests.settings import agent_user
from tests.tmux.connections import lost

_ADMIN, _STRANGER = "daemon", "bin"


def _refuses_strangers() -> bool:
    version = subprocess.run([shutil.which("tmux") or "tmux", "-V"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", version)
    return found is None or (int(found[1]), int(found[2])) >= (3, 3)


needs_two_users = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become others")
needs_server_access = pytest.mark.skipif(not _refuses_strangers(), reason="tmux before 3.3 admits by the socket alone")


@pytest.fixture
def shared(settings: Settings) -> Settings:
    """Make settings of root's agentd; the admin group is the own group of a user that every machine has."""
    directory = settings.tmux_socket.parent
    directory.chmod(0o711)
    user = agent_user(pwd.getpwnam("nobody"))
    os.chown(directory, user.uid, -1)
    return attrs.evolve(settings, agent_user=user, switch_user=True, admin_gid=pwd.getpwnam(_ADMIN).pw_gid)


def _try_as(name: str, settings: Settings) -> str:
    """Ask the server as that user, whom the socket's mode lets in, and return what it says."""
    user = pwd.getpwnam(name)
    asked = subprocess.run(
        [settings.tmux, "-N", "-S", str(settings.tmux_socket), "list-sessions", "-F", "#{session_name}"],
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[cast("int", settings.admin_gid)],
        env={},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    return (asked.stdout + asked.stderr).strip()


async def _admitted(tmux: Tmux, name: str) -> None:
    """Wait until the server admits that user."""
    with trio.fail_after(10):
        while f"{name} (W)" not in await tmux.command("server-access", "-l"):
            pass  # each question is a while


@needs_two_users
@needs_server_access
async def test_admins_and_a_stranger(shared: Settings) -> None:
    """A member of the admin group may attach, to a new server too; a stranger whom the socket's mode admits may not."""
    async with open_tmux(shared) as tmux:
        for number in range(2):
            await _admitted(tmux, _ADMIN)
            assert _try_as(_ADMIN, shared) == "_agentd"
            assert _try_as(_STRANGER, shared) == "access not allowed"
            if number == 0:
                (server,) = await tmux.command("display-message", "-p", "#{pid}")
                os.kill(int(server), signal.SIGKILL)
                await lost(tmux, 1)


@needs_two_users
@needs_server_access
async def test_admin_who_is_added_later(
    shared: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who joins the group later is admitted soon; the agent user, root and who is unknown to tmux are no trouble."""
    members = {"root", shared.agent_user.name, "no-such-user"}
    monkeypatch.setattr(agentd.tmux.admins, "_LOOK", 0.02)
    monkeypatch.setattr(agentd.tmux.admins, "group_members", lambda _gid: set(members))
    async with open_tmux(shared) as tmux:
        with trio.fail_after(10):
            while not caplog.records:
                await trio.lowlevel.checkpoint()
        assert _try_as(_STRANGER, shared) == "access not allowed"
        members.add(_STRANGER)
        await _admitted(tmux, _STRANGER)
        assert _try_as(_STRANGER, shared) == "_agentd"
    (record,) = caplog.records
    assert record.message.startswith("no-such-user of the admin group cannot attach: ")


@needs_two_users
async def test_group_without_members(shared: Settings) -> None:
    """A group of nobody admits nobody, and stops nothing."""
    async with open_tmux(attrs.evolve(shared, admin_gid=12345)) as tmux:
        assert await tmux.command("display-message", "-p", "x") == ("x",)


class _OldServer:
    """A server that knows no such command."""

    def __init__(self) -> None:
        self.asked = 0

    async def ask(self, request: Request) -> tuple[str, ...]:
        """Refuse it."""
        self.asked += 1
        message = f"tmux {request.name}: unknown command: {request.name}"
        raise TmuxError(message)


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        (lambda settings: settings, 1),
        (lambda settings: attrs.evolve(settings, admin_gid=None), 0),
        (lambda settings: attrs.evolve(settings, switch_user=False), 0),
    ],
    ids=["old", "no group", "own user"],
)
async def test_nobody_to_ask(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Settings], Settings],
    asked: int,
) -> None:
    """An older tmux is asked once; without an admin group, or where agents are root, nobody is admitted at all."""
    monkeypatch.setattr(agentd.tmux.admins, "group_members", lambda _gid: {"one", "two"})
    server = _OldServer()
    with trio.fail_after(5):
        await admit_admins(change(attrs.evolve(settings, admin_gid=1, switch_user=True)), cast("Client", server))
    assert server.asked == asked
    assert caplog.records == []


def test_members_of_a_group() -> None:
    """A group's members are those who have it as their own, and those whom it names; an unknown one has none."""
    for user in pwd.getpwall():
        assert user.pw_name in group_members(user.pw_gid)
    for group in grp.getgrall():
        assert set(group.gr_mem) <= group_members(group.gr_gid)
    assert group_members(4_000_000_000) == set()
