"""The ground on which hostile agents are let loose: what must not have changed when they are done."""

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agentd.processes.scan import read_stat
from tests.system.service import API_SOCKET, TMUX_SOCKET, Service, run_as

RUN_DIR = Path("/run/agentd-run")
SOCKETS = Path("/run/agentd")
SECRET = Path("/root/alone")
WORDS = "for root alone"
_FILES = ("/etc/passwd", "/etc/shadow", "/etc/sudoers", "/etc/stereos/jcard.toml", str(SECRET))
_PLACES = ("/etc", "/etc/stereos", "/root", "/run", "/run/stereos", str(RUN_DIR), "/run/systemd", "/usr/local/bin")
HELPERS = Path("/usr/local/lib/hostile")


class Ground:
    """A service with a bystander, beside daemons of root and of another user, and files of root's alone."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.evil = service.home / "evil"
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._seen: dict[str, object] = {}
        self._pid = 0

    def prepare(self) -> None:
        """Start the service and all that is to be left alone."""
        SECRET.write_text(WORDS)
        SECRET.chmod(0o600)
        for path in Path(__file__).parent.glob("hostile_*"):
            HELPERS.mkdir(mode=0o755, exist_ok=True)
            shutil.copy(path, HELPERS)
        self.evil.mkdir()
        shutil.chown(self.evil, "agent", "agent")
        for user in ("root", "mallory"):
            self.daemon(user)
        self.write_card()
        self.service.start()
        self.service.wait_ready("bystander")
        self.observe()

    def close(self) -> None:
        """Take away what was made; the service is somebody else's to stop."""
        for daemon in self._daemons:
            daemon.kill()
            daemon.wait()
        shutil.rmtree(self.evil, ignore_errors=True)
        (self.service.home / ".bashrc").unlink(missing_ok=True)
        SECRET.unlink(missing_ok=True)
        SOCKETS.chmod(0o750)
        for path in SOCKETS.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif not path.is_socket() or path.is_symlink():
                path.unlink()
        sessions = self.service.tmux("list-sessions", "-F", "#{session_name}").stdout.splitlines()
        for name in sessions:
            if name not in {"_agentd", "bystander"}:
                self.service.tmux("kill-session", "-t", f"={name}")

    def daemon(self, user: str, **env: str) -> int:
        """Start a daemon of a user, which leads a session; return its pid."""
        entry = pwd.getpwnam(user)
        daemon = subprocess.Popen(
            ["sleep", "86000"], user=entry.pw_uid, group=entry.pw_gid, extra_groups=[], start_new_session=True, env=env
        )
        self._daemons.append(daemon)
        return daemon.pid

    def write_card(self, *agents: Mapping[str, Any], version: int = 1) -> None:
        """Write a card of these agents and the bystander; another version of it is launched anew."""
        bystander = self.service.agent("bystander", restart="always", env={"VERSION": str(version)})
        self.service.write_card(bystander, *agents)

    def observe(self) -> None:
        """Note how everything is that is to stay so."""
        self._pid = self.service.pid
        self._seen = self._look()

    def _look(self) -> dict[str, object]:
        seen: dict[str, object] = {}
        for name in _FILES[:3]:
            seen[name] = hashlib.sha256(Path(name).read_bytes()).hexdigest()
        for name in (*_FILES, *_PLACES):
            found = os.stat(name)
            seen[f"{name}: mode"] = (found.st_mode, found.st_uid, found.st_gid)
        for name in _PLACES:
            seen[f"{name}: what is in it"] = self._listed(name)
        seen["daemons"] = [
            (daemon.pid, stat.start_ticks, stat.state)
            for daemon in self._daemons
            if (stat := read_stat(daemon.pid)) is not None
        ]
        api = API_SOCKET.lstat()
        seen["api"] = (api.st_ino, api.st_mode, api.st_uid, api.st_gid)
        seen["secret"] = SECRET.read_text()
        return seen

    def _listed(self, name: str) -> list[str]:
        if name == str(RUN_DIR) or name == "/run/systemd":
            return []
        return sorted(entry for entry in os.listdir(name) if not entry.startswith("jcard"))

    def prove(self, *, restarted: bool = False) -> None:
        """Fail if anything has happened to root's files, others' processes, the API or the bystander's supervision."""
        seen = self._look()
        if restarted:
            seen["api"], self._seen["api"] = seen["api"][1:], self._seen["api"][1:]  # type: ignore[index]
        else:
            assert self.service.pid == self._pid, "agentd is another one"
        changed = {key: (self._seen[key], seen[key]) for key in seen if seen[key] != self._seen[key]}
        assert not changed, changed
        assert self.service.get("/v1/health").json["state"] == "running"
        self.prove_supervised()
        assert "for root alone" not in "\n".join(self.service.log)

    def prove_supervised(self) -> None:
        """Fail unless the bystander is restarted when it dies, and the API tells of it."""
        before = self.service.wait_status("bystander", state="running", running=True)
        os.kill(before["pid"], signal.SIGKILL)
        after = self.service.wait_status("bystander", state="running", attempt=before["attempt"] + 1)
        assert after["pid"] != before["pid"]

    def cpu_seconds(self) -> float:
        """What agentd has used of a processor so far."""
        words = Path(f"/proc/{self.service.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    # The attackers.

    def tmux(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Ask the tmux server, as an agent."""
        return run_as("agent", "tmux", "-S", str(TMUX_SOCKET), *words)

    def rc_file(self, text: str) -> None:
        """Have the agents' shells begin with this."""
        place = self.service.home / ".bashrc"
        place.write_text(text)

    def as_agent(self, script: str, *words: str) -> str:
        """Run a shell script as the user agent, outside of everything that agentd has started."""
        done = run_as("agent", "sh", "-c", script, "sh", *words)
        return done.stdout + done.stderr

    @contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """Have a command of the user agent run meanwhile."""
        entry = pwd.getpwnam("agent")
        process = subprocess.Popen(
            command, user=entry.pw_uid, group=entry.pw_gid, extra_groups=[], start_new_session=True, cwd="/",
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def instance(service: Service) -> str:
    """By what agentd knows its own."""
    mark = service.tmux("show-environment", "-t", "=bystander:", "AGENTD_SESSION").stdout
    return mark.partition("=")[2].partition("/")[0]


@contextmanager
def hostile(*lines: str, rc_file: str = "") -> Iterator[Ground]:
    """A ground for attacks; the lines are for the service's unit, and the rc file is the agents'."""
    service = Service()
    service.prepare()
    if lines:
        service.change(*lines)
    ground = Ground(service)
    try:
        try:
            ground.rc_file(rc_file)
            ground.prepare()
            yield ground
        finally:
            ground.close()
    finally:
        service.close()
