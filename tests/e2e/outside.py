"""agentd seen from outside: its process, its API, its tmux server, its log, and what stand-in harnesses wrote down."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

_T = TypeVar("_T")

PATIENCE = 15.0
"""Seconds after which what was waited for will not come."""
_POLL = 0.01
_HARNESSES = ("claude", "opencode", "gemini", "agent")


def wait_for(find: Callable[[], _T | None], what: str, *, seconds: float = PATIENCE) -> _T:
    """Return what `find` finds as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, f"in vain for {seconds:g} s: {what}"
        time.sleep(_POLL)
    return found


def lives(pid: int) -> bool:
    """Whether the process is there; a zombie is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def processes_with(word: str) -> dict[int, str]:
    """The living processes that have the word in their command line or environment."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if os.fsencode(word) in line + (entry / "environ").read_bytes() and lives(int(entry.name)):
                    found[int(entry.name)] = line.replace(b"\0", b" ").decode(errors="replace")[:200]
    return found


def state_of(pid: int) -> str:
    """What a process does, as one letter."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextmanager
def halted(pid: int) -> Iterator[None]:
    """Have a process stand still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: state_of(pid) == "T", "its standstill")
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class Start:
    """What a stand-in harness wrote down of one start."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def argv(self) -> list[str]:
        """Its arguments, after the name of the program that was started."""
        words = self._read("argv").split("\0")[:-1]
        return [self._read("name"), *words]

    @property
    def env(self) -> dict[str, str]:
        """Its environment."""
        return dict(entry.split("=", 1) for entry in self._read("environ").split("\0")[:-1])

    @property
    def cwd(self) -> str:
        """Its working directory."""
        return self._read("cwd")

    @property
    def pid(self) -> int:
        """Its pid."""
        return int(self._read("pid").split()[0])

    @property
    def launcher(self) -> int:
        """The pid of what started it."""
        return int(self._read("pid").split()[1])

    @property
    def events(self) -> list[tuple[float, str]]:
        """What happened to it, and when (Unix seconds)."""
        if not (self.path / "events").exists():
            return []
        lines = (line.split(" ", 1) for line in self._read("events").splitlines())
        return [(float(when), what) for when, what in lines]

    @property
    def children(self) -> dict[str, int]:
        """The children that it left behind, by their kind."""
        if not (self.path / "children").exists():
            return {}
        return {kind: int(pid) for kind, pid in map(str.split, self._read("children").splitlines())}

    def is_ready(self) -> bool:
        """Whether it has come up."""
        return (self.path / "ready").exists()

    def left(self) -> dict[str, int]:
        """What lives of it still."""
        return {kind: pid for kind, pid in {"harness": self.pid, **self.children}.items() if lives(pid)}

    def _read(self, name: str) -> str:
        return (self.path / name).read_bytes().decode(errors="surrogateescape")


class Reply:
    """One answer of the API."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        """The body as it was meant."""
        return json.loads(self.body)


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self._path))


class World:
    """A short directory of its own in which one agentd has everything: home, card, secrets, sockets, records."""

    def __init__(self, extra_env: Mapping[str, str] | None = None) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="agentd-e2e-", dir="/tmp"))
        self.home, self.bin, self.work = (self._make(name) for name in ("home", "bin", "work"))
        self.secrets = self._make("secrets")
        self.records = self._make("records")
        self.run_dir = self.top / "run"
        self.card = self.top / "jcard.toml"
        self.tmux_socket = self.top / "tmux.sock"
        self.api_socket = self.top / "api.sock"
        self.log_file = self.top / "log"
        self.log_file.touch()
        self.process: subprocess.Popen[bytes] | None = None
        self.within: tuple[str, ...] = ()
        """A command that becomes agentd, with the words of another command."""
        self.explicit = True
        """Whether agentd is told this world's paths; without, it finds its defaults."""
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "SHELL": shutil.which("bash") or "/bin/sh",
            **({"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}),
            **(extra_env or {}),
        }
        for name in _HARNESSES:
            self.put_program(self.bin / name)

    def _make(self, name: str) -> Path:
        path = self.top / name
        path.mkdir(mode=0o700)
        return path

    def put_program(self, path: Path) -> Path:
        """Put the stand-in harness at that path."""
        source = Path(__file__).with_name("standin.py").read_text()
        path.parent.mkdir(exist_ok=True)
        # Moved into its place: who runs it at once must not find it being written.
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(f"#!{sys.executable} -IS\n{source}")
        fresh.chmod(0o755)
        fresh.rename(path)
        return path

    # The card.

    def agent(self, name: str, **keys: Any) -> dict[str, Any]:
        """An entry of the card: the stand-in `agent`, which keeps records; the keyword `env` adds to its variables."""
        env = {"PATH": f"{self.bin}:{self.env['PATH']}", "RECORD": str(self.records / name), **keys.pop("env", {})}
        defaults = {
            "name": name,
            "harness": "custom",
            "workdir": str(self.work),
            "grace_period": "2s",
            "restart_delay_max": "200ms",
        }
        return {key: value for key, value in {**defaults, **keys, "env": env}.items() if value is not None}

    def write_card(self, *agents: Mapping[str, Any], more: str = "") -> None:
        """Write the card anew, in one go."""
        entries = ["[[agents]]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in one.items()) for one in agents]
        self.write_card_text("\n".join(entries) + more)

    def write_card_text(self, text: str) -> None:
        """Write the card as this text, in one go."""
        fresh = self.card.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.card)

    def use_defaults(self) -> Path:
        """Have everything where an ordinary user's agentd has it by default; return the card's directory."""
        config, runtime = self.home / "conf" / "agentd", self.home / "runtime"
        config.mkdir(parents=True)
        runtime.mkdir(mode=0o700)
        self.env |= {"XDG_CONFIG_HOME": str(config.parent), "XDG_RUNTIME_DIR": str(runtime)}
        self.card = config / "jcard.toml"
        self.api_socket, self.tmux_socket = runtime / "agentd" / "agentd.sock", runtime / "agentd" / "tmux.sock"
        self.run_dir = runtime / "agentd" / "run"
        self.explicit = False
        return config

    # The process.

    def command(self, *flags: str) -> list[str]:
        """The installed agentd with this world's paths; further flags come last, and so win."""
        installed = Path(sys.executable).with_name("agentd")
        program = [str(installed)] if installed.exists() else [sys.executable, "-m", "agentd"]
        if not self.explicit:
            return [*program, *flags]
        paths = {
            "config": self.card,
            "secret-dir": self.secrets,
            "tmux-socket": self.tmux_socket,
            "api-socket": self.api_socket,
            "run-dir": self.run_dir,
        }
        return [*program, *(word for key, path in paths.items() for word in (f"-{key}", str(path))), *flags]

    def try_command(self, *command: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command that is to end by itself."""
        environ = self.env | dict(env or {})
        return subprocess.run(
            command, env=environ, cwd="/", capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    def start(self, *flags: str) -> None:
        """Start agentd, and return when its API answers."""
        self.spawn(*flags)
        self.wait_api()

    def spawn(self, *flags: str) -> None:
        """Start agentd."""
        user = [] if any(flag.startswith("-agent-user") for flag in flags) else ["-agent-user", own_user()]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.within, *self.command(*user, *flags)],
                env=self.env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_api(self) -> None:
        """Wait until the API answers."""

        def answers() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"agentd ended with {self.process.returncode}: {self.log}"
            with suppress(OSError, http.client.HTTPException):
                return self.get("/v1/health").status == 200
            return False

        wait_for(answers, "the API")

    def signal(self, number: signal.Signals) -> None:
        """Send agentd a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def look(self) -> None:
        """Have agentd look again soon."""
        self.signal(signal.SIGHUP)

    def wait_looks(self, find: Callable[[], _T | None], what: str) -> _T:
        """Wait for what comes with a look, and have agentd look more often than it does by itself."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self.look()
            try:
                return wait_for(find, what, seconds=0.5)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise

    def stop(self, *, seconds: float = PATIENCE) -> int:
        """Stop agentd and return its exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def crash(self) -> None:
        """Kill agentd, and nothing else."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Stop agentd, take the directory away, and fail if anything at all is left."""
        try:
            code = self.stop(seconds=30)
            started = self.process is not None
            answer = self.tmux("list-sessions", check=False)
            left = wait_for_none(lambda: processes_with(str(self.top)))
            files = sorted(path.name for path in self.run_dir.iterdir()) if self.run_dir.exists() else []
            log = self.log
            clashes = [path.parent.name for path in self.records.glob("*/clash")]
        finally:
            if self.process is not None and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            for pid in processes_with(str(self.top)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(self.top, ignore_errors=True)
        assert code == 0, log[-3000:]
        assert answer.returncode != 0, f"the tmux server is still there: {answer.stdout}"
        assert not left, f"left behind: {left}"
        assert all(name.endswith(".lock") for name in files), f"left in the run directory: {files}"
        assert not clashes, f"two attempts of one agent lived at once: {clashes}"
        if started:
            assert "Traceback" not in log, log[log.index("Traceback") - 300 :]

    # What is seen.

    @property
    def log(self) -> str:
        """All that agentd has printed."""
        return self.log_file.read_text(errors="replace")

    @property
    def log_lines(self) -> list[str]:
        """The same by lines."""
        return self.log.splitlines()

    def wait_log(self, text: str) -> str:
        """The first line of the log with that text."""
        return wait_for(lambda: next((line for line in self.log_lines if text in line), None), f"{text!r} in the log")

    def get(self, path: str, method: str = "GET") -> Reply:
        """Ask the API."""
        connection = Connection(self.api_socket)
        try:
            connection.request(method, path)
            return Reply(connection.getresponse())
        finally:
            connection.close()

    def agents(self) -> dict[str, Any]:
        """All agents by name, as the API has them."""
        return {status["name"]: status for status in self.get("/v1/agents").json}

    def status(self, name: str) -> Any:
        """One agent as the API has it."""
        return self.get(f"/v1/agents/{quote(name)}").json

    def warnings(self) -> list[str]:
        """What /v1/health warns of."""
        warnings: list[str] = self.get("/v1/health").json["warnings"]
        return warnings

    def wait_status(self, name: str, *, seconds: float = PATIENCE, **wanted: Any) -> Any:
        """Wait until all of these are true of the agent, and return it."""

        def find() -> Any:
            status = self.status(name)
            return status if all(status.get(key) == value for key, value in wanted.items()) else None

        try:
            return wait_for(find, f"{name} is {wanted}", seconds=seconds)
        except AssertionError as error:
            message = f"{error}: it is {self.status(name)}"
            raise AssertionError(message) from None

    def wait_gone(self, name: str, *, seconds: float = PATIENCE) -> None:
        """Wait until agentd has the agent no more."""
        wait_for(lambda: name not in self.agents(), f"{name} is gone", seconds=seconds)

    def wait_ready(self, name: str, number: int = 1, *, seconds: float = PATIENCE) -> Start:
        """Wait until the harness has come up for that time, and until agentd knows."""
        start = Start(self.records / name / str(number))
        wait_for(start.is_ready, f"start {number} of {name}", seconds=seconds)
        self.wait_status(name, pid=start.pid)
        return start

    def starts(self, name: str) -> list[Start]:
        """All starts of the agent so far."""
        folder = self.records / name
        numbers = (
            sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.exists() else []
        )
        return [Start(folder / str(number)) for number in numbers]

    def tmux(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Ask the tmux server, as an admin would."""
        command = [shutil.which("tmux") or "tmux", "-u", "-S", str(self.tmux_socket), *words]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=PATIENCE, check=check)

    def server(self) -> int:
        """The pid of the tmux server."""
        return int(self.tmux("display-message", "-p", "#{pid}").stdout)

    def client(self) -> int:
        """The pid of agentd's client of tmux."""
        clients = (
            line.split()
            for line in self.tmux("list-clients", "-F", "#{client_pid} #{session_name}").stdout.splitlines()
        )
        return next(int(pid) for pid, session in clients if session == "_agentd")

    def sessions(self) -> list[str]:
        """The sessions that are not agentd's own."""
        answer = self.tmux("list-sessions", "-F", "#{session_name}", check=False)
        return sorted(name for name in answer.stdout.splitlines() if name != "_agentd")

    def screen(self, session: str) -> str:
        """All that the session's pane shows, and has shown."""
        return self.tmux("capture-pane", "-p", "-J", "-S", "-", "-t", f"={session}:").stdout

    def type(self, session: str, line: str) -> None:
        """Type a line into the session's shell."""
        self.tmux("send-keys", "-l", "-t", f"={session}:", line)
        self.tmux("send-keys", "-t", f"={session}:", "Enter")


NOBODY = "mixtape = 'a card that wants no agents'\n"
"""A card."""


def own_user() -> str:
    """Who runs the tests."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def toml(value: Any) -> str:
    """Spell a value as TOML does."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def wait_for_none(find: Callable[[], _T], *, seconds: float = 5.0) -> _T:
    """Give what is just ending a moment, and return what is left."""
    deadline = time.monotonic() + seconds
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(_POLL * 5)
    return left
