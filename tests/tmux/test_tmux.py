import logging
import os
import pwd
import random
import re
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from agentd.errors import StartupError, TmuxError, TmuxUnknownError
from agentd.process_context import ONLY_OURS
from agentd.processes.scan import is_halted
from agentd.settings import AgentUser, Settings
from agentd.tmux.client import CONTROL_SESSION, _command
from agentd.tmux.connection import Tmux, open_tmux
from agentd.tmux.protocol import escape_format
from tests.tmux.connections import generation, lost, reconnected

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can switch to another user")


def hard_texts() -> list[str]:
    characters = "\n\r\t\x1b\x01\x7f'\"\\$~;#{}%` -=a0é☃\U0001f600\ufffe"
    choices = random.Random(2)  # noqa: S311 the same ones in every run
    return ["".join(choices.choices(characters, k=choices.randint(1, 30))) for _ in range(100)]


HARD = [
    "",
    " ",
    'it\'s "quoted" \\',
    "two\nlines\n\n",
    "\r\n\t\x1b[31m\x01\x7f",
    "$HOME ${HOME} `id` $(id) !x",
    "~",
    "~root/x",
    "ends;",
    "\\;",
    ";",
    "{",
    "}",
    "{ kill-server }",
    "#{pid} #S #(id) #[fg=red] ##",
    "%H %% %begin 1 1 1",
    "%end 1 1 1\n%exit",
    "-t",
    "A=b",
    "Enter C-c",
    "é☃\U0001f600\ufffe",
    *hard_texts(),
]


async def ask(tmux: Tmux, form: str) -> str:
    (line,) = await tmux.command("display-message", "-p", form)
    return line


async def client_pid(tmux: Tmux) -> int:
    (line,) = await tmux.command("list-clients", "-F", "#{client_pid}")
    return int(line)


async def environment_of_new_session(tmux: Tmux, fifo: Path, *flags: str) -> dict[str, str]:
    """Start a session whose only process says what environment it was started with."""
    os.mkfifo(fifo)
    os.chmod(fifo, 0o622)  # noqa: S103 the agent user writes to it
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        await tmux.command("new-session", "-d", *flags, "sh", "-c", 'cat /proc/$$/environ >"$0"', str(fifo))
        written = b""
        with trio.fail_after(10):
            while True:
                await trio.lowlevel.wait_readable(reader)
                data = os.read(reader, 1 << 16)
                if not data:
                    break
                written += data
    finally:
        os.close(reader)
    return dict(entry.decode().split("=", 1) for entry in written.split(b"\0")[:-1])


async def kill_server(tmux: Tmux) -> None:
    with suppress(TmuxUnknownError):  # It may die before it answers.
        await tmux.command("kill-server")


@contextmanager
def control_client(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a control client, and wait until it is attached."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        while b"%session-changed" not in process.stdout.readline():
            assert process.poll() is None
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def somebody_elses(settings: Settings) -> list[str]:
    return [settings.tmux, "-S", str(settings.tmux_socket), "-C", "attach-session", "-t", "_agentd"]


def get_stuck(client: subprocess.Popen[bytes]) -> None:
    """Stop reading what a client writes while something is still to be written."""
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdout.close()
    client.stdin.write(b"display-message -p something\n")
    client.stdin.close()


@contextmanager
def dead_agentd(settings: Settings) -> Iterator[None]:
    """Make a client whose agentd was killed while something was still to be written to it: tmux never ends it."""
    with control_client(_command(settings)) as process:
        get_stuck(process)
        yield


def processes_of(settings: Settings) -> list[str]:
    """Find the server and the clients of a socket, and what starts them, by name."""
    wanted = b"\0-S\0" + bytes(settings.tmux_socket) + b"\0"
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            if wanted in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(Path(f"/proc/{pid}/comm").read_text().strip())
    return found


async def test_option_round_trip(tmux: Tmux) -> None:
    """Any text is stored in an option and read back byte for byte."""
    for text in HARD:
        await tmux.command("set-option", "-g", "@x", text)
        assert "\n".join(await tmux.command("show-options", "-gv", "@x")) == text


async def test_environment_round_trip(tmux: Tmux, tmp_path: Path) -> None:
    """Any text, 100 KB of it too, reaches a process in the environment of its session byte for byte."""
    wanted = {f"HARD_{number}": text for number, text in enumerate([*HARD, "line ☃ 'x'\n" * 7000])}
    flags = [word for name, text in wanted.items() for word in ("-e", f"{name}={text}")]
    found = await environment_of_new_session(tmux, tmp_path / "fifo", *flags)
    assert {name: text for name, text in found.items() if name.startswith("HARD_")} == wanted


@pytest.mark.parametrize(
    "text", ["#", "##", "###", "#{pid}", "##{pid}", "#S", "#(id)", "#[x]", "##[x]#", "%H", "%%", ";"]
)
async def test_format_escaped(tmux: Tmux, tmp_path: Path, text: str) -> None:
    """What tmux expands as a format stays the text that it was, as a directory and as a name."""
    directory = tmp_path / text
    directory.mkdir()
    escaped = escape_format(str(directory)), escape_format(text)
    await tmux.command("new-session", "-d", "-s", escaped[1], "-n", escaped[1], "-c", escaped[0], "sleep", "infinity")
    lines = await tmux.command("list-panes", "-a", "-F", "#{pane_start_path}|#{session_name}|#{window_name}")
    assert f"{directory}|{text}|{text}" in lines


async def test_screen_like_a_frame(tmux: Tmux) -> None:
    """A screen that shows the end of a frame does not end the frame."""
    shown = ("%begin 1 1 1", "%end 1 1 1", "%error 1 1 1", "%exit")
    script = "printf '%s\\n' \"$@\"; exec sleep infinity"
    (pane,) = await tmux.command("new-session", "-d", "-PF", "#{pane_id}", "sh", "-c", script, "sh", *shown)
    with trio.fail_after(10):
        while (lines := await tmux.command("capture-pane", "-p", "-t", pane))[3] == "":
            pass
    assert lines[:4] == shown


async def test_concurrent_commands(tmux: Tmux) -> None:
    """Commands asked at once are carried out in the order of the asking, and each caller gets its own reply."""
    asked = []
    answered = []

    async def caller(number: int) -> None:
        asked.append(number)
        assert await tmux.command("set-option", "-ag", "@order", f" {number}") == ()
        assert await ask(tmux, f"reply {number}") == f"reply {number}"
        answered.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(caller, number)
    assert (await tmux.command("show-options", "-gv", "@order"))[0].split() == [str(number) for number in asked]
    assert sorted(answered) == list(range(200))


async def test_refused_command(tmux: Tmux) -> None:
    """A command that tmux refuses raises tmux's words and not the arguments, and the connection goes on."""
    with pytest.raises(TmuxError, match=r"^tmux set-option: ambiguous option: s") as error:
        await tmux.command("set-option", "s", "secret")
    assert "secret" not in str(error.value)
    assert await ask(tmux, "next") == "next"


async def test_late_replies(tmux: Tmux) -> None:
    """The replies to a timed-out and to a cancelled caller come late and reach nobody else."""
    server = int(await ask(tmux, "#{pid}"))
    os.kill(server, signal.SIGSTOP)
    try:
        with pytest.raises(TmuxUnknownError, match=r"display-message was not answered within 0\.1 s"):
            await tmux.command("display-message", "-p", "timed out", timeout=0.1)
        with trio.move_on_after(0.1) as scope:
            await tmux.command("display-message", "-p", "cancelled")
        assert scope.cancelled_caught
    finally:
        os.kill(server, signal.SIGCONT)
    assert await ask(tmux, "mine") == "mine"
    assert generation(tmux) == 1


async def test_killed_server(tmux: Tmux, caplog: pytest.LogCaptureFixture) -> None:
    """A killed server is replaced by a prepared one, which is one warning and one piece of news in the log."""
    caplog.set_level(logging.INFO)
    await kill_server(tmux)
    await reconnected(tmux, 1)
    assert await tmux.command("show-options", "-gv", "history-limit") == ("20000",)
    records = [(record.levelname, record.name) for record in caplog.records]
    assert records == [("WARNING", "agentd.tmux.connection"), ("INFO", "agentd.tmux.connection")]


async def test_killed_client(tmux: Tmux) -> None:
    """When only the client is killed, the same server with its sessions is there again."""
    await tmux.command("new-session", "-d", "-s", "stays", "sleep", "infinity")
    before = await ask(tmux, "#{pid}"), await tmux.command("list-sessions", "-F", "#{session_id}")
    os.kill(await client_pid(tmux), signal.SIGKILL)
    await reconnected(tmux, 1)
    assert (await ask(tmux, "#{pid}"), await tmux.command("list-sessions", "-F", "#{session_id}")) == before


async def test_lost_while_waiting(tmux: Tmux) -> None:
    """Who waits for a reply learns of the client's end, and the next ask in vain, even while the server is stopped."""
    server, client = int(await ask(tmux, "#{pid}")), await client_pid(tmux)
    os.kill(server, signal.SIGSTOP)
    try:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                with pytest.raises(TmuxUnknownError, match="was not answered: "):
                    await tmux.command("display-message", timeout=60)

            await trio.testing.wait_all_tasks_blocked()
            os.kill(client, signal.SIGKILL)
            await lost(tmux, 1)
        assert not tmux.connected
        with pytest.raises(TmuxUnknownError, match=r"display-message was not sent within 0\.1 s"):
            await tmux.command("display-message", timeout=0.1)
    finally:
        os.kill(server, signal.SIGCONT)
    assert await ask(tmux, "mine") == "mine"


async def test_silent_connection(tmux: Tmux, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection on which nothing is answered for long is replaced by another one."""
    monkeypatch.setattr("agentd.tmux.client._LONGEST_SILENCE", 0)
    await tmux.command("wait-for", "nobody")  # Answered at once, but nothing after it ever.
    with pytest.raises(TmuxUnknownError, match=r"display-message was not answered within 0\.1 s"):
        await tmux.command("display-message", timeout=0.1)
    await reconnected(tmux, 1)
    assert await ask(tmux, "mine") == "mine"


async def test_server_is_prepared(tmux: Tmux) -> None:
    """The server has the options of the design, and update-environment is really empty."""
    assert await tmux.command("show-options", "-g", "update-environment") == ("update-environment",)
    assert await tmux.command("show-options", "-gv", "default-command") == ("",)
    assert await tmux.command("show-options", "-gv", "destroy-unattached") == ("off",)
    assert await tmux.command("show-options", "-sv", "exit-empty") == ("off",)
    assert await tmux.command("show-options", "-sv", "escape-time") == ("10",)
    assert "no-output" in await ask(tmux, "#{client_flags}")


async def test_nothing_secret_is_visible(tmux: Tmux, tmp_path: Path) -> None:
    """No command line in the machine shows what a session's environment was given."""
    await environment_of_new_session(tmux, tmp_path / "fifo", "-e", "KEY=tell-nobody")
    await tmux.command("new-session", "-d", "-e", "KEY=tell-nobody", "sleep", "infinity")
    seen = subprocess.run(["ps", "-eww", "-o", "args"], check=True, capture_output=True, text=True).stdout  # noqa: ASYNC221
    assert "tmux -f /dev/null -u -S" in seen
    assert "tell-nobody" not in seen


async def test_environment_of_sessions(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions inherit our environment without what is only for agentd."""
    ours = ["AGENTD_X", "SUDO_COMMAND", "SUDO_UID", "NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "INVOCATION_ID"]
    for name in [*ours, "TMUX_X", "KEPT"]:
        monkeypatch.setenv(name, "x")
    async with open_tmux(settings) as tmux:
        found = await environment_of_new_session(tmux, tmp_path / "fifo")
    assert found["KEPT"] == "x"
    assert not found.keys() & {*ours, "TMUX_X"}


async def test_traces_of_starts_are_removed(settings: Settings, tmp_path: Path) -> None:
    """A server that sudo or systemd started does not tell its sessions of it any more."""
    start = [
        settings.tmux,
        "-f",
        "/dev/null",
        "-S",
        str(settings.tmux_socket),
        "new-session",
        "-d",
        "sleep",
        "infinity",
    ]
    traces = dict.fromkeys(ONLY_OURS, "x")
    assert {"SUDO_COMMAND", "SUDO_TTY", "INVOCATION_ID", "MEMORY_PRESSURE_WATCH", "RUNTIME_DIRECTORY"} <= traces.keys()
    await trio.run_process(start, env=os.environ | traces)
    async with open_tmux(settings) as tmux:
        found = await environment_of_new_session(tmux, tmp_path / "fifo")
    assert not found.keys() & traces


async def test_own_configuration_is_ignored(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own tmux configuration is not read."""
    (tmp_path / ".tmux.conf").write_text(
        "set -g default-command false\nset -g destroy-unattached on\nset -g @poison 1\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    async with open_tmux(settings) as tmux:
        assert await tmux.command("show-options", "-gqv", "@poison") == ()
        assert await tmux.command("show-options", "-gv", "default-command") == ("",)


async def test_leaving(settings: Settings, wait_gone: Callable[[int], None]) -> None:
    """Leaving ends the client and not the server; what is asked afterwards is unknown at once."""
    async with open_tmux(settings) as tmux:
        server, client = await ask(tmux, "#{pid}"), await client_pid(tmux)
        assert os.getsid(client) != os.getsid(0)
    wait_gone(client)
    with pytest.raises(TmuxUnknownError, match="closed"):
        await tmux.command("display-message")
    async with open_tmux(settings) as tmux:
        assert await ask(tmux, "#{pid}") == server


async def test_leaving_a_stopped_server(settings: Settings, wait_gone: Callable[[int], None]) -> None:
    """Leaving ends the client in bounded time even if the server does nothing."""
    async with open_tmux(settings) as tmux:
        server, client = int(await ask(tmux, "#{pid}")), await client_pid(tmux)
        os.kill(server, signal.SIGSTOP)
        left = trio.current_time()
    os.kill(server, signal.SIGCONT)
    assert trio.current_time() - left < 8
    wait_gone(client)


async def test_end_server(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """The server is ended while no other session lives in it, gone when that is said, and no new one is started."""
    async with open_tmux(settings) as tmux:
        assert await tmux.end_server()
        assert processes_of(settings) == []
        assert settings.tmux_socket.name not in os.listdir(settings.tmux_socket.parent)
        with pytest.raises(TmuxUnknownError):
            await tmux.command("display-message", timeout=5)
        assert await tmux.end_server()
    assert generation(tmux) == 1
    assert caplog.records == []


async def test_foreign_session_keeps_server(tmux: Tmux) -> None:
    """The server is not ended while other sessions live in it, and these are named."""
    for name in "one", "two":
        await tmux.command("new-session", "-d", "-s", name, "sleep", "infinity")
    end = await tmux.end_server()
    assert not end
    assert end.why_not == "it has the sessions one, two"
    await tmux.command("has-session", "-t", "=one")
    assert tmux.connected


async def test_end_of_a_killed_server(tmux: Tmux, settings: Settings) -> None:
    """Without a connection just now the end waits for the next one, so that a new server is ended, too."""
    await kill_server(tmux)
    assert await tmux.end_server()
    assert processes_of(settings) == []


async def test_end_of_a_stopped_server(tmux: Tmux, caplog: pytest.LogCaptureFixture) -> None:
    """A server that was stopped is made to go on, does what it was to do before, and ends."""
    caplog.set_level(logging.WARNING)
    server = int(await ask(tmux, "#{pid}"))
    await tmux.command("new-session", "-d", "-s", "later", "sleep 1000")
    os.kill(server, signal.SIGSTOP)
    with trio.fail_after(10):
        while not is_halted(server):  # noqa: ASYNC110 - nobody tells of it
            await trio.sleep(0.01)
        with pytest.raises(TmuxUnknownError, match="is stopped"):
            await tmux.command("kill-session", "-t", "=later", server=server)
        tmux.later.add("a session", partial(tmux.command, "kill-session", "-t", "=later", server=server))
        assert await tmux.end_server()
    assert "has it go on" in caplog.text


async def test_done_later(tmux: Tmux) -> None:
    """What could not be asked of a stopped server is done when it goes on, once, and without anybody's doing."""
    server = int(await ask(tmux, "#{pid}"))
    done = trio.Event()

    async def job() -> None:
        await tmux.command("set-option", "-g", "@later", "done", server=server)
        done.set()

    os.kill(server, signal.SIGSTOP)
    try:
        tmux.later.add("an option", job)
        await trio.sleep(0.1)
        assert not done.is_set()
    finally:
        os.kill(server, signal.SIGCONT)
    with trio.fail_after(10):
        await done.wait()
    assert await ask(tmux, "#{@later}") == "done"


async def test_end_of_a_server_that_does_not_answer(tmux: Tmux, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer is not said to have ended."""
    monkeypatch.setattr("agentd.tmux.connection._END_TIMEOUT", 0.1)
    monkeypatch.setattr("agentd.tmux.connection.resume_server", lambda *_: None)
    server = int(await ask(tmux, "#{pid}"))
    os.kill(server, signal.SIGSTOP)
    try:
        end = await tmux.end_server()
    finally:
        os.kill(server, signal.SIGCONT)
    assert not end
    assert end.why_not == "tmux list-sessions was not answered within 0.1 s"


async def test_end_with_a_stuck_client(tmux: Tmux, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that somebody else's client keeps although its last session is over is not said to have ended."""
    monkeypatch.setattr("agentd.tmux.connection._END_TIMEOUT", 0.5)
    with control_client(somebody_elses(settings)) as client:
        get_stuck(client)
        end = await tmux.end_server()
    assert not end
    assert re.fullmatch(r"its process [0-9]+ did not end within 0\.5 s", end.why_not)


async def test_client_of_a_dead_agentd(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """The client that a killed agentd left behind, and that would keep its server for ever, is killed at a start."""
    with dead_agentd(settings):
        async with open_tmux(settings) as tmux:
            await client_pid(tmux)  # There is one.
            assert await tmux.end_server()
    assert processes_of(settings) == []
    assert caplog.records == []


async def test_server_that_cannot_end(settings: Settings) -> None:
    """A server that was killed, and waits for ever for the client of a dead agentd, is in nobody's way."""
    with dead_agentd(settings):
        await trio.run_process([settings.tmux, "-S", str(settings.tmux_socket), "kill-server"])
        async with open_tmux(settings) as tmux:
            assert await tmux.end_server()
    assert processes_of(settings) == []


async def test_other_clients_are_spared(tmux: Tmux, settings: Settings) -> None:
    """A control client of somebody else, on our socket, survives our reconnecting."""
    with control_client(somebody_elses(settings)) as other:
        clients = await tmux.command("list-clients", "-F", "#{client_pid}")
        (ours,) = {int(pid) for pid in clients} - {other.pid}
        os.kill(ours, signal.SIGKILL)
        await reconnected(tmux, 1)
        assert str(other.pid) in await tmux.command("list-clients", "-F", "#{client_pid}")


async def test_deleted_socket(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A socket that somebody deleted is there again soon, and still the same server's, which is one warning."""
    monkeypatch.setattr("agentd.tmux.connection._SOCKET_LOOK", 0.05)
    async with open_tmux(settings) as tmux:
        settings.tmux_socket.unlink()
        with trio.fail_after(10):
            while not settings.tmux_socket.exists():
                await trio.lowlevel.checkpoint()
        shown = await trio.run_process(
            [settings.tmux, "-S", str(settings.tmux_socket), "display-message", "-p", "#{pid}"], capture_stdout=True
        )
        assert shown.stdout.decode().strip() == await ask(tmux, "#{pid}")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_deleted_socket_and_killed_client(tmux: Tmux, settings: Settings) -> None:
    """A connection that is lost while the socket is missing comes again to the same server, and to no second one."""
    server = await ask(tmux, "#{pid}")
    client = await client_pid(tmux)
    settings.tmux_socket.unlink()
    os.kill(client, signal.SIGKILL)
    await reconnected(tmux, 1)
    assert await ask(tmux, "#{pid}") == server


async def test_deleted_socket_and_slow_server(tmux: Tmux, settings: Settings) -> None:
    """A server that takes its time to make its socket again, on a busy machine say, gets that time, and no twin."""
    server = int(await ask(tmux, "#{pid}"))
    client = await client_pid(tmux)
    os.kill(server, signal.SIGSTOP)
    settings.tmux_socket.unlink()
    os.kill(client, signal.SIGKILL)
    with trio.fail_after(5):
        while not pending(server, signal.SIGUSR1):  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.01)
    await trio.sleep(1.2)  # a second server would be there by now
    os.kill(server, signal.SIGCONT)
    await reconnected(tmux, 1)
    assert int(await ask(tmux, "#{pid}")) == server


def pending(pid: int, number: signal.Signals) -> bool:
    """Whether a process has yet to take that signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("ShdPnd:")[2].split()[0], 16) >> (number - 1) & 1)


async def test_command_for_one_server(tmux: Tmux) -> None:
    """A command for a server is carried out over any connection to that one, and refused by another server."""
    server = int(await ask(tmux, "#{pid}"))
    assert await tmux.command("display-message", "-p", "x", server=server) == ("x",)
    os.kill(await client_pid(tmux), signal.SIGKILL)
    await reconnected(tmux, 1)
    assert await tmux.command("display-message", "-p", "x", server=server) == ("x",)
    await kill_server(tmux)
    await lost(tmux, 2)
    with pytest.raises(TmuxError, match=rf"^tmux display-message: its server \(pid {server}\) is gone$"):
        await tmux.command("display-message", "-p", "x", server=server)


async def test_other_file_is_spared(settings: Settings) -> None:
    """A file that is no socket, which tmux would delete, is a clear error at the start."""
    settings.tmux_socket.write_text("precious")
    with pytest.raises(StartupError, match="is not a socket; remove it"):
        async with open_tmux(settings):
            pass
    assert settings.tmux_socket.read_text() == "precious"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'no \033[31m such\nthing' >&2; exit 1", r"no \?\[31m such thing"),
        ("printf '%%begin 1 1 0\\nno room\\n%%error 1 1 0\\n%%exit\\n'", "no room"),
        ("printf '%%exit went away\\n'; exec sleep infinity", "went away"),
        ("printf '%%end 1 1 1\\n'; exec sleep infinity", "tmux sent %end without a %begin"),
        (
            "printf '%%begin 1 1 1\\n%%end 1 1 1\\n%.0s' 1 2 3 4 5; exec sleep infinity",
            "tmux sent a reply to no command",
        ),
        ("exec cat /dev/zero", "a line of more than 1 MiB"),
        ("exec sleep infinity", "no answer within 0.8 s"),
        ("trap '' TERM; while :; do sleep 1; done", "no answer within 0.8 s"),
    ],
)
async def test_hostile_client(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, words: str
) -> None:
    """Whatever the other side says or does, the start fails with its words in one line, and no process stays."""
    monkeypatch.setattr("agentd.tmux.connection._FIRST_PATIENCE", 0)
    monkeypatch.setattr("agentd.tmux.connection._CONNECT_TIMEOUT", 0.8)
    monkeypatch.setattr("agentd.tmux.client._END_TIMEOUT", 0.1)
    monkeypatch.setattr("agentd.tmux.client._SIGNAL_TIMEOUT", 0.2)
    false_tmux = tmp_path / "tmux"
    false_tmux.write_text(f"#!/bin/sh\n{script}\n")
    false_tmux.chmod(0o755)
    with pytest.raises(StartupError, match=rf"^tmux at {settings.tmux_socket} cannot be used: .*({words})$"):
        async with open_tmux(attrs.evolve(settings, tmux=str(false_tmux))):
            pass


async def test_missing_program(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tmux that is not there is named."""
    monkeypatch.setattr("agentd.tmux.connection._FIRST_PATIENCE", 0)
    with pytest.raises(StartupError, match=r"cannot be used: .*/nowhere/tmux"):
        async with open_tmux(attrs.evolve(settings, tmux="/nowhere/tmux")):
            pass


@pytest.fixture
def switched(settings: Settings, socket_dir: Path) -> Settings:
    """Make settings with an agent user that is not ours, and cannot log in."""
    entry = pwd.getpwnam("nobody")
    os.chown(socket_dir, entry.pw_uid, -1)
    user = AgentUser(
        name="nobody", uid=entry.pw_uid, gid=entry.pw_gid, groups=(), home=entry.pw_dir, shell=entry.pw_shell
    )
    return attrs.evolve(settings, agent_user=user, switch_user=True, admin_gid=12345)


@needs_root
async def test_other_user(switched: Settings, socket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Server, client and sessions are the agent user's, and know nothing of our environment or of sudo."""
    monkeypatch.setenv("OUR_OWN", "x")
    async with open_tmux(switched) as tmux:
        pids = await ask(tmux, "#{pid}"), str(await client_pid(tmux))
        uids = {os.stat(f"/proc/{pid}").st_uid for pid in pids}
        found = await environment_of_new_session(tmux, socket_dir / "fifo")
    assert uids == {switched.agent_user.uid}
    assert found["USER"] == "nobody"
    assert not [name for name in found if name.startswith("SUDO_") or name == "OUR_OWN"]


@needs_root
async def test_other_user_lost(switched: Settings, wait_gone: Callable[[int], None]) -> None:
    """Killing either sudo or its client brings a new connection, and leaves no client of the old one."""
    async with open_tmux(switched) as tmux:
        first = await client_pid(tmux)
        os.kill(first, signal.SIGKILL)
        await reconnected(tmux, 1)
        second = await client_pid(tmux)
        os.kill(os.getsid(second), signal.SIGKILL)
        await reconnected(tmux, 2)
        third = await client_pid(tmux)
        for pid in first, second:
            wait_gone(pid)
    wait_gone(third)


@needs_root
@pytest.mark.parametrize("reconnects", [False, True])
async def test_killed_sudo_at_the_end(switched: Settings, *, reconnects: bool) -> None:
    """When sudo was killed, before its client could hear of anything, a clean stop still leaves no process of ours."""
    async with open_tmux(switched) as tmux:
        client = await client_pid(tmux)
        for number in range(200):
            await tmux.command("new-session", "-d", "-s", f"x{number}", "true")  # Something to be written.
        with trio.fail_after(10):
            while await tmux.command("list-sessions", "-F", "#{session_name}") != (CONTROL_SESSION,):
                pass  # each question is a while
        os.kill(os.getsid(client), signal.SIGKILL)
        if reconnects:
            await reconnected(tmux, 1)
        assert await tmux.end_server()
    assert processes_of(switched) == []


@needs_root
async def test_other_user_of_a_dead_agentd(switched: Settings) -> None:
    """As root, too, the agent user's client of a dead agentd is killed, and the sudo that waits for it ends."""
    with dead_agentd(switched):
        await trio.run_process([switched.tmux, "-S", str(switched.tmux_socket), "kill-server"])
        async with open_tmux(switched) as tmux:
            assert await tmux.end_server()
    assert processes_of(switched) == []


@needs_root
async def test_unknown_user(
    switched: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that is another user's keeps agentd from no start; what sudo has against it is in the log."""
    monkeypatch.setattr("agentd.tmux.connection._FIRST_PATIENCE", 0)
    unknown = attrs.evolve(switched, agent_user=attrs.evolve(switched.agent_user, name="no-such-user"))
    with trio.fail_after(10):
        async with open_tmux(unknown) as tmux:
            assert not tmux.connected
    assert re.search(r"cannot be used: sudo: unknown user:? no-such-user", caplog.text)


@needs_root
async def test_socket_for_admins(switched: Settings) -> None:
    """The socket is the admin group's at once, and again after each reconnect, also to a new server."""
    async with open_tmux(switched) as tmux:
        for number in 1, 2:
            found = os.lstat(switched.tmux_socket)
            # tmux itself sets and clears the executable bits as clients come and go.
            assert (found.st_uid, found.st_gid) == (switched.agent_user.uid, 12345)
            assert stat.S_IMODE(found.st_mode) | 0o110 == 0o770
            if number == 1:
                await kill_server(tmux)
                await reconnected(tmux, 1)


@needs_root
async def test_deleted_socket_for_admins(switched: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that is made again is the admin group's again."""
    monkeypatch.setattr("agentd.tmux.connection._SOCKET_LOOK", 0.05)
    async with open_tmux(switched):
        switched.tmux_socket.unlink()
        with trio.fail_after(10):
            while not switched.tmux_socket.exists() or switched.tmux_socket.stat().st_gid != 12345:
                await trio.lowlevel.checkpoint()


@needs_root
@pytest.mark.parametrize("kind", ["link", "owner"])
async def test_swapped_socket(switched: Settings, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """A link in the place of the socket, or another one's socket, is left as it is, which is one warning."""
    async with open_tmux(switched) as tmux:
        other = switched.tmux_socket.with_name("other")
        if kind == "link":
            switched.tmux_socket.rename(other)
            switched.tmux_socket.symlink_to(other)
        else:
            os.chown(switched.tmux_socket, 0, 0)
            os.chmod(switched.tmux_socket, 0o666)  # noqa: S103 tmux connects nevertheless
            other = switched.tmux_socket
        before = os.stat(other)
        for number in 1, 2:
            os.kill(await client_pid(tmux), signal.SIGKILL)
            await reconnected(tmux, number)
        after = os.stat(other)
        assert (after.st_uid, after.st_gid, after.st_mode & 0o666) == (
            before.st_uid,
            before.st_gid,
            before.st_mode & 0o666,
        )
        warnings = [record.message for record in caplog.records if "the tmux socket stays as it is" in record.message]
        assert len(warnings) == 1
        if kind == "owner":
            os.chown(switched.tmux_socket, switched.agent_user.uid, 12345)
