"""The user unit: a person's own agentd, on their own box."""

import os
import pwd
import shutil
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.outside import wait_for
from tests.system.service import TMUX, UNIT, Service, run, run_as

PERSON = "alice"
UID = pwd.getpwnam(PERSON).pw_uid if "AGENTD_MACHINE" in os.environ else -1
RUNTIME = Path(f"/run/user/{UID}")


class OwnService(Service):
    """The service of a person's own agentd."""

    user = PERSON
    systemctl_words = ("runuser", "-u", PERSON, "--", "env", f"XDG_RUNTIME_DIR={RUNTIME}", "systemctl", "--user")
    api_socket = RUNTIME / "agentd" / "agentd.sock"
    tmux_socket = RUNTIME / "agentd" / "tmux.sock"
    card = Path("/home", PERSON, ".config/agentd/jcard.toml")
    drop_ins = RUNTIME / "systemd" / "user"

    def processes(self) -> dict[int, str]:
        """What lives of agents and tmux; the user's own manager does anyway."""
        managers = (
            "/lib/systemd/systemd --user",
            "(sd-pam)",
            "/usr/bin/dbus-daemon",
            "/usr/lib/systemd/systemd --user",
        )
        return {pid: words for pid, words in super().processes().items() if not words.startswith(managers)}

    def _journal(self) -> tuple[str, ...]:
        return (f"_SYSTEMD_USER_UNIT={UNIT}", f"_UID={UID}", "_TRANSPORT=stdout")


@pytest.fixture
def own() -> Iterator[OwnService]:
    """A person with a user manager, who can read the environment that the tests are run from."""
    python = Path(sys.executable)
    closed = [
        place
        for path in (python, python.resolve(), Path(sys.base_prefix), Path(__file__))
        for place in path.parents
        if place.stat().st_mode & stat.S_IXOTH == 0
    ]
    # The machine's own directories, which the real ones know nothing of.
    modes = {place: stat.S_IMODE(place.stat().st_mode) for place in closed}
    for place, mode in modes.items():
        place.chmod(mode | stat.S_IXOTH)
    readable = run_as(PERSON, "agentd", "-version")
    assert readable.returncode == 0, f"{PERSON} cannot run agentd from {sys.prefix}: {readable.stderr}"
    run("loginctl", "enable-linger", PERSON)
    wait_for((RUNTIME / "systemd" / "private").exists, "the user manager")
    service = OwnService()
    service.prepare()
    shutil.rmtree(service.drop_ins, ignore_errors=True)
    run("chown", "-R", PERSON, str(service.home))
    yield service
    service.close()
    run("loginctl", "disable-linger", PERSON)
    for place, mode in modes.items():
        place.chmod(mode)


def test_own_service(own: OwnService) -> None:
    """A person's own agentd runs agents as themselves in their own unit, outlives a kill -9, and leaves nothing."""
    own.write_card(own.agent("a", env={"LINGER": "1"}))
    own.start()
    assert own.get("/v1/health").json["state"] == "running"
    start = own.wait_ready("a")
    assert (start.read("user"), start.read("umask")) == (PERSON, "0022")
    assert f"/user@{UID}.service/app.slice/{TMUX}/agentd-" in start.read("cgroup").split("\n")[-1]
    assert not {"NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM", "MANAGERPID"} & start.env.keys()
    assert stat.S_IMODE(own.api_socket.parent.stat().st_mode) == 0o700
    os.kill(own.pid, signal.SIGKILL)
    own.wait_restarted()
    own.wait_status("a", pid=start.pid, state="running")
    own.systemctl("stop", UNIT)
    assert start.events == ["INT", "gone"]
    assert own.show("ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    wait_for(lambda: own.show("ActiveState", unit=TMUX)["ActiveState"] == "inactive", f"the end of {TMUX}")
    assert own.processes() == {}
