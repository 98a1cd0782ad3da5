import time
from pathlib import Path

from tests.e2e.outside import World, lives, wait_for

FIFTY = 50
HUNDRED = 100


def test_fifty_agents_edited_ten_ways(world: World) -> None:
    """Of fifty agents exactly those are relaunched whose digest an edit changes; a mistake in the card changes none."""
    prompt_file, secret = world.top / "prompt.md", world.secrets / "TOKEN"
    prompt_file.write_text("from a file\n")
    secret.write_text("first\n")
    own = {"TOKEN": "its own, and so not the secret"}
    agents = {f"a-{number}": world.agent(f"a-{number}", prompt="one", env=own) for number in range(FIFTY - 3)}
    agents["a-1"] = world.agent("a-1", prompt="one")
    agents["filed"] = world.agent("filed", prompt_file=str(prompt_file), env=own)
    agents["rev"] = {"name": "rev", "harness": "custom", "binary": "sleep", "args": ["1000"], "replicas": 2, "env": own}
    agents["rev"]["workdir"] = str(world.work)
    world.write_card(*agents.values())
    world.start()
    names = [*(name for name in agents if name != "rev"), "rev-0", "rev-1"]
    wait_for(lambda: all(world.agents().get(name, {}).get("running") for name in names), "fifty agents", seconds=60)
    before = {name: status["pid"] for name, status in world.agents().items()}
    assert len(before) == FIFTY

    # An invalid edit among the others: nothing of all this is taken.
    edited = {name: dict(agent) for name, agent in agents.items()}
    edited["a-0"]["prompt"] = "two"
    edited["a-2"]["env"] = agents["a-2"]["env"] | {"NEW": "1"}
    del edited["a-3"]
    edited["fresh"] = world.agent("fresh", env=own)
    edited["a-4"]["restart"] = "on-failure"
    edited["a-5"]["restart"] = "sometimes"
    edited["a-5"]["env"] = agents["a-5"]["env"] | {"PORT": 8080}
    edited["rev"]["replicas"] = 3
    world.write_card(*edited.values(), more="# a comment\n")
    error = wait_for(lambda: world.get("/v1/health").json.get("card_error"), "the card's error")
    place = f"agents[{list(edited).index('a-5')}]"
    assert error.splitlines() == [
        f'{place}.env.PORT: expected a string, found the integer 8080; write "8080"',
        f'{place}.restart: "sometimes" is not one of no, on-failure, always',
    ]
    assert {name: status["pid"] for name, status in world.agents().items()} == before

    # The same without the mistakes, and a secret and a prompt file at the same moment.
    edited["a-5"] = agents["a-5"]
    world.write_card(*edited.values(), more="# a comment\n")
    secret.write_text("the second\n")
    prompt_file.write_text("changed\n")
    changed = {"a-0", "a-1", "a-2", "a-4", "filed"}
    for name in changed:
        world.wait_ready(name, 2)
    world.wait_ready("fresh")
    world.wait_status("rev-2", running=True)
    wait_for(lambda: "a-3" not in world.agents(), "the end of a-3")
    after = {name: status["pid"] for name, status in world.agents().items()}
    assert after.keys() == before.keys() - {"a-3"} | {"fresh", "rev-2"}
    assert {name for name in before if name in after and after[name] != before[name]} == changed
    assert not lives(before["a-3"])
    assert world.starts("a-0")[1].argv == ["agent", "two"]
    assert world.starts("a-1")[1].env["TOKEN"].split() == ["the", "second"]
    assert world.starts("filed")[1].argv == ["agent", "changed"]
    assert all(status["restarts"] == 0 for status in world.agents().values())

    world.write_card_text("# nobody\n[other]\n")
    wait_for(lambda: world.agents() == {}, "the end of all")
    assert not [pid for pid in after.values() if lives(pid)]


def test_hundred_agents(world: World) -> None:
    """A hundred agents come up without starving each other, none is launched twice, and all go."""
    world.write_card(
        *(
            {"name": f"a{number}", "harness": "custom", "binary": "sleep", "args": ["1000"], "workdir": "/"}
            for number in range(HUNDRED)
        )
    )
    world.start()

    def all_run() -> bool:
        agents = world.agents()
        return len(agents) == HUNDRED and all(status["running"] for status in agents.values())

    wait_for(all_run, "a hundred agents", seconds=60)
    assert {(status["attempt"], status["restarts"]) for status in world.agents().values()} == {(1, 0)}
    assert len(world.sessions()) == HUNDRED


def test_one_names_begins_another(world: World) -> None:
    """Agents whose names are prefixes or patterns of each other never touch each other."""
    names = ("a", "ab", "a*", "[ab]", "ab c")
    world.write_card(*(world.agent(name, prompt="one") for name in names))
    world.start()
    starts = {name: world.wait_ready(name) for name in names}
    world.write_card(world.agent("a", prompt="two"), *(world.agent(name, prompt="one") for name in names[1:4]))
    world.wait_ready("a", 2)
    wait_for(lambda: "ab c" not in world.agents(), "the end of one")
    world.write_card(*(world.agent(name, prompt="one") for name in names[1:3]))
    wait_for(lambda: set(world.agents()) == {"ab", "a*"}, "the end of two")
    assert [name for name in ("ab", "a*") if not lives(starts[name].pid)] == []
    assert world.sessions() == ["a*", "ab"]


def test_rewritten_in_place_every_tenth_of_a_second(world: World) -> None:
    """While the card is truncated and rewritten all the time nothing happens; what it is in the end is done at once."""
    world.write_card(world.agent("a"), world.agent("b"))
    world.start()
    starts = [world.wait_ready(name) for name in ("a", "b")]
    world.write_card(world.agent("a"), world.agent("c"))
    text = world.card.read_text()
    world.write_card(world.agent("a"), world.agent("b"))
    for _ in range(30):
        _rewrite_slowly(world.card, text)
        assert {"a", "b"} == set(world.agents())
    written = time.monotonic()
    world.wait_ready("c")
    wait_for(lambda: "b" not in world.agents(), "the end of b")
    assert time.monotonic() - written < 5, "the tick alone would take as long"
    assert [lives(start.pid) for start in starts] == [True, False]
    assert len(world.starts("a")) == 1


def _rewrite_slowly(path: Path, text: str) -> None:
    with path.open("w") as file:
        for part in range(4):
            time.sleep(0.025)
            file.write(text[len(text) * part // 4 : len(text) * (part + 1) // 4])
            file.flush()


def test_card_in_a_store(world: World) -> None:
    """A card that is a symlink into a store is found when the link on the way to it is switched."""
    for number in (1, 2):
        folder = world.top / "store" / str(number)
        folder.mkdir(parents=True)
        world.write_card(world.agent("a", prompt=str(number)))
        world.card.rename(folder / "jcard.toml")
    static = world.top / "static"
    static.symlink_to(world.top / "store" / "1")
    world.card.symlink_to(static / "jcard.toml")
    world.start()
    assert world.wait_ready("a").argv == ["agent", "1"]
    fresh = world.top / "fresh"
    fresh.symlink_to(world.top / "store" / "2")
    switched = time.monotonic()
    fresh.rename(static)
    assert world.wait_ready("a", 2).argv == ["agent", "2"]
    assert time.monotonic() - switched < 5, "the tick alone would take as long"
