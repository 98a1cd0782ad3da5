"""One look at the world: when a card is believed, what stays in force, and who reads prompt files."""

import contextlib
import errno
import os
import pwd
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import agentd.inputs.parsing
import agentd.inputs.prompts
import agentd.inputs.settle
from agentd.card.card import Card, parse_card
from agentd.inputs.reader import InputReader, Inputs
from agentd.inputs.watch import Watch
from agentd.resolve import Blocked, EffectiveAgent, Unsupported
from agentd.settings import AgentUser
from tests.settings import agent_user, settings_below

_CARD = '[agent]\nharness = "claude-code"\n'
_OTHER = '[agent]\nharness = "opencode"\n'
_RESTLESS = ["#" * length for length in range(1, 12)]
_PROMPTED = _CARD + 'prompt_file = "prompt.md"\n'


@pytest.fixture
def world() -> Iterator[Path]:
    """Make a directory that another user can reach too."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Record what the card's parser is given."""
    seen: list[bytes] = []

    def parse(data: bytes) -> Card:
        seen.append(data)
        return parse_card(data)

    monkeypatch.setattr(agentd.inputs.parsing, "parse_card", parse)
    return seen


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settle at once where the clock is real."""
    monkeypatch.setattr(agentd.inputs.settle, "SETTLE", 0)


def _reader(world: Path, user: pwd.struct_passwd | None = None) -> InputReader:
    account = user or pwd.getpwuid(os.geteuid())
    settings = settings_below(
        world,
        agent_user=agent_user(account, home=str(world / "home"), shell="/bin/sh"),
        switch_user=user is not None,
        default_workdir="/work",
    )
    return InputReader(settings, Watch())


def _other_user_reader(world: Path) -> InputReader:
    """Make a reader for another user where we may become one, else for our own."""
    return _reader(world, pwd.getpwnam("nobody") if os.geteuid() == 0 else None)


def _resolved(inputs: Inputs, name: str = "claude-code") -> EffectiveAgent | Blocked | Unsupported:
    return inputs.wanted[name][1]


def _prompt(inputs: Inputs) -> str:
    """Return the prompt of the one agent, which must not be blocked."""
    resolved = _resolved(inputs)
    assert isinstance(resolved, EffectiveAgent)
    return resolved.argv[-1]


def _why(inputs: Inputs) -> str:
    """Return the message of the one agent, which must be blocked on its prompt file."""
    resolved = _resolved(inputs)
    assert isinstance(resolved, Blocked)
    assert resolved.reason == "prompt_file"
    return resolved.message


def _make(kind: str, path: Path) -> None:
    """Put something at a path that is no file to read."""
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        case "loop":
            path.symlink_to(path)
        case "dangling":
            path.symlink_to("nowhere")


async def _keep_writing(path: Path, contents: list[str]) -> None:
    """Write each content in its turn, too soon after the one before for it to be believed."""
    for content in contents:
        await trio.sleep(0.07)
        _write(path, content)


def _processes_with(argument: str) -> list[str]:
    """Return the processes that have this argument."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if argument in Path("/proc", pid, "cmdline").read_text(errors="replace").split("\0"):
                found.append(pid)
    return found


def _write(path: Path, content: str) -> None:
    path.write_text(content)


async def test_first_card(world: Path, autojump_clock: MockClock) -> None:
    """A first card is believed after two equal reads, 0.1 s apart."""
    (world / "jcard.toml").write_text(_CARD)
    start = trio.current_time()
    inputs = await _reader(world).read()
    assert trio.current_time() - start == pytest.approx(0.1)
    assert inputs.card == parse_card(_CARD.encode())
    assert (inputs.card_error, inputs.card_missing) == (None, False)
    agent, resolved = inputs.wanted["claude-code"]
    assert agent.harness == "claude-code"
    assert isinstance(resolved, EffectiveAgent)


async def test_unchanged_card(world: Path, autojump_clock: MockClock, parses: list[bytes]) -> None:
    """A card that has not changed is neither read twice, nor parsed again, nor resolved again."""
    (world / "jcard.toml").write_text(_CARD)
    reader = _reader(world)
    first = await reader.read()
    start = trio.current_time()
    second = await reader.read()
    assert second == first
    assert second.card is first.card
    assert second.wanted is first.wanted
    assert trio.current_time() == start
    assert len(parses) == 1


async def test_touched_card(world: Path, autojump_clock: MockClock, parses: list[bytes]) -> None:
    """A card that was only touched, or replaced by the same bytes, is not parsed again."""
    card = world / "jcard.toml"
    card.write_text(_CARD)
    reader = _reader(world)
    await reader.read()
    (world / "new").write_text(_CARD)
    (world / "new").rename(card)
    assert (await reader.read()).card == parse_card(_CARD.encode())
    assert len(parses) == 1


async def test_changed_card(world: Path, autojump_clock: MockClock) -> None:
    """A changed card is in force from the next look on."""
    (world / "jcard.toml").write_text(_CARD)
    reader = _reader(world)
    await reader.read()
    (world / "jcard.toml").write_text(_OTHER)
    assert list((await reader.read()).wanted) == ["opencode"]


async def test_rewritten_in_place(world: Path, autojump_clock: MockClock, parses: list[bytes]) -> None:
    """A card that is truncated and rewritten in place within a look is only believed when it stands still."""
    card = world / "jcard.toml"
    card.write_text("")
    reader = _reader(world)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_writing, card, [_OTHER[:10], _OTHER])
        inputs = await reader.read()
    assert list(inputs.wanted) == ["opencode"]
    assert parses == [_OTHER.encode()]


async def test_never_settles(world: Path, autojump_clock: MockClock, parses: list[bytes]) -> None:
    """While a card keeps changing the last good one stays in force, and the next look tries again."""
    card = world / "jcard.toml"
    card.write_text(_CARD)
    reader = _reader(world)
    await reader.read()
    card.write_text("")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_writing, card, [*_RESTLESS, _OTHER])
        inputs = await reader.read()
    assert list(inputs.wanted) == ["claude-code"]
    assert (inputs.card_error or "").startswith("the card keeps changing: ")
    assert not inputs.card_missing
    assert len(parses) == 1
    inputs = await reader.read()
    assert list(inputs.wanted) == ["opencode"]
    assert inputs.card_error is None


@pytest.mark.parametrize(
    ("content", "error"), [(None, "the card is missing"), ("", "the card is blank"), (" \n\t\n", "the card is blank")]
)
async def test_missing_card(world: Path, autojump_clock: MockClock, content: str | None, error: str) -> None:
    """A missing or blank card is said to be that, and leaves the last good one in force."""
    card = world / "jcard.toml"
    if content is not None:
        card.write_text(content)
    reader = _reader(world)
    before = await reader.read()
    assert (before.card, before.card_error, before.card_missing, dict(before.wanted)) == (None, error, True, {})
    card.write_text(_CARD)
    good = await reader.read()
    assert (good.card_error, good.card_missing) == (None, False)
    if content is None:
        card.unlink()
    else:
        card.write_text(content)
    for _ in range(2):
        after = await reader.read()
        assert (after.card, after.card_error, after.card_missing) == (good.card, error, True)
        assert after.wanted == good.wanted
    card.write_text(_CARD)
    assert (await reader.read()).card_error is None


@pytest.mark.parametrize("content", [None, "", "\n"])
@pytest.mark.parametrize("moment", [0.05, 0.15, 0.25, 0.29])
async def test_blank_for_a_moment(world: Path, autojump_clock: MockClock, content: str | None, moment: float) -> None:
    """A card that is blank or missing for less than 0.3 s is being rewritten: nothing is said, the new one is taken."""
    card = world / "jcard.toml"
    card.write_text(_CARD)
    reader = _reader(world)
    await reader.read()
    card.unlink()
    if content is not None:
        card.write_text(content)

    async def rewrite() -> None:
        await trio.sleep(moment)
        card.write_text(_OTHER)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rewrite)
        inputs = await reader.read()
    assert (list(inputs.wanted), inputs.card_error, inputs.card_missing) == (["opencode"], None, False)


async def test_card_without_agents(world: Path, autojump_clock: MockClock) -> None:
    """A card that holds other things but no agents is a card: none are wanted."""
    (world / "jcard.toml").write_text(_CARD)
    reader = _reader(world)
    await reader.read()
    (world / "jcard.toml").write_text('mixtape = "x"\n')
    inputs = await reader.read()
    assert (dict(inputs.wanted), inputs.card_error, inputs.card_missing) == ({}, None, False)


async def test_invalid_card(world: Path, autojump_clock: MockClock, parses: list[bytes]) -> None:
    """An invalid card tells all its problems at every look, is parsed once, and leaves the last good one in force."""
    card = world / "jcard.toml"
    card.write_text(_CARD)
    reader = _reader(world)
    await reader.read()
    card.write_text('[agent]\nharness = "claude-code"\nrestart = "maybe"\ntimeout = "soon"\npromt = "x"\n')
    inputs = await reader.read()
    assert list(inputs.wanted) == ["claude-code"]
    assert inputs.warnings == ('agent.promt: unknown key, ignored; did you mean "prompt"?',)
    error = inputs.card_error or ""
    assert ["restart" in line or "timeout" in line for line in error.splitlines()] == [True, True]
    assert (await reader.read()).card_error == error
    assert len(parses) == 2
    card.write_text(_CARD)
    inputs = await reader.read()
    assert (inputs.card_error, inputs.warnings) == (None, ())


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("directory", "a directory"),
        ("fifo", "a FIFO"),
        ("socket", "a socket"),
        ("loop", "symbolic"),
        ("huge", "larger"),
    ],
)
async def test_unreadable_card(world: Path, autojump_clock: MockClock, kind: str, found: str) -> None:
    """What cannot be a card is an error that says what was found, and leaves the last good card in force."""
    card = world / "jcard.toml"
    card.write_text(_CARD)
    reader = _reader(world)
    good = await reader.read()
    card.unlink()
    _make(kind, card)
    if kind == "huge":
        card.write_text("#" * (4 * 1024 * 1024 + 1))
    inputs = await reader.read()
    assert found in (inputs.card_error or "")
    assert (inputs.card_error or "").startswith("the card cannot be read (")
    assert not inputs.card_missing
    assert (inputs.card, inputs.wanted) == (good.card, good.wanted)


@pytest.mark.usefixtures("quick")
async def test_cancelled_parse(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stops agentd need not wait for the end of a huge card's parsing, which then changes nothing any more."""
    began, go_on, over = trio.Event(), threading.Event(), trio.Event()

    def parse(data: bytes) -> Card:
        trio.from_thread.run_sync(began.set)
        go_on.wait(10)
        trio.from_thread.run_sync(over.set)
        return parse_card(data)

    monkeypatch.setattr(agentd.inputs.parsing, "parse_card", parse)
    card = world / "jcard.toml"
    card.write_text(_CARD + "#" * 100_000)
    reader = _reader(world)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.read)
        await began.wait()
        nursery.cancel_scope.cancel()
    assert not over.is_set()
    go_on.set()
    with trio.fail_after(10):
        await over.wait()
    card.unlink()
    assert (await reader.read()).card is None


async def test_switched_symlink(world: Path, autojump_clock: MockClock) -> None:
    """A card behind symlinks is followed anew at every look."""
    (world / "one").write_text(_CARD)
    (world / "two").write_text(_OTHER)
    (world / "current").symlink_to("one")
    (world / "jcard.toml").symlink_to("current")
    reader = _reader(world)
    assert list((await reader.read()).wanted) == ["claude-code"]
    (world / "current").unlink()
    (world / "current").symlink_to("two")
    assert list((await reader.read()).wanted) == ["opencode"]


async def test_secrets(world: Path, autojump_clock: MockClock) -> None:
    """Secrets become the agents' environment, and their warnings follow the card's."""
    (world / "jcard.toml").write_text(_CARD + 'unheard_of = 1\nenv = {B = "card"}\n')
    (world / "secrets").mkdir()
    (world / "secrets" / "A").write_text("secret\n")
    (world / "secrets" / "B").write_text("secret\n")
    (world / "secrets" / "A-B").write_text("bad")
    inputs = await _reader(world).read()
    resolved = _resolved(inputs)
    assert isinstance(resolved, EffectiveAgent)
    assert resolved.env == {"A": "secret", "B": "card"}
    assert inputs.secrets.values == {"A": "secret", "B": "secret"}
    assert ["unheard_of" in warning for warning in inputs.warnings] == [True, False]
    assert ["A-B" in warning for warning in inputs.warnings] == [False, True]


async def test_secret_rewritten_in_place(world: Path, autojump_clock: MockClock) -> None:
    """A secret that is truncated and rewritten in place within a look is only believed when it stands still."""
    (world / "secrets").mkdir()
    (world / "secrets" / "A").write_text("old")
    reader = _reader(world)
    await reader.read()
    (world / "secrets" / "A").write_text("")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_writing, world / "secrets" / "A", ["new"])
        inputs = await reader.read()
    assert inputs.secrets.values == {"A": "new"}


async def test_restless_secret(world: Path, autojump_clock: MockClock) -> None:
    """A secret that somebody keeps writing does not cost the others."""
    (world / "secrets").mkdir()
    (world / "secrets" / "A").write_text("a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_writing, world / "secrets" / "B", _RESTLESS)
        inputs = await _reader(world).read()
    assert inputs.secrets.values["A"] == "a"


async def test_kept_secret(world: Path, autojump_clock: MockClock) -> None:
    """A secret that cannot be read any more keeps its value, look after look, until it is gone."""
    secret = world / "secrets" / "A"
    secret.parent.mkdir()
    secret.write_text("good")
    reader = _reader(world)
    await reader.read()
    secret.write_bytes(b"\xff")
    for _ in range(2):
        inputs = await reader.read()
        assert inputs.secrets.values == {"A": "good"}
        assert len(inputs.warnings) == 1
    secret.unlink()
    inputs = await reader.read()
    assert (dict(inputs.secrets.values), inputs.warnings) == ({}, ())


@pytest.mark.parametrize("place", ["prompt.md", "./home/../prompt.md", "~/prompt.md", "/absolute"])
async def test_prompt_file(world: Path, autojump_clock: MockClock, place: str) -> None:
    """A prompt file is found by home, card or root, wins over the prompt, and is trimmed at both ends."""
    (world / "home").mkdir()
    place = str(world / "absolute") if place == "/absolute" else place
    file = world / "home" / "prompt.md" if place.startswith("~") else world / place
    file.write_text("\n\t go é☃\n\n on \r\n")
    (world / "jcard.toml").write_text(_CARD + f'prompt = "no"\nprompt_file = "{place}"\n')
    assert _prompt(await _reader(world).read()) == "go é☃\n\n on"


async def test_inline_prompt(world: Path, autojump_clock: MockClock) -> None:
    """A prompt in the card is taken as it stands."""
    (world / "jcard.toml").write_text(_CARD + 'prompt = " go\\n"\n')
    assert _prompt(await _reader(world).read()) == " go\n"


async def test_empty_prompt_file(world: Path, autojump_clock: MockClock) -> None:
    """A prompt file of white space is an empty prompt: the harness starts without one."""
    (world / "prompt.md").write_text(" \n")
    (world / "jcard.toml").write_text(_PROMPTED)
    assert _prompt(await _reader(world).read()) == "claude"


async def test_changed_prompt_file(world: Path, autojump_clock: MockClock) -> None:
    """A changed prompt file is another prompt and another digest from the next look on."""
    (world / "jcard.toml").write_text(_PROMPTED)
    (world / "prompt.md").write_text("one")
    reader = _reader(world)
    first = _resolved(await reader.read())
    (world / "prompt.md").write_text("two")
    second = _resolved(await reader.read())
    assert isinstance(first, EffectiveAgent)
    assert isinstance(second, EffectiveAgent)
    assert (first.argv[-1], second.argv[-1]) == ("one", "two")
    assert first.digest != second.digest


async def test_unchanged_prompt_file(world: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt file is read again only when its stat changed."""
    (world / "jcard.toml").write_text(_PROMPTED)
    (world / "prompt.md").write_text("one")
    reader = _reader(world)
    first = await reader.read()
    with monkeypatch.context() as patch:
        patch.setattr(agentd.inputs.prompts, "read_regular", _unwanted)
        assert await reader.read() == first
        (world / "prompt.md").chmod(0o640)
        with pytest.RaisesGroup(AssertionError, flatten_subgroups=True):
            await reader.read()
    assert await reader.read() == first


def _unwanted(path: str | Path, _limit: int) -> tuple[bytes, os.stat_result]:
    raise AssertionError(path)


async def test_prompt_rewritten_in_place(world: Path, autojump_clock: MockClock) -> None:
    """A prompt file that is truncated and rewritten in place within a look is only believed when it stands still."""
    (world / "jcard.toml").write_text(_PROMPTED)
    (world / "prompt.md").write_text("one")
    reader = _reader(world)
    await reader.read()
    (world / "prompt.md").write_text("")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_writing, world / "prompt.md", ["two"])
        assert _prompt(await reader.read()) == "two"


async def test_restless_prompt(world: Path, autojump_clock: MockClock) -> None:
    """While a prompt file keeps changing its last content stays, and one that never had any blocks its agent."""
    (world / "jcard.toml").write_text(_PROMPTED)
    (world / "prompt.md").write_text("")
    reader = _reader(world)
    for content, looked in (("new", _why), ("newer", _prompt)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_writing, world / "prompt.md", [*_RESTLESS, content])
            shown = looked(await reader.read())
        assert ("keeps changing" in shown) == (looked is _why)
        assert shown == "new" or looked is _why
        assert _prompt(await reader.read()) == content


@pytest.mark.parametrize(
    ("kind", "content", "found"),
    [
        ("none", None, "o such file"),
        ("dangling", None, "o such file"),
        ("loop", None, ""),
        ("directory", None, "not a regular file"),
        ("fifo", None, "not a regular file"),
        ("socket", None, "not a regular file"),
        ("file", b"x" * (2 * 1024 * 1024 + 1), "larger than 2097152 bytes"),
        ("file", b"\xff", "UTF-8"),
        ("file", b"a\0b", "NUL"),
    ],
    ids=["none", "dangling", "loop", "directory", "fifo", "socket", "huge", "bytes", "nul"],
)
@pytest.mark.parametrize("make_reader", [_reader, _other_user_reader])
@pytest.mark.usefixtures("quick")
async def test_bad_prompt_file(
    world: Path, make_reader: Callable[[Path], InputReader], kind: str, content: bytes | None, found: str
) -> None:
    """A prompt file that cannot be used blocks its agent with the path to watch, and it heals when the file is good."""
    file = world / "prompt.md"
    _make(kind, file)
    if content is not None:
        file.write_bytes(content)
    (world / "jcard.toml").write_text(_CARD + f'prompt_file = "{file}"\n')
    reader = make_reader(world)
    for _ in range(2):
        inputs = await reader.read()
        blocked = _resolved(inputs)
        assert isinstance(blocked, Blocked)
        assert (blocked.reason, blocked.paths) == ("prompt_file", (str(file),))
        assert "agent claude-code" in blocked.message
        assert str(file) in blocked.message
        assert found in blocked.message
    (world / "good").write_text("good")
    if kind == "directory":
        file.rmdir()
    (world / "good").rename(file)
    assert _prompt(await reader.read()) == "good"


async def test_vanished_prompt_file(world: Path, autojump_clock: MockClock) -> None:
    """A prompt file that vanishes after it was good blocks: what runs is the planner's to keep."""
    (world / "jcard.toml").write_text(_PROMPTED)
    (world / "prompt.md").write_text("one")
    reader = _reader(world)
    assert _prompt(await reader.read()) == "one"
    (world / "prompt.md").unlink()
    assert "prompt.md" in _why(await reader.read())


@pytest.mark.usefixtures("quick")
async def test_prompt_by_other_user(world: Path) -> None:
    """As another user the prompt arrives whole, with an odd path and near the limit too."""
    place = world / "-p $(id) 'é'\n\".md"
    place.write_text("\n" + "é\n" * 1_000_000 + "end\n")
    (world / "jcard.toml").write_text(_CARD + f"prompt_file = '''{place}'''\nargs = []\n")
    blocked = _resolved(await _other_user_reader(world).read())
    assert isinstance(blocked, Blocked)
    assert blocked.reason == "prompt_file"
    place.write_text("\n" + "é\n" * 40_000 + "end\n")
    assert _prompt(await _other_user_reader(world).read()) == "é\n" * 40_000 + "end"


@pytest.mark.usefixtures("quick")
async def test_credentials(world: Path) -> None:
    """A file that the agent user may not read stays unread, root's right to do so notwithstanding, until it may."""
    secret = world / "private"
    secret.mkdir(mode=0o700)
    (secret / "shadow").write_text("root's own")
    (secret / "shadow").chmod(0o600)
    (world / "prompt.md").symlink_to(secret / "shadow")
    (world / "jcard.toml").write_text(_PROMPTED)
    reader = _other_user_reader(world)
    if os.geteuid() == 0:
        assert "nobody" in _why(await reader.read())
        secret.chmod(0o755)
        assert "permission denied" in _why(await reader.read())
        (secret / "shadow").chmod(0o644)
        secret.chmod(0o700)
        assert "no such file" in _why(await reader.read())
        secret.chmod(0o755)
    assert _prompt(await reader.read()) == "root's own"


async def test_one_reading_a_look(world: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt file that cannot be read is tried once at each look."""
    tried: list[str | Path] = []

    def refuse(path: str | Path, _limit: int) -> tuple[bytes, os.stat_result]:
        tried.append(path)
        raise PermissionError(errno.EACCES, "permission denied")

    monkeypatch.setattr(agentd.inputs.prompts, "read_regular", refuse)
    (world / "jcard.toml").write_text(_PROMPTED)
    (world / "prompt.md").write_text("one")
    reader = _reader(world)
    for number in range(1, 4):
        assert "permission denied" in _why(await reader.read())
        assert len(tried) == number


async def test_hidden_in_repr(world: Path, autojump_clock: MockClock) -> None:
    """Printing the inputs shows neither secrets, nor env, nor prompts."""
    (world / "secrets").mkdir()
    (world / "secrets" / "A").write_text("hush")
    (world / "prompt.md").write_text("hush")
    (world / "jcard.toml").write_text(_PROMPTED + 'prompt = "hush"\nenv = {B = "hush"}\n')
    assert "hush" not in repr(await _reader(world).read())


@pytest.mark.usefixtures("quick")
async def test_stuck_reading(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading that never ends blocks the agent after a while, and the process that read is gone."""
    monkeypatch.setattr(agentd.inputs.prompts, "_SCRIPT", 'exec tail -f -- "$1"')
    monkeypatch.setattr(agentd.inputs.prompts, "_TIMEOUT", 0.5)
    (world / "prompt.md").write_text("one")
    (world / "jcard.toml").write_text(_PROMPTED)
    inputs = await _other_user_reader(world).read()
    if os.geteuid() == 0:
        assert "longer than 0.5 s" in _why(inputs)
        assert not _processes_with(str(world / "prompt.md"))
    else:
        assert _prompt(inputs) == "one"


async def test_hanging_readings(world: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many prompt files hang, a look ends after 10 s, and others are read in it or in one of the next."""
    hanging = {f"{world}/slow-{number}" for number in range(24)}
    others = {f"{world}/quick-{number}" for number in range(24)}

    async def read_as(_user: AgentUser, path: str, _limit: int) -> bytes:
        if path in hanging:
            await trio.sleep(5)
            raise TimeoutError(errno.ETIMEDOUT, "it hangs")
        return b"prompt"

    monkeypatch.setattr(agentd.inputs.prompts, "_read_as", read_as)
    for path in hanging | others:
        _write(Path(path), "")
    settings = settings_below(world, switch_user=True)
    reader = agentd.inputs.prompts.PromptReader(settings, Watch())
    known: dict[str, agentd.inputs.prompts.PromptFile | None] = dict.fromkeys(sorted(hanging | others))
    for _ in range(20):
        start = trio.current_time()
        looked = await reader.look(known)
        assert trio.current_time() - start == pytest.approx(10)
        assert looked.keys() == known.keys()
        assert all(file.text is None for path, file in looked.items() if path in hanging)
        assert {file.problem for file in looked.values() if file.text is None} == {
            "it hangs",
            "reading it took too long",
        }
        known = dict(looked)
        if all(looked[path].text == "prompt" for path in others):
            break
    else:
        pytest.fail("hanging files kept others from being read")


@pytest.mark.usefixtures("quick")
async def test_endless_reading(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of the agent user that never stops talking is not listened to beyond the limit."""
    monkeypatch.setattr(agentd.inputs.prompts, "_SCRIPT", "exec cat /dev/zero")
    (world / "prompt.md").write_text("one")
    (world / "jcard.toml").write_text(_PROMPTED)
    inputs = await _other_user_reader(world).read()
    if os.geteuid() == 0:
        assert "larger than" in _why(inputs)
    else:
        assert _prompt(inputs) == "one"
