"""Changes between two looks: the kernel's real events on real files, on the virtual clock.

An event is there as soon as the write that made it returns, so the clock jumps over none.
"""

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from inotify_simple import INotify
from trio.testing import MockClock

import agentd.inputs.watch
from agentd.inputs.reader import InputReader, Inputs
from agentd.inputs.watch import Watch, trail
from agentd.resolve import EffectiveAgent
from tests.settings import settings_below

CARD = '[[agents]]\nname = "{}"\nharness = "custom"\nprompt_file = "prompt.md"\n'
TICK = 5.0
QUEUE = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


class Desk:
    """Looks that are made when the watch knocks, and at each tick."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.card = home / "jcard.toml"
        self.secrets = home / "secrets"
        self.prompt = home / "prompt.md"
        self.watch = Watch()
        self.looks: list[tuple[float, Inputs]] = []
        self._reader = InputReader(settings_below(home), self.watch)
        self._send, self._knocks = trio.open_memory_channel[None](1)

    def knock(self) -> None:
        """Ask for another look."""
        with suppress(trio.WouldBlock):
            self._send.send_nowait(None)

    async def look(self) -> None:
        """Look for ever."""
        while True:
            inputs = await self._reader.read()
            self.looks.append((trio.current_time(), inputs))
            with trio.move_on_after(TICK):
                await self._knocks.receive()

    @property
    def now(self) -> Inputs:
        """What the last look found."""
        return self.looks[-1][1]

    def agent(self) -> EffectiveAgent:
        """The one agent."""
        ((_, what),) = self.now.wanted.values()
        assert isinstance(what, EffectiveAgent)
        return what

    async def found(self, is_there: Callable[[], bool]) -> float:
        """Wait for a look that finds it, and return how long that took."""
        begun = trio.current_time()
        with trio.fail_after(60):
            while not is_there():  # noqa: ASYNC110 - the clock is virtual
                await trio.sleep(0.01)
        return trio.current_time() - begun


@asynccontextmanager
async def looking(home: Path) -> AsyncIterator[Desk]:
    desk = Desk(home)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.watch.work, desk.knock)
        nursery.start_soon(desk.look)
        await trio.sleep(1)
        yield desk
        nursery.cancel_scope.cancel()


@pytest.fixture
async def desk(tmp_path: Path, autojump_clock: MockClock) -> AsyncIterator[Desk]:
    """Look at a card, a prompt file and a secret that have been read."""
    (tmp_path / "jcard.toml").write_text(CARD.format("one"))
    (tmp_path / "prompt.md").write_text("first")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "KEY").write_text("old")
    async with looking(tmp_path) as desk:
        assert (desk.agent().agent.name, desk.agent().env["KEY"], desk.agent().argv[-1]) == ("one", "old", "first")
        yield desk


def rename_over(path: Path, text: str) -> None:
    """Replace a file as editors do."""
    (path.parent / ".new").write_text(text)
    (path.parent / ".new").rename(path)


def write_over(path: Path, text: str) -> None:
    """Truncate a file and write it again in place."""
    path.write_text(text)


async def rewrite_slowly(path: Path, texts: list[str], parts: int = 4) -> None:
    """Truncate and rewrite in place again and again, 0.1 s each, a part of the text at a time."""
    for text in texts:
        with path.open("w") as file:
            for part in range(parts):
                file.write(text[len(text) * part // parts : len(text) * (part + 1) // parts])
                file.flush()
                await trio.sleep(0.1 / parts)


def kernel_watches(kernel: INotify) -> int:
    return Path(f"/proc/self/fdinfo/{kernel.fileno()}").read_text().count("inotify wd:")


@pytest.mark.parametrize("write", [rename_over, write_over])
async def test_change_is_found(desk: Desk, autojump_clock: MockClock, write: Callable[[Path, str], None]) -> None:
    """A change of card, prompt file or secret is in force 0.4 s later: 0.3 s without an event, and two reads."""
    write(desk.card, CARD.format("two"))
    assert await desk.found(lambda: list(desk.now.wanted) == ["two"]) == pytest.approx(0.4, abs=0.03)
    write(desk.prompt, "second")
    write(desk.card, CARD.format("one"))
    assert await desk.found(lambda: desk.agent().argv[-1] == "second") == pytest.approx(0.4, abs=0.03)
    assert list(desk.now.wanted) == ["one"]
    write(desk.secrets / "KEY", "new")
    assert await desk.found(lambda: desk.agent().env["KEY"] == "new") == pytest.approx(0.4, abs=0.03)
    write(desk.secrets / "MORE", "more")
    assert await desk.found(lambda: "MORE" in desk.agent().env) == pytest.approx(0.4, abs=0.03)
    (desk.secrets / "MORE").unlink()
    assert await desk.found(lambda: "MORE" not in desk.agent().env) == pytest.approx(0.4, abs=0.03)


async def test_nothing_changes(desk: Desk, autojump_clock: MockClock) -> None:
    """Between the ticks nothing is read, whatever else happens in the same directories."""
    before = len(desk.looks)
    for _ in range(40):
        (desk.home / "build.log").write_text("x")
        (desk.home / "jcard.toml.swp").write_text("x")
        desk.card.read_text()
        await trio.sleep(0.1)
    assert len(desk.looks) == before


async def test_card_rewritten_all_the_time(desk: Desk, autojump_clock: MockClock) -> None:
    """Of a card that is truncated and rewritten in place every 0.1 s nothing is believed until it stands still."""
    text = CARD.format("two") + CARD.format("three")
    begun = trio.current_time()
    await rewrite_slowly(desk.card, [text] * 60)
    assert {tuple(inputs.wanted) for _, inputs in desk.looks} == {("one",)}
    assert "the card keeps changing" in (desk.now.card_error or "")
    told = next(when for when, inputs in desk.looks if inputs.card_error)
    assert told - begun == pytest.approx(2, abs=0.1)
    assert await desk.found(lambda: list(desk.now.wanted) == ["two", "three"]) <= 0.5
    assert desk.now.card_error is None


async def test_card_rewritten_once(desk: Desk, autojump_clock: MockClock) -> None:
    """A writer who takes his time for one card is waited for, and nothing is said about it."""
    before = len(desk.looks)
    await rewrite_slowly(desk.card, [CARD.format("two")], parts=8)
    assert await desk.found(lambda: list(desk.now.wanted) == ["two"]) <= 0.5
    assert {inputs.card_error for _, inputs in desk.looks[before:]} == {None}


async def test_tick_in_the_middle(desk: Desk, autojump_clock: MockClock) -> None:
    """A tick that comes while somebody writes takes nothing either: half a card may stand still for 0.1 s."""
    desk.card.write_text("")
    await trio.sleep(0.05)
    desk.card.write_text(CARD.format("two"))  # a whole card, and as far as anybody knows the first half of one
    before = len(desk.looks)
    desk.knock()
    await trio.sleep(0.2)
    assert len(desk.looks) > before
    assert list(desk.now.wanted) == ["one"]
    assert desk.now.card_error is None
    desk.card.write_text(CARD.format("two") + CARD.format("three"))
    await desk.found(lambda: len(desk.now.wanted) == 2)
    assert {tuple(inputs.wanted) for _, inputs in desk.looks} == {("one",), ("two", "three")}


async def test_secret_rewritten_all_the_time(desk: Desk, autojump_clock: MockClock) -> None:
    """A secret that somebody keeps writing has its last good value, and costs the others nothing."""
    (desk.secrets / "OTHER").write_text("other")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rewrite_slowly, desk.secrets / "KEY", ["newer"] * 120)
        assert await desk.found(lambda: "OTHER" in desk.agent().env) <= 1
    assert {inputs.secrets.values["KEY"] for _, inputs in desk.looks} == {"old"}
    assert await desk.found(lambda: desk.agent().env["KEY"] == "newer") <= 0.5


async def test_prompt_rewritten_all_the_time(desk: Desk, autojump_clock: MockClock) -> None:
    """A prompt file that somebody keeps writing has its last content, and delays no other change."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rewrite_slowly, desk.prompt, ["second prompt"] * 120)
        await trio.sleep(0.5)
        rename_over(desk.secrets / "KEY", "new")
        assert await desk.found(lambda: desk.agent().env["KEY"] == "new") <= 1
        assert desk.agent().argv[-1] == "first"
    assert desk.agent().argv[-1] == "first"
    assert await desk.found(lambda: desk.agent().argv[-1] == "second prompt") <= 0.5


async def test_written_one_after_the_other(desk: Desk, autojump_clock: MockClock) -> None:
    """A secret, a prompt file and a card that are written one after the other are taken together."""
    before = len(desk.looks)
    for path, text in (
        (desk.secrets / "KEY", "new"),
        (desk.prompt, "second"),
        (desk.secrets / "MORE", "more"),
        (desk.card, CARD.format("two")),
    ):
        path.write_text(text)
        await trio.sleep(0.06)
    await desk.found(lambda: list(desk.now.wanted) == ["two"])
    assert len(desk.looks) == before + 1
    assert (desk.agent().env["KEY"], desk.agent().env["MORE"], desk.agent().argv[-1]) == ("new", "more", "second")


async def test_secret_missing_for_a_moment(desk: Desk, autojump_clock: MockClock) -> None:
    """A secret, or all of them, gone for less than 0.3 s was never gone."""
    before = len(desk.looks)
    (desk.secrets / "KEY").unlink()
    await trio.sleep(0.2)
    (desk.secrets / "KEY").write_text("new")
    await desk.found(lambda: desk.agent().env["KEY"] == "new")
    desk.secrets.rename(desk.home / "aside")
    await trio.sleep(0.2)
    (desk.home / "aside").rename(desk.secrets)
    await trio.sleep(1)
    assert all("KEY" in inputs.secrets.values for _, inputs in desk.looks[before:])


async def test_store(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A card and secrets behind symlinks into a store are found when the store's link, or their own, is switched."""
    for name in "one", "two", "three":
        (tmp_path / "store" / name / "secrets").mkdir(parents=True)
        (tmp_path / "store" / name / "card").write_text(f'[[agents]]\nname = "{name}"\nharness = "custom"\n')
        (tmp_path / "store" / name / "secrets" / "KEY").write_text(name)
    (tmp_path / "static").symlink_to("store/one")
    (tmp_path / "jcard.toml").symlink_to(tmp_path / "static" / "card")
    (tmp_path / "secrets").symlink_to("static/secrets")

    def switch(link: str, target: str) -> None:
        (tmp_path / ".link").symlink_to(target)
        (tmp_path / ".link").rename(tmp_path / link)

    async with looking(tmp_path) as desk:
        assert desk.agent().env["KEY"] == desk.agent().agent.name == "one"
        switch("static", "store/two")
        assert await desk.found(lambda: desk.agent().agent.name == "two") <= 0.5
        assert desk.agent().env["KEY"] == "two"
        switch("jcard.toml", "store/three/card")
        assert await desk.found(lambda: desk.agent().agent.name == "three") <= 0.5
        switch("secrets", "store/three/secrets")
        assert await desk.found(lambda: desk.agent().env["KEY"] == "three") <= 0.5
        rename_over(tmp_path / "store" / "three" / "card", '[[agents]]\nname = "four"\nharness = "custom"\n')
        assert await desk.found(lambda: desk.agent().agent.name == "four") <= 0.5


async def test_linked_secret(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Secrets that are symlinks into a directory which is switched as a whole are found at once."""
    (tmp_path / "jcard.toml").write_text('[agent]\nharness = "custom"\n')
    for name in "old", "new":
        (tmp_path / "secrets" / f"..{name}").mkdir(parents=True)
        (tmp_path / "secrets" / f"..{name}" / "KEY").write_text(name)
    (tmp_path / "secrets" / "..data").symlink_to("..old")
    (tmp_path / "secrets" / "KEY").symlink_to("..data/KEY")
    async with looking(tmp_path) as desk:
        assert desk.agent().env["KEY"] == "old"
        (tmp_path / "secrets" / "..next").symlink_to("..new")
        (tmp_path / "secrets" / "..next").rename(tmp_path / "secrets" / "..data")
        assert await desk.found(lambda: desk.agent().env["KEY"] == "new") <= 0.5


async def test_link_into_nothing(desk: Desk, autojump_clock: MockClock) -> None:
    """A secret that is a symlink is found when there is something at its other end."""
    (desk.secrets / "LATE").symlink_to(desk.home / "late")
    await trio.sleep(1)
    (desk.home / "late").write_text("value")
    assert await desk.found(lambda: "LATE" in desk.agent().env) <= 0.5


async def test_directories_that_come_later(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Card, secrets and prompt file are found when even their directories come after agentd, and come again."""
    home = tmp_path / "far" / "away"
    async with looking(home) as desk:
        assert desk.now.card_missing
        for _ in range(2):
            (home / "secrets").mkdir(parents=True)
            desk.card.write_text(CARD.format("one"))
            assert await desk.found(lambda: desk.now.card_error is None) <= 0.9
            await trio.sleep(1)
            desk.prompt.write_text("late")
            (desk.secrets / "KEY").write_text("late")
            assert await desk.found(lambda: "KEY" in desk.now.secrets.values) <= 0.6
            assert await desk.found(lambda: desk.agent().argv[-1] == "late") <= 0.5
            (tmp_path / "far").rename(tmp_path / f"gone-{trio.current_time()}")
            await desk.found(lambda: desk.now.card_missing)


async def test_lost_events(desk: Desk, autojump_clock: MockClock) -> None:
    """When the kernel has lost events, everything is looked at again."""
    flood(desk.card, desk.prompt)
    rename_over(desk.secrets / "KEY", "new")
    assert await desk.found(lambda: desk.agent().env["KEY"] == "new") <= 1


async def test_flood(desk: Desk, autojump_clock: MockClock) -> None:
    """Who floods a directory beside a followed file keeps back no edit, and the card is not said to change."""
    others = desk.home / "one", desk.home / "other"
    for other in others:
        other.touch()

    async def flood_on() -> None:
        for _ in range(20):
            flood(*others)
            await trio.sleep(0.2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood_on)
        await trio.sleep(0.5)
        rename_over(desk.card, CARD.format("two"))
        assert await desk.found(lambda: list(desk.now.wanted) == ["two"]) <= 1.5
        nursery.cancel_scope.cancel()
    assert {inputs.card_error for _, inputs in desk.looks} == {None}


def flood(one: Path, other: Path) -> None:
    for number in range(QUEUE + 10):
        os.utime(one if number % 2 else other)


@pytest.mark.parametrize("what", ["instances", "watches"])
async def test_without_inotify(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """While the kernel watches no more, that is a warning, and the tick finds changes; it is tried again later."""

    class Exhausted(INotify):  # type: ignore[misc]
        def __init__(self, *, nonblocking: bool) -> None:
            if exhausted and what == "instances":
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            super().__init__(nonblocking=nonblocking)

        def add_watch(self, path: str, mask: int) -> int:
            if exhausted:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            descriptor: int = super().add_watch(path, mask)
            return descriptor

    exhausted = True
    monkeypatch.setattr(agentd.inputs.watch, "INotify", Exhausted)
    card = '[agent]\nharness = "{}"\n'
    (tmp_path / "jcard.toml").write_text(card.format("custom"))
    async with looking(tmp_path) as desk:
        (tmp_path / "jcard.toml").write_text(card.format("opencode"))
        assert 1 < await desk.found(lambda: desk.agent().agent.harness == "opencode") <= TICK + 0.2
        (warning,) = desk.now.warnings
        assert f"raise fs.inotify.max_user_{what}" in warning
        exhausted = False
        await trio.sleep(2 * TICK)
        assert desk.now.warnings == ()
        (tmp_path / "jcard.toml").write_text(card.format("custom"))
        assert await desk.found(lambda: desk.agent().agent.harness == "custom") <= 0.5


async def test_nothing_stays_open(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The end of the watch gives back its descriptor, and the watches of directories that nobody follows go at once."""
    before = os.listdir("/proc/self/fd")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "jcard.toml").write_text('[agent]\nharness = "custom"\nprompt_file = "prompts/p"\n')
    async with looking(tmp_path) as desk:
        assert str(tmp_path / "prompts") in desk.watch._watched
        (tmp_path / "jcard.toml").write_text('[agent]\nharness = "custom"\n')
        await desk.found(lambda: str(tmp_path / "prompts") not in desk.watch._watched)
        assert desk.watch._kernel is not None
        assert kernel_watches(desk.watch._kernel) == len(desk.watch._watched)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("path", "places", "end"),
    [
        ("/", [], ""),
        ("/file", ["/file"], "/file"),
        ("/dir/file", ["/dir/file"], "/dir/file"),
        ("/dir/../dir/./file", ["/dir/file"], "/dir/file"),
        ("/dir/none", ["/dir/none"], None),
        ("/none/of/these", ["/none"], None),
        ("/file/none", ["/file/none"], None),
        ("/link", ["/link", "/dir/file"], "/dir/file"),
        ("/up/file", ["/up", "/dir/file"], "/dir/file"),
        ("/dir/back/file", ["/dir/back", "/file"], "/file"),
        ("/broken", ["/broken", "/none"], None),
        ("/loop", ["/loop"] * 41, None),
    ],
)
def test_trail(tmp_path: Path, path: str, places: list[str], end: str | None) -> None:
    """What decides what is at a path: each symlink on the way, its last entry, and the first that is missing."""
    top = tmp_path.resolve()
    (top / "dir").mkdir()
    (top / "file").touch()
    (top / "dir" / "file").touch()
    (top / "link").symlink_to(top / "dir" / "file")
    (top / "up").symlink_to("dir/../dir")
    (top / "dir" / "back").symlink_to("..")
    (top / "broken").symlink_to("none")
    (top / "loop").symlink_to("loop")
    found = trail(f"{top}{path}")
    inside = [os.path.join(*place) for place in found.places if place[0].startswith(str(top))]
    assert inside == [f"{top}{place}" for place in places]
    assert found.end == (None if end is None else f"{top}{end}")
