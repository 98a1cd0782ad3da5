"""Who may attach and ask: root, admins, and nobody else."""

import json
import os
import pty
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.e2e.outside import wait_for
from tests.system.service import API_SOCKET, TMUX_SOCKET, Service, run, run_as

ASK = ("curl", "--silent", "--show-error", "--unix-socket", str(API_SOCKET), "http://localhost/v1/agents")
ATTACH = ("tmux", "-S", str(TMUX_SOCKET), "attach", "-t", "claude-code")


@pytest.fixture(scope="module")
def running(at_boot: object) -> Iterator[Service]:
    service = Service()
    service.prepare()
    service.write_card(service.agent("claude-code", harness="claude-code"))
    service.start()
    service.wait_ready("claude-code")
    yield service
    service.close()


class Terminal:
    """A command at a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir("/")
            os.environ["TERM"] = "xterm"
            os.execvp(command[0], command)
        os.set_blocking(self.fd, False)
        self.shown = ""
        self.code: int | None = None

    def ended(self) -> bool:
        """Whether it has ended; what it shows is read meanwhile."""
        with suppress(OSError):
            self.shown += os.read(self.fd, 65536).decode(errors="replace")
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.fd, keys)


def attach(service: Service, *command: str) -> Terminal:
    """Attach, leave again, and return the terminal."""
    terminal = Terminal(*command)

    def attached() -> bool:
        assert not terminal.ended(), terminal.shown
        return bool(service.tmux("list-clients", "-t", "=claude-code:").stdout)

    wait_for(attached, "the attached client")
    terminal.type(b"\x02d")
    wait_for(terminal.ended, "the end of the client")
    return terminal


def test_admin_asks(running: Service) -> None:
    """A member of the admin group asks the API."""
    asked = run_as("alice", *ASK)
    assert [agent["name"] for agent in json.loads(asked.stdout)] == ["claude-code"]


def test_admin_asks_with_agentctl(running: Service) -> None:
    """The installed agentctl finds the system's agentd."""
    shown = json.loads(run("agentctl", "status", "--json").stdout)
    assert "claude-code" in json.dumps(shown)


@pytest.mark.parametrize("sudo", [("sudo", "-u", "agent"), ("sudo",), ()], ids=["as-agent", "as-root", "member"])
def test_admin_attaches(running: Service, sudo: tuple[str, ...]) -> None:
    """An admin attaches as the agent user, as root, or as a member of the group, and leaves; nothing is disturbed."""
    pid = running.status("claude-code")["pid"]
    terminal = attach(running, "runuser", "-u", "alice", "--", *sudo, *ATTACH)
    assert (terminal.code, "[detached" in terminal.shown) == (0, True)
    assert running.status("claude-code")["pid"] == pid


def test_stranger(running: Service) -> None:
    """Who is not in the group can neither ask nor attach, nor even see what is there."""
    asked = run_as("mallory", *ASK)
    assert (asked.returncode, asked.stdout) == (7, "")
    attached = run_as("mallory", *ATTACH)
    assert attached.returncode != 0
    assert "Permission denied" in attached.stderr
    assert run_as("mallory", "sudo", "-n", *ATTACH).returncode != 0
    for place in (API_SOCKET.parent, TMUX_SOCKET.parent):
        assert run_as("mallory", "ls", str(place)).returncode != 0


def test_agent_asks_not(running: Service) -> None:
    """Agents have no access to the API."""
    assert run_as("agent", *ASK).returncode == 7


def test_no_admin_group(service: Service) -> None:
    """Without an admin group there is one warning, and agentd runs."""
    run("groupmod", "-n", "elsewhere", "admin")
    try:
        service.write_card(service.agent("a"))
        service.start()
        service.wait_ready("a")
    finally:
        run("groupmod", "-n", "admin", "elsewhere")
    about = [entry for entry in service.entries if '"admin"' in str(entry["MESSAGE"])]
    assert [entry["PRIORITY"] for entry in about] == ["4"]
