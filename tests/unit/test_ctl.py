"""agentctl: its command line, what it says of an API that does not answer, and what it says of a card."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agentd import __version__
from agentd.ctl import commands as ctl
from agentd.ctl.client import ApiError, Client
from agentd.ctl.commands import _check, _parse, _socket, _status, main
from agentd.defaults import own_defaults

HEALTH = {"state": "running", "card": "/c", "warnings": [], "agents": 1}
AGENT = {"name": "Wéb\x1b[31m\u202e", "running": True, "restarts": 0, "state": "running", "message": "fine"}

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that is short enough for the path of a socket."""
    path = Path(tempfile.mkdtemp(prefix="agentctl-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


class Server:
    """Answers each request with bytes, and remembers what was asked for."""

    def __init__(self, path: Path, answer: Callable[[str], bytes]) -> None:
        self.path = str(path)
        self.asked: list[str] = []
        self._answer = answer
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(self.path)
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        # Wakes the thread up, which only closing would not.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                while request := connection.recv(65536):
                    target = request.decode().split()[1]
                    self.asked.append(target)
                    answer = self._answer(target)
                    connection.sendall(answer)
                    if b"Content-Length" not in answer:
                        break


def http(value: Any, status: str = "200 OK") -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def api(target: str) -> bytes:
    if target == "/v1/agents/W%C3%A9b":
        return http(AGENT)
    known = {"/v1/health": HEALTH, "/v1/agents": [AGENT, AGENT | {"name": "other"}]}
    return http(known[target]) if target in known else http({"error": "none"}, "404 Not Found")


@pytest.fixture
def serve(place: Path) -> Iterator[Callable[[Callable[[str], bytes]], Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[str], bytes]) -> Server:
        servers.append(Server(place / f"{len(servers)}.sock", answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


Serve = Callable[[Callable[[str], bytes]], Server]


def program(*words: str) -> list[str]:
    """Return the command line of agentctl in a process of its own."""
    return [sys.executable, "-c", "from agentd.ctl.commands import run; run()", *words]


# The command line.


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("status", {"command": _status, "api_socket": None, "json": False, "name": None}),
        ("status web", {"command": _status, "api_socket": None, "json": False, "name": "web"}),
        ("status --json web", {"command": _status, "api_socket": None, "json": True, "name": "web"}),
        ("--json status", {"command": _status, "api_socket": None, "json": True, "name": None}),
        ("-json status web", {"command": _status, "api_socket": None, "json": True, "name": "web"}),
        ("status web -json", {"command": _status, "api_socket": None, "json": True, "name": "web"}),
        ("status -- --json", {"command": _status, "api_socket": None, "json": False, "name": "--json"}),
        ("status -- -json", {"command": _status, "api_socket": None, "json": False, "name": "-json"}),
        ("--api-socket s status", {"command": _status, "api_socket": "s", "json": False, "name": None}),
        ("--api-socket=s status", {"command": _status, "api_socket": "s", "json": False, "name": None}),
        ("-api-socket s status", {"command": _status, "api_socket": "s", "json": False, "name": None}),
        ("status --api-socket s web", {"command": _status, "api_socket": "s", "json": False, "name": "web"}),
        ("status web -api-socket=s", {"command": _status, "api_socket": "s", "json": False, "name": "web"}),
        ("--api-socket r status --api-socket s", {"command": _status, "api_socket": "s", "json": False, "name": None}),
        ("check", {"command": _check, "api_socket": None, "json": False, "card": None}),
        ("check --json c", {"command": _check, "api_socket": None, "json": True, "card": "c"}),
        ("check -json", {"command": _check, "api_socket": None, "json": True, "card": None}),
        ("--json check c", {"command": _check, "api_socket": None, "json": True, "card": "c"}),
        ("--api-socket s check c", {"command": _check, "api_socket": "s", "json": False, "card": "c"}),
    ],
)
def test_command_line(words: str, expected: dict[str, object]) -> None:
    """Flags are taken before and after the command, the later socket wins, and one dash is as good as two."""
    parsed = _parse(words.split())
    assert not isinstance(parsed, int)
    assert vars(parsed) == expected


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
        (["status", "a", "b"], "unrecognized arguments: b"),
        (["status", "--api-socket"], "expected one argument"),
        (["status", "--api-socket", ""], "needs a path"),
        (["check", ""], "needs a path"),
        (["status", "--js"], "unrecognized arguments: --js"),
        (["--nope", "status", "\x1b[31m", "x"], "--nope"),
    ],
)
def test_wrong_usage(words: list[str], told: str, capfd: Printed) -> None:
    """Wrong usage is told on stderr, with exit code 2."""
    assert main(words) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "usage: agentctl" in printed.err
    assert told in printed.err
    assert printed.err.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "words", [["-h"], ["--help"], ["-help"], ["status", "-h"], ["check", "-h"], ["check", "-help"]]
)
def test_help(words: list[str], capfd: Printed) -> None:
    """Help goes to stdout, fits into 80 columns, and is no failure."""
    assert main(words) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("usage: agentctl")
    assert max(map(len, printed.out.splitlines())) <= 80


@pytest.mark.parametrize("word", ["--version", "-version"])
def test_version(word: str, capfd: Printed) -> None:
    """The version goes to stdout."""
    assert main([word]) == 0
    assert capfd.readouterr().out == f"agentctl {__version__}\n"


def test_socket_of_flag_variable_or_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket is the one of the flag, else of the variable unless it is empty, else the default."""
    monkeypatch.setenv("AGENTD_API_SOCKET", "/variable")
    assert _socket("/flag") == "/flag"
    assert _socket(None) == "/variable"
    monkeypatch.setenv("AGENTD_API_SOCKET", "")
    monkeypatch.setattr(ctl, "own_or_system", lambda own, system: f"{own} or {system}")
    assert _socket(None) == f"{own_defaults(os.environ).api_socket} or /run/stereos/agentd.sock"


# Status.


def test_status(serve: Serve, capfd: Printed) -> None:
    """The table has all agents, and nothing that a terminal would obey."""
    server = serve(api)
    assert main(["status", "--api-socket", server.path]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert printed.out == (
        "NAME               STATE    SINCE  RESTARTS  MESSAGE\n"
        "Wéb\\x1b[31m\\u202e  running  ?             0  fine\n"
        "other              running  ?             0  fine\n"
    )
    assert server.asked == ["/v1/agents", "/v1/health"]


def test_surrogates(serve: Serve, capfd: Printed) -> None:
    """What JSON can spell and no encoding has is escaped before the widths are reckoned."""
    one = {"name": "\ud800" * 20, "\udc00": ["\udc00"], "message": "\udc00" * 20}
    server = serve(lambda target: http({"/v1/agents": [one], "/v1/health": HEALTH}.get(target, one)))
    for words in ["status"], ["status", "x"]:
        assert main([*words, "--api-socket", server.path]) == 0
        printed = capfd.readouterr().out
        assert r"\ud800\ud" in printed
        assert r"\udc00\udc" in printed
        assert max(map(len, printed.splitlines())) <= 80


def test_status_with_notes(serve: Serve, capfd: Printed) -> None:
    """What is wrong with the card follows the table."""
    health = HEALTH | {"card_error": "the card is blank"}
    server = serve(lambda target: http(health if target == "/v1/health" else []))
    assert main(["--api-socket", server.path, "status"]) == 0
    assert capfd.readouterr().out == "agentd has no agents.\n\nThe card /c cannot be used:\n  the card is blank\n"


def test_status_of_one(serve: Serve, capfd: Printed) -> None:
    """One agent is asked for by its name, percent-encoded, and shown with all that there is."""
    server = serve(api)
    assert main(["status", "Wéb", "--api-socket", server.path]) == 0
    assert server.asked == ["/v1/agents/W%C3%A9b"]
    assert capfd.readouterr().out == (
        "name      Wéb\\x1b[31m\\u202e\nstate     running\nmessage   fine\nrunning   yes\nrestarts  0\n"
    )


@pytest.mark.parametrize(("words", "expected"), [([], [AGENT, AGENT | {"name": "other"}]), (["Wéb"], AGENT)])
def test_status_json(serve: Serve, capfd: Printed, words: list[str], expected: object) -> None:
    """As JSON there is what the API answers and nothing else, in plain ASCII."""
    assert main(["status", "--json", *words, "--api-socket", serve(api).path]) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out) == expected
    assert printed.out.replace("\n", "").isprintable()
    assert printed.out.isascii()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("othr", 'there is no agent "othr"; did you mean "other"?'),
        ("Wéb\x1b", r'there is no agent "Wéb\x1b"; agentctl status lists them all'),
        ("a/b c", 'there is no agent "a/b c"; agentctl status lists them all'),
    ],
)
def test_unknown_agent(serve: Serve, capfd: Printed, name: str, told: str) -> None:
    """An agent that does not exist is an error with the nearest name."""
    server = serve(api)
    assert main(["status", name, "--api-socket", server.path]) == 1
    assert capfd.readouterr() == ("", f"agentctl: {told}\n")
    assert re.fullmatch(r"/v1/agents/[A-Za-z0-9%]+", server.asked[0])


STRANGER = "what listens on {path} does not answer as agentd does: give agentd's own --api-socket"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n", STRANGER),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n[", STRANGER),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx", STRANGER),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", STRANGER),
        (http(b"<html>"), STRANGER),
        (http(b"\xff"), STRANGER),
        (http(b"[" * 100_000), STRANGER),
        (http({}), STRANGER),
        (http([1]), STRANGER),
        (http(b"<html>", "500 Oops"), STRANGER),
        (http({"error": "a\x1b\nbug"}, "500 Oops"), r"agentd answers with HTTP status 500: a\x1b\nbug"),
        (http([], "503 Oops"), "agentd answers with HTTP status 503: it does not say why"),
        (http([], "404 Oops"), "agentd answers with HTTP status 404: it does not say why"),
        (b"", "the connection to {path} was closed before the answer: agentd may be stopping; try again"),
    ],
)
def test_strange_answers(serve: Serve, capfd: Printed, answer: bytes, told: str) -> None:
    """An answer that is not agentd's is one line on stderr, with exit code 1."""
    server = serve(lambda _: answer)
    assert main(["status", "--api-socket", server.path]) == 1
    assert capfd.readouterr() == ("", f"agentctl: {told.format(path=server.path)}\n")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("words", [["web"], ["--json", "web"]])
def test_numbers_that_json_has_not(serve: Serve, capfd: Printed, words: list[str], number: str) -> None:
    """An answer with what is no number in JSON is not agentd's."""
    server = serve(lambda _: http(b'{"name": "web", "restarts": %s}' % number.encode()))
    assert main(["status", *words, "--api-socket", server.path]) == 1
    assert capfd.readouterr() == ("", f"agentctl: {STRANGER.format(path=server.path)}\n")


@pytest.mark.parametrize("words", [["web"], ["--json", "web"]])
@pytest.mark.parametrize("depth", [900, 990, 100_000])
def test_deep_answers(serve: Serve, words: list[str], depth: int) -> None:
    """What is nested as agentd's answers never are is shown, or it is one line on stderr with exit code 1."""
    server = serve(lambda _: http(b'{"a":' * depth + b"1" + b"}" * depth))
    environ = os.environ | {"AGENTD_API_SOCKET": server.path}
    done = subprocess.run(program("status", *words), env=environ, capture_output=True, text=True, check=False)
    told = f"agentctl: {STRANGER.format(path=server.path)}\n"
    assert (done.returncode, done.stderr) in {(0, ""), (1, told)}
    assert bool(done.stdout) == (done.returncode == 0)


def test_endless_answer(serve: Serve, capfd: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of an answer is read than agentd could have to say."""
    monkeypatch.setattr("agentd.ctl.client._MOST", 1000)
    server = serve(lambda _: b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 1001)
    assert main(["status", "--api-socket", server.path]) == 1
    assert "more than 1000 bytes" in capfd.readouterr().err


def test_no_socket(place: Path, capfd: Printed) -> None:
    """Where there is no socket its path is named."""
    for path in (place / "none", place / "none" / "none"):
        assert main(["status", "--api-socket", str(path)]) == 1
        told = f"there is no socket {path}: is agentd running? If it has another one, give --api-socket"
        assert capfd.readouterr() == ("", f"agentctl: {told}\n")


def test_nobody_listens(place: Path, capfd: Printed) -> None:
    """A socket that a dead agentd left behind is told from a file that never was one."""
    path = place / "dead"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert main(["status", "--api-socket", str(path)]) == 1
    assert f"nobody listens on {path}" in capfd.readouterr().err
    for wrong in (place, place / "file"):
        (place / "file").touch()
        assert main(["status", "--api-socket", str(wrong)]) == 1
        assert f"{wrong} is not a socket" in capfd.readouterr().err


def test_other_sockets(place: Path, capfd: Printed) -> None:
    """A path that cannot be connected to at all is told with what the kernel says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(place / "datagrams"))
        assert main(["status", "--api-socket", str(place / "datagrams")]) == 1
    assert f"{place}/datagrams cannot be used (Protocol wrong type for socket)" in capfd.readouterr().err
    assert main(["status", "--api-socket", f"{place}/{'x' * 108}"]) == 1
    assert "a socket's path at most 107" in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root is refused nothing here")
@pytest.mark.parametrize("mode", [0o000, 0o070])
def test_permission_denied(place: Path, capfd: Printed, mode: int) -> None:
    """Who may not use the socket is told which group may, if any, or to use sudo."""
    import grp

    closed = place / "closed"
    closed.mkdir()
    closed.chmod(mode)
    group = str(closed.stat().st_gid)
    with suppress(KeyError):
        group = grp.getgrgid(int(group)).gr_name
    way = f"become a member of the group {group} (and log in again), or use sudo" if mode else "use sudo"
    code = main(["status", "--api-socket", str(closed / "x")])
    closed.chmod(0o700)
    assert code == 1
    assert capfd.readouterr().err == f"agentctl: permission denied for {closed}/x: {way}\n"


def test_silence(place: Path) -> None:
    """An agentd that does not answer is waited for only so long, also when it accepts nobody any more."""
    path = str(place / "silent")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(0)
        # The second is not even queued: the first still is, though it was given up.
        for _ in range(2):
            with pytest.raises(ApiError, match=f"agentd does not answer on {path} within 0.05 s"):
                Client(path, timeout=0.05).agents()


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b"H"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"X"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
)
def test_dripping(place: Path, start: bytes, piece: bytes) -> None:
    """An answer is waited for only so long as a whole, however often a little of it comes."""
    path = str(place / "dripping")
    gone = threading.Event()

    def drip() -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.sendall(start)
            # It ends, so that who waits for the end of it fails, and does not hang.
            for _ in range(300):
                connection.sendall(piece)
                if gone.wait(0.01):
                    break

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            with pytest.raises(ApiError, match=f"agentd does not answer on {path} within 0.2 s"):
                Client(path, timeout=0.2).agents()
        finally:
            gone.set()
            dripping.join()


# How it ends.


def test_interrupt(place: Path) -> None:
    """Ctrl-C ends it with 130, and without a traceback."""
    path = str(place / "silent")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        with subprocess.Popen(
            program("status", "--api-socket", path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            connection, _ = listening.accept()
            process.send_signal(signal.SIGINT)
            assert process.communicate() == (b"", b"")
            connection.close()
    assert process.returncode == 130


@pytest.mark.parametrize("words", [["status"], ["status", "--json"], ["-h"]])
def test_nobody_reads(serve: Serve, words: Sequence[str]) -> None:
    """Output that nobody reads, or that has no place, is no traceback."""
    environ = os.environ | {"AGENTD_API_SOCKET": serve(api).path}
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(program(*words), env=environ, stdout=writing, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(program(*words), env=environ, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"agentctl: stdout cannot be written: No space left on device\n")


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_descriptors(serve: Serve, closed: tuple[int, ...]) -> None:
    """With standard descriptors closed nothing is written into what took their place."""
    server = serve(api)
    shut = " ".join(f"{fd}>&-" for fd in closed)
    for words, code in (["status"], 0), (["status", "nobody"], 1), (["nonsense"], 2):
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {shut}', "sh", *program(*words)],
            env=os.environ | {"AGENTD_API_SOCKET": server.path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == code
    assert all(target.startswith("/v1/") for target in server.asked)


def test_ascii_terminal(serve: Serve) -> None:
    """In a locale without UTF-8 whatever it lacks is escaped, names are found all the same, and lines still fit."""
    server = serve(lambda target: http([AGENT | {"name": "日" * 40}] if target == "/v1/agents" else HEALTH))
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    environ |= {"LC_ALL": "C", "PYTHONUTF8": "0", "AGENTD_API_SOCKET": server.path}
    done = subprocess.run(program("status"), env=environ, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u65e5\\u6" in done.stdout
    assert max(map(len, done.stdout.decode("ascii").splitlines())) <= 80
    subprocess.run(program("status", "é"), env=environ, capture_output=True, check=False)
    assert server.asked[-1] == "/v1/agents/%C3%A9"


def test_imports(serve: Serve, tmp_path: Path) -> None:
    """No subcommand imports what the daemon runs on, and status nothing that it does not need."""
    (tmp_path / "card").write_text('[agent]\nharness = "custom"\n')
    heavy = {"trio", "outcome", "anyio", "quart", "quart_trio", "hypercorn", "werkzeug"}
    slow = {"attr", "attrs", "tomlkit", "logging", "subprocess", "dataclasses", "pathlib", "shutil", "difflib"}
    check = (
        "import sys; from agentd.ctl.commands import main; code = main(sys.argv[1:]); "
        "sys.exit(code or repr(sys.modules.keys()))"
    )
    for words, unwanted in (
        (["status", "--api-socket", serve(api).path], heavy | slow),
        (["check", str(tmp_path / "card")], heavy),
    ):
        done = subprocess.run([sys.executable, "-c", check, *words], capture_output=True, text=True, check=False)
        modules = set(re.findall(r"'([^']+)'", done.stderr))
        assert "agentd.ctl.text" in modules, done.stderr
        assert modules & unwanted == set()


# Check.


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_check_of_a_valid_card(tmp_path: Path, capfd: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A valid card is one line, with its warnings below, and exit code 0."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "jcard.toml", '[[agents]]\nharness = "custom"\nname = "r"\nreplicas = 2\npromt = "x"\n')
    assert main(["check", "jcard.toml"]) == 0
    assert capfd.readouterr() == (
        (
            "jcard.toml is valid: 2 agents (r-0, r-1)\n"
            'warning: agents[0].promt: unknown key, ignored; did you mean "prompt"?\n'
        ),
        "",
    )


INVALID = """\
[[agents]]
harness = "custom"
[[agents]]
harness = "custom"
restart = "sometimes"
env.PORT = 8080
promt = "x"
"""


def test_check_of_an_invalid_card(tmp_path: Path, capfd: Printed) -> None:
    """Every problem has its line, as in the daemon's log, then every warning, and the exit code is 1."""
    path = write(tmp_path / "c", INVALID)
    assert main(["check", path]) == 1
    assert capfd.readouterr() == (
        (
            'agents[1].restart: "sometimes" is not one of no, on-failure, always\n'
            'agents[1].env.PORT: expected a string, found the integer 8080; write "8080"\n'
            'warning: agents[1].promt: unknown key, ignored; did you mean "prompt"?\n'
        ),
        f"agentctl: {path} is not valid: 2 problems\n",
    )


def test_check_of_a_syntax_error(tmp_path: Path, capfd: Printed) -> None:
    """A syntax error has line and column, the line itself and a caret, and shows no secret."""
    path = write(tmp_path / "c", '[agent]\nharness = "custom"\nenv.TOKEN = "hunter2\n')
    assert main(["check", path]) == 1
    printed = capfd.readouterr()
    first, line, caret = printed.out.splitlines()
    assert first.startswith("line 3, column 21: the string is not closed")
    assert line == '    env.TOKEN = "*******'
    assert caret == "    " + " " * 20 + "^"
    assert printed.err == f"agentctl: {path} is not valid: 1 problem\n"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("missing", "the card is missing"),
        ("empty", "the card is blank"),
        ("blank", "the card is blank"),
        ("directory", "the card cannot be read (it is a directory, not a regular file)"),
        ("fifo", "the card cannot be read (it is a FIFO, not a regular file)"),
        ("below", "the card cannot be read (Not a directory)"),
        ("large", "the card cannot be read (it is larger than 4194304 bytes)"),
    ],
)
def test_check_without_a_card(tmp_path: Path, capfd: Printed, kind: str, told: str) -> None:
    """What is no card at all is told in a line, in the daemon's words, and nothing is waited for."""
    path = tmp_path / kind
    match kind:
        case "empty" | "below":
            path.touch()
        case "blank":
            path.write_text("\n \n")
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "large":
            path.write_bytes(b"\n" * (4 * 1024 * 1024 + 1))
    if kind == "below":
        path /= "x"
    assert main(["check", str(path)]) == 1
    assert capfd.readouterr() == ("", f"agentctl: {path}: {told}\n")
    assert main(["check", "--json", str(path)]) == 1
    printed = capfd.readouterr()
    assert printed.err == ""
    assert json.loads(printed.out) == {
        "card": str(path),
        "valid": False,
        "errors": [{"path": "card", "text": told}],
        "warnings": [],
        "agents": [],
    }


def test_check_json(tmp_path: Path, capfd: Printed) -> None:
    """As JSON there are the same problems, warnings, names and exit codes, and nothing on stderr."""
    path = write(tmp_path / "c", INVALID)
    assert main(["check", "--json", path]) == 1
    printed = capfd.readouterr()
    assert printed.err == ""
    assert json.loads(printed.out) == {
        "card": path,
        "valid": False,
        "errors": [
            {"path": "agents[1].restart", "text": '"sometimes" is not one of no, on-failure, always'},
            {"path": "agents[1].env.PORT", "text": 'expected a string, found the integer 8080; write "8080"'},
        ],
        "warnings": ['agents[1].promt: unknown key, ignored; did you mean "prompt"?'],
        "agents": [],
    }
    path = write(tmp_path / "c", '[agent]\nharness = "custom"\nname = "é"\nnope = 1\n')
    assert main(["check", "--json", path]) == 0
    assert json.loads(capfd.readouterr().out) == {
        "card": path,
        "valid": True,
        "errors": [],
        "warnings": ["agent.nope: unknown key, ignored"],
        "agents": ["é"],
    }


def test_check_in_an_ascii_terminal(tmp_path: Path) -> None:
    """In a locale without UTF-8 names are escaped, and it is still one line of 80 columns."""
    path = write(tmp_path / "c", '[agent]\nharness = "custom"\nname = "é' + "é" * 50 + '"\n')
    environ = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(program("check", path), env=environ, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b" (\\xe9\\xe9" in done.stdout
    assert len(done.stdout) <= 81


def test_check_escapes_the_path(capfd: Printed) -> None:
    """A path is shown so that it is one line and nothing that a terminal would obey."""
    assert main(["check", "/no/\x1b[31m\nsuch"]) == 1
    assert capfd.readouterr().err == "agentctl: /no/\\x1b[31m\\nsuch: the card is missing\n"


def test_check_without_a_path(tmp_path: Path, capfd: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CARD it is the default card of this user, or else the system's."""
    path = write(tmp_path / "c", '[agent]\nharness = "custom"\n')
    found = []

    def own_or_system(own: str, system: str) -> str:
        found.append((own, system))
        return path

    monkeypatch.setattr(ctl, "own_or_system", own_or_system)
    assert main(["check"]) == 0
    assert found == [(own_defaults(os.environ).config, "/etc/stereos/jcard.toml")]
    assert capfd.readouterr().out.endswith(" is valid: 1 agent (custom)\n")
