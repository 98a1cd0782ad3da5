import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.outside import Start, World

PROMPTS = {
    "plain": "fix the tests",
    "quotes": 'it\'s "quoted" \\ and \\\\ \'so\' ""',
    "newlines": "one\ntwo\n\n three\n",
    "controls": "tab\there\rCR \x1b[31mESC\x1b]0;title\x07 \x01\x03\x04\x15\x1a\x7f",
    "shell": "$HOME ${PATH} `id` $(id) !x !! ~ ~root * ? [a] {b} | & > < ( ) #c",
    "unicode": "é ☃ \U0001f600 e\u0301 \u202eright to left",
    "semicolon": "ends;",
    "semicolons": ";;\\;",
    "key": "C-c",
    "enter": "Enter",
    "format": "#{pane_id} #S #(id) ## %H",
    "frame": "%end 1 2 3\n%exit",
    "space": " leading and trailing ",
    "large": "0123456789 ☃ '\"\\\n" * 5120,
}
DASHED = "-rf --help"
FORMS = {
    "claude-code": (["claude", "-p", "{}"], ["claude", "-p", "--", "{}"], ["claude"]),
    "opencode": (["opencode", "--prompt", "{}"], ["opencode", "--prompt={}"], ["opencode"]),
    "gemini-cli": (["gemini", "{}"], ["gemini", "--prompt-interactive={}"], ["gemini"]),
    "custom": (["agent", "{}"], ["agent", "--", "{}"], ["agent"]),
}
SECRET = "5ecret-Ü"  # noqa: S105 - it is one for the tests alone
SECRETS = {
    "TOKEN": (f"{SECRET}\n".encode(), SECRET),
    "KEY": (f'-----BEGIN-----\n{SECRET}\n\n it\'s "a" $HOME `x` \\ \t\r;\n-----END-----\r\n\n'.encode(), None),
    "UNICODE": (f"☃ \U0001f600 {SECRET}".encode(), None),
    "EMPTY": (b"", ""),
    "OVERRIDDEN": (SECRET.encode(), "the card's"),
    "UID": (b"4711", None),
    "PPID": (b"1", None),
    "SHELLOPTS": (b"noexec", None),
}
BAD_SECRETS = {"not-a-name": b"x", "BINARY": b"\xff\xfe", "NUL": b"a\0b", "TMUX_X": b"x", "HUGE": b"x" * 200_000}


class Gallery:
    """One agentd with an agent for each case; what it and all other processes showed while the agents came up."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.shown: list[str] = []

    def start(self, name: str) -> Start:
        """The agent's one start."""
        return self.world.wait_ready(name, seconds=30)


@pytest.fixture(scope="module")
def gallery() -> Iterator[Gallery]:
    world = World()
    for name, (data, _) in SECRETS.items():
        (world.secrets / name).write_bytes(data)
    for name, data in BAD_SECRETS.items():
        (world.secrets / name).write_bytes(data)
    (world.secrets / ".hidden").write_bytes(b"x")
    (world.secrets / "A_DIRECTORY").mkdir()
    # What rc files do to PATH and to the card's variables.
    rc = f"export PATH={world.home}/rcbin:/usr/local/bin:/usr/bin:/bin FROM_RC=yes OVERRIDDEN=rc TOKEN=rc\n"
    for name in (".bash_profile", ".profile", ".zprofile"):
        (world.home / name).write_text(rc)
    world.put_program(world.home / "rcbin" / "agent")
    own = world.put_program(world.top / "my tool's" / "it; x")
    local = world.put_program(world.work / "local")
    base = {"env": {"OVERRIDDEN": "the card's"}}
    agents = [world.agent(f"p-{name}", prompt=prompt, **base) for name, prompt in PROMPTS.items()]
    for harness in FORMS:
        for case, prompt in {"hard": "\n".join(PROMPTS.values())[:100_000], "dash": DASHED, "none": ""}.items():
            agents.append(world.agent(f"{harness}-{case}", harness=harness, prompt=prompt, **base))
    agents += [
        world.agent("binary", binary=str(own), args=["--a b", "$x", ""], prompt="p", **base),
        world.agent("relative", binary=f"./{local.name}", prompt="p", **base),
        world.agent("args", harness="claude-code", args=["--model", "it's"], prompt="p", **base),
        world.agent("rc-path", prompt="p", env={"OVERRIDDEN": "the card's", "PATH": "REMOVED"}),
        world.agent("too-large", prompt="x" * 200_000),
        world.agent(
            "hard-env", env={"HARD": PROMPTS["shell"] + PROMPTS["controls"] + PROMPTS["newlines"], **base["env"]}
        ),
    ]
    next(agent for agent in agents if agent["name"] == "rc-path")["env"].pop("PATH")
    world.write_card(*agents)
    seen = Gallery(world)
    over = threading.Event()
    watcher = threading.Thread(target=_watch_command_lines, args=(over, seen.shown))
    watcher.start()
    try:
        world.start("-debug")
        for agent in agents:
            if agent["name"] != "too-large":
                seen.start(agent["name"])
    finally:
        over.set()
        watcher.join()
    yield seen
    world.close()


def _watch_command_lines(over: threading.Event, found: list[str]) -> None:
    """Look for the secret in everybody's command line."""
    token = SECRET.encode()
    while not over.wait(0.02):
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    line = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if token in line:
                    found.append(line.decode(errors="replace"))


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_byte_for_byte(gallery: Gallery, name: str) -> None:
    """The harness gets the prompt byte for byte, whatever shells, terminals and tmux would make of it."""
    assert gallery.start(f"p-{name}").argv == ["agent", PROMPTS[name]]


@pytest.mark.parametrize("harness", FORMS)
def test_harness_command(gallery: Gallery, harness: str) -> None:
    """Each harness is started as its program wants it: with a hard prompt, with a dashed one, and interactively."""
    hard = "\n".join(PROMPTS.values())[:100_000]
    for case, prompt, form in zip(("hard", "dash", "none"), (hard, DASHED, ""), FORMS[harness], strict=True):
        expected = [word.replace("{}", prompt) for word in form]
        assert gallery.start(f"{harness}-{case}").argv == expected


def test_prompt_too_large(gallery: Gallery) -> None:
    """A prompt that the kernel would not take is that agent's error, which names it; the others run."""
    status = gallery.world.status("too-large")
    assert (status["state"], status["reason"], status["running"]) == ("waiting", "prompt_too_large", False)
    assert "prompt of agent too-large" in status["error"]
    assert gallery.world.starts("too-large") == []


def test_binary(gallery: Gallery) -> None:
    """A binary of the card replaces the harness's, and args come right after it, before the prompt."""
    start = gallery.start("binary")
    assert start.argv == ["it; x", "--a b", "$x", "", "p"]


def test_relative_binary(gallery: Gallery) -> None:
    """A binary such as ./local is looked up in the workdir."""
    assert gallery.start("relative").argv == ["local", "p"]


def test_args(gallery: Gallery) -> None:
    """Arguments of the card come before the harness's own."""
    assert gallery.start("args").argv == ["claude", "--model", "it's", "-p", "p"]


def test_path_of_the_card_wins(gallery: Gallery) -> None:
    """The card's PATH, and its other variables, win over what rc files set; what only they set is there too."""
    env = gallery.start("p-plain").env
    assert env["PATH"] == f"{gallery.world.bin}:{gallery.world.env['PATH']}"
    assert (env["OVERRIDDEN"], env["TOKEN"], env["FROM_RC"]) == ("the card's", SECRET, "yes")


def test_path_of_the_rc_file(gallery: Gallery) -> None:
    """Where the card says nothing of PATH, the agent's own rc files do."""
    start = gallery.start("rc-path")
    assert start.env["PATH"].startswith(f"{gallery.world.home}/rcbin:")


def test_env_byte_for_byte(gallery: Gallery) -> None:
    """A variable of the card arrives byte for byte."""
    expected = PROMPTS["shell"] + PROMPTS["controls"] + PROMPTS["newlines"]
    assert gallery.start("hard-env").env["HARD"] == expected


def test_secrets_arrive(gallery: Gallery) -> None:
    """Each file of the secrets directory is a variable, minus its trailing newlines; the card's env wins."""
    env = gallery.start("p-plain").env
    for name in ("TOKEN", "KEY", "UNICODE", "EMPTY", "OVERRIDDEN"):
        data, expected = SECRETS[name]
        assert env[name] == (data.decode().rstrip("\r\n") if expected is None else expected)


def test_bad_secrets_warn(gallery: Gallery) -> None:
    """A secret that cannot be used is one warning that names it; it, hidden files and directories are no variables."""
    env = gallery.start("p-plain").env
    assert not env.keys() & {*BAD_SECRETS, ".hidden", "A_DIRECTORY"}
    lines = gallery.world.log_lines
    warnings = gallery.world.get("/v1/health").json["warnings"]
    for name in BAD_SECRETS:
        assert sum(name in line and "WARN" in line for line in lines) == 1
        assert sum(name in warning for warning in warnings) == 1
    assert not any("hidden" in warning or "A_DIRECTORY" in warning for warning in warnings)


def test_secrets_stay_secret(gallery: Gallery) -> None:
    """No secret is in any process's command line, in the log (with -debug), or in the API's answers."""
    world = gallery.world
    assert gallery.shown == []
    assert SECRET not in world.log
    assert "TOKEN" in world.log, "-debug names the variables"
    for path in ("/v1/health", "/v1/agents", "/v1/agents/p-plain"):
        assert SECRET not in world.get(path).body.decode()
    assert SECRET not in world.screen("p-plain")
    assert SECRET not in world.tmux("show-options", "-A", "-t", "=p-plain:").stdout
    assert SECRET not in world.tmux("show-environment", "-g").stdout


def test_scripts_are_private(gallery: Gallery) -> None:
    """What is left in the run directory while agents run is readable by their user alone, and holds no script."""
    for path in gallery.world.run_dir.rglob("*"):
        assert path.name != "launch"
        if path.name == "lifeline":
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o066 == 0


def test_place(gallery: Gallery) -> None:
    """The agent runs in its workdir, on its session's terminal, and knows which attempt it is."""
    start = gallery.start("p-plain")
    assert start.cwd == os.path.realpath(gallery.world.work)
    assert start.env["AGENTD_ATTEMPT"].endswith("/1")
    assert start.env["TMUX"].startswith(f"{gallery.world.tmux_socket},")
    status = gallery.world.status("p-plain")
    assert (status["pid"], status["session"], status["restarts"]) == (start.pid, "p-plain", 0)


def test_nothing_typed_but_a_path(gallery: Gallery) -> None:
    """The screen of the session shows the launch and no more than the head of a large prompt."""
    shown = gallery.world.screen("p-large")
    assert "agentd runs: agent " in shown
    assert len(shown) < 3000


def test_debug_log(gallery: Gallery) -> None:
    """With -debug the log has the command, the workdir and the names of the variables, an event a line."""
    line = gallery.world.wait_log("agent=args command=")
    assert "claude --model" in line
    assert f"workdir={gallery.world.work}" in line
    assert "OVERRIDDEN" in line
