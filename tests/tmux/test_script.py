import os
import pty
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import attrs
import pytest

from agentd.attempts.script import Script

SHELLS = {
    name: command
    for name, command in {
        "dash": ("dash",),
        "bash": ("bash", "--posix"),
        "zsh": ("zsh", "--emulate", "sh"),
        "busybox": ("busybox", "sh"),
        "sh": ("/bin/sh",),
    }.items()
    if shutil.which(command[0])
}
HARD = 'it\'s "a" $HOME `id` \\ \n\t\r\x1b;!é☃\U0001f600 %s %d #{pane_id} -n'
READ_ONLY = [
    *("UID", "EUID", "PPID", "SHELLOPTS", "BASHOPTS", "BASH_VERSINFO", "IFS", "OPTIND"),
    *("LINENO", "SECONDS", "RANDOM", "_", "status", "GID", "USERNAME", "PWD"),
    *("OLDPWD", "SHLVL", "FUNCNAME", "GROUPS", "DIRSTACK", "HISTCMD", "COLUMNS", "LINES"),
    *("HISTSIZE", "argv", "ERRNO", "TTYIDLE", "ZSH_SUBSHELL", "EPOCHSECONDS", "SRANDOM", "SAVEHIST"),
    *("FUNCNEST", "TRY_BLOCK_ERROR", "TRY_BLOCK_INTERRUPT", "ZSH_EVAL_CONTEXT", "signals", "BASHPID", "EGID", "ENV"),
]


class Stage:
    """A script run by one shell on a terminal of its own, and what came of it."""

    def __init__(self, directory: Path, shell: tuple[str, ...]) -> None:
        self.directory = directory
        self.shell = shell
        self.fifo = directory / "lifeline"
        self.workdir = directory / "work"
        self.workdir.mkdir()
        os.mkfifo(self.fifo)
        self.lifeline = os.open(self.fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.said = b""
        self.screen = b""
        self.pid = 0
        self.terminal = -1

    def script(self, *argv: str, env: Mapping[str, str] | None = None, workdir: str | None = None) -> Script:
        """Make a script for this stage."""
        return Script(
            lifeline=str(self.fifo),
            tag="x/y/1",
            workdir=workdir or str(self.workdir),
            argv=argv,
            env=env or {},
            tmux="/bin/true",
            tmux_socket="/nowhere",
            session="$1",
            pane="%1",
        )

    def start(self, script: Script) -> None:
        """Run it."""
        path = self.directory / "launch"
        path.write_bytes(script.text().encode())
        self.pid, self.terminal = pty.fork()
        if not self.pid:
            os.execvp(self.shell[0], [*self.shell, str(path)])

    def wait_said(self, word: bytes) -> None:
        """Wait until the lifeline has said this."""
        self._read(lambda: word in self.said)

    def end(self) -> int:
        """Read everything to the end, and return the script's exit code."""
        status = 0

        def over() -> bool:
            nonlocal status
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            return pid != 0

        self._read(over)
        self._drain()
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End what still runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        for descriptor in (self.lifeline, self.terminal):
            if descriptor >= 0:
                os.close(descriptor)

    def _read(self, over: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not over():
            assert time.monotonic() < deadline, (self.said, self.screen)
            select.select([self.terminal], [], [], 0.02)
            self._drain()

    def _drain(self) -> None:
        with suppress(OSError):
            while select.select([self.terminal], [], [], 0)[0] and (data := os.read(self.terminal, 65536)):
                self.screen += data
        with suppress(BlockingIOError):
            while data := os.read(self.lifeline, 65536):
                self.said += data


@pytest.fixture(params=SHELLS)
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path, SHELLS[request.param])
    yield stage
    stage.close()


def recorder(stage: Stage) -> str:
    """A program that writes down its arguments, environment, descriptors and place."""
    path = stage.directory / "recorder"
    path.write_text(
        f'#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >{stage.directory}/argv\n'
        f"cat /proc/$$/environ >{stage.directory}/environ\n"
        f"ls /proc/$$/fd >{stage.directory}/fds\npwd -P >{stage.directory}/cwd\n"
        f"grep Sig /proc/$$/status >{stage.directory}/signals\necho $$ $PPID >{stage.directory}/pids\n"
    )
    path.chmod(0o755)
    return str(path)


def test_runs_the_harness(stage: Stage) -> None:
    """The harness gets its arguments and environment byte for byte, in its workdir, without the lifeline."""
    stage.start(stage.script(recorder(stage), HARD, "", "-n", env={"HARD": HARD, "EMPTY": ""}))
    assert stage.end() == 0
    assert (stage.directory / "argv").read_bytes().decode() == f"{HARD}\0\0-n\0"
    env = dict(entry.split("=", 1) for entry in (stage.directory / "environ").read_bytes().decode().split("\0")[:-1])
    assert (env["HARD"], env["EMPTY"], env["AGENTD_ATTEMPT"]) == (HARD, "", "x/y/1")
    assert (stage.directory / "cwd").read_text().strip() == os.path.realpath(stage.workdir)
    assert not {"9"} & set((stage.directory / "fds").read_text().split())
    pid, parent = (stage.directory / "pids").read_text().split()
    assert stage.said.decode() == f"start {parent} {pid}\nexit 0\n"
    assert b"agentd runs: " in stage.screen
    assert b"agentd: exit code 0" in stage.screen


def test_signals_are_as_they_were(stage: Stage) -> None:
    """The harness ignores no signal that its launcher did not ignore before."""
    stage.start(stage.script(recorder(stage)))
    assert stage.end() == 0
    ignored = next(line for line in (stage.directory / "signals").read_text().splitlines() if line.startswith("SigIgn"))
    mask = int(ignored.split()[1], 16)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTOU):
        assert not mask >> (number - 1) & 1, number


@pytest.mark.parametrize(
    ("command", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
)
def test_exit_code(stage: Stage, command: str, code: int) -> None:
    """The exit code, or 128 and the signal's number, is said on the lifeline and is the script's own."""
    stage.start(stage.script("sh", "-c", command))
    assert stage.end() == code
    assert stage.said.decode().splitlines()[1:] == [f"exit {code}"]


def test_outlives_interrupts(stage: Stage) -> None:
    """A C-c that the harness handles, or dies of, does not end the script before the exit was said."""
    for command, code in (("trap 'exit 4' INT; sleep 100 & wait", 4), ("sleep 100", 130)):
        stage.said = b""
        stage.start(stage.script("sh", "-c", command))
        stage.wait_said(b"start")
        harness = stage.said.split()[2].decode()
        while b"sleep" not in Path(f"/proc/{harness}/task/{harness}/children").read_bytes() + _children(harness):
            assert time.monotonic()
        os.write(stage.terminal, b"\x03")
        assert stage.end() == code
        assert stage.said.decode().splitlines()[1:] == [f"exit {code}"]


def _children(pid: str) -> bytes:
    words = Path(f"/proc/{pid}/cmdline").read_bytes()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_bytes()
    return b"sleep" if words.startswith(b"sleep") else b""


def test_missing_workdir(stage: Stage) -> None:
    """A workdir that is not there is said, and nothing is run."""
    stage.start(stage.script(recorder(stage), workdir=f"{stage.directory}/it's\n$HOME"))
    assert stage.end() == 125
    assert stage.said == b"blocked workdir missing\nexit 125\n"
    assert not (stage.directory / "argv").exists()


def test_missing_binary(stage: Stage) -> None:
    """A program that is not in PATH is said, with that PATH."""
    stage.start(stage.script("agentd-no-such-program", env={"PATH": "/usr/bin:/bin:/it's"}))
    assert stage.end() == 125
    assert stage.said == b"blocked binary /usr/bin:/bin:/it's\nexit 125\n"


def test_binary_of_the_new_path(stage: Stage) -> None:
    """The program is looked up in the PATH that the card or the secrets set."""
    recorder(stage)
    stage.start(stage.script("recorder", env={"PATH": f"{stage.directory}:/usr/bin:/bin"}))
    assert stage.end() == 0
    assert (stage.directory / "argv").exists()


@pytest.mark.parametrize("name", READ_ONLY)
def test_names_that_shells_own(stage: Stage, name: str) -> None:
    """A variable whose name is special to some shell costs nothing but, perhaps, itself."""
    stage.start(stage.script(recorder(stage), env={name: "it's 1", "AFTER": "yes"}))
    assert stage.end() == 0
    assert b"AFTER=yes\0" in (stage.directory / "environ").read_bytes()


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_given_up(stage: Stage, kind: str) -> None:
    """Without its lifeline the script runs nothing, and makes no file in its place."""
    stage.fifo.unlink()
    if kind == "file":
        stage.fifo.touch()
    stage.start(stage.script(recorder(stage)))
    assert stage.end() == 125
    assert b"given up" in stage.screen
    assert stage.fifo.exists() == (kind == "file")
    assert not (stage.directory / "argv").exists()


def test_terminal_is_sane_afterwards(stage: Stage) -> None:
    """A harness that leaves its terminal raw leaves a usable one all the same."""
    stage.start(stage.script("sh", "-c", "stty raw -echo; exit 1"))
    before = os.dup(stage.terminal)
    assert stage.end() == 1
    shown = subprocess.run(["stty", "-a", "-F", os.ttyname(before)], capture_output=True, text=True, check=False)
    os.close(before)
    assert " -isig" not in shown.stdout


@pytest.mark.parametrize("size", [131_000])
def test_large_argument(stage: Stage, size: int) -> None:
    """An argument as large as the kernel takes arrives, and is shown shortened."""
    stage.start(stage.script(recorder(stage), "x" * size))
    assert stage.end() == 0
    assert (stage.directory / "argv").stat().st_size == size + 1
    assert len(stage.screen) < 2000


@pytest.mark.parametrize("path", ["/a b", "/a'b", "/a\nb", "/a$b", "/ä", ""])
def test_path_of_the_lifeline(tmp_path: Path, path: str) -> None:
    """A lifeline's path that a shell could misread is refused."""
    script = Script(
        lifeline=path, tag="", workdir="/", argv=("x",), env={}, tmux="", tmux_socket="", session="", pane=""
    )
    with pytest.raises(ValueError, match="lifeline's path"):
        script.text()


def test_repr_keeps_secrets() -> None:
    """The environment and the command line are not in a script's repr."""
    script = Script(
        lifeline="/x",
        tag="",
        workdir="/",
        argv=("5ecret",),
        env={"A": "5ecret"},
        tmux="",
        tmux_socket="",
        session="",
        pane="",
    )
    assert "5ecret" not in repr(script) + repr(attrs.evolve(script, tag="other"))
