"""The card's reference, docs/card.md, and README's table of keys: neither can say anything else than the code."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from agentd import resolve
from agentd.card import syntax as card_syntax
from agentd.card.card import Agent, Card, parse_card
from agentd.card.duration import parse_duration
from agentd.card.fields import FIELDS, MOST_AGENTS
from agentd.card.harness import HARNESSES
from agentd.errors import CardError
from agentd.inputs import parsing, prompts

_ROOT = Path(__file__).parents[2]
_REFERENCE = (_ROOT / "docs/card.md").read_text()
_README = (_ROOT / "README.md").read_text()

_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")
_AGENTS = re.compile(r"^# The agents: (.*)$", re.MULTILINE)
_IN_WORDS = {"name": "the harness", "harness": "required", "session": "the name", "binary": "the harness's"}
"""Defaults that are no value; the workdir's is in words too, and depends on who agentd runs as."""
_NONE = "\u2013"
_TYPES = {"string": "x", "integer": 1, "duration": "1s", "table of strings": {"A": "x"}, "array of strings": ["x"]}
_SAMPLES = {"harness": "custom", "type": "native", "restart": "no"}
"""For a key that does not take every string, one that it takes."""


def _tables(text: str) -> Iterator[list[list[str]]]:
    """Each table of a document, heading row included, as cells."""
    outside = _BLOCK.sub("\n", text)
    for table in re.findall(r"(?:^\|.*\|\n)+", outside, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
        del rows[1]
        yield rows


def _table(text: str, heading: str) -> list[list[str]]:
    """The rows of the one table whose first heading this is."""
    (table,) = (rows[1:] for rows in _tables(text) if rows[0][0] == heading)
    return table


def _keys(text: str) -> dict[str, list[str]]:
    """The documented keys: each with its type, its default and what it means."""
    rows = next(rows for rows in _tables(text) if rows[0][:3] == ["key", "type", "default"])
    keys = [_CODE.findall(row[0])[0] for row in rows[1:]]
    assert len(keys) == len(set(keys)), "a key has two rows"
    return {key: row[1:] for key, row in zip(keys, rows[1:], strict=True)}


def _value(toml: str) -> Any:
    return tomllib.loads(f"value = {toml}")["value"]


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return repr(value)


def _card(key: str, toml: str) -> Card:
    """A card of one agent that has this key, and besides only what it needs for there to be no warning."""
    lines = {"harness": '"custom"', "type": '"sandboxed"'} | {key: toml}
    return parse_card("\n".join(["[agent]", *(f"{name} = {value}" for name, value in lines.items())]).encode())


def _is_valid(key: str, toml: str) -> bool:
    try:
        _card(key, toml)
    except CardError:
        return False
    return True


def _said(card: str) -> str:
    """What is said about a card: its errors, or else its warnings."""
    try:
        return "\n".join(parse_card(card.encode()).warnings)
    except CardError as error:
        return str(error)


def _options(key: str) -> list[str]:
    """What the code accepts for a choice: what it says when it is asked for something else."""
    with pytest.raises(CardError, match=" is not one of ") as caught:
        _card(key, '"?"')
    return str(caught.value).rpartition(" is not one of ")[2].split(", ")


_BLOCKS = [(found[1], found[2]) for found in _BLOCK.finditer(_REFERENCE)]
_VALID = [block for fence, block in _BLOCKS if fence == "toml"]
_INVALID = [
    (block, after)
    for (fence, block), (_, after) in zip(_BLOCKS, [*_BLOCKS[1:], ("", "")], strict=True)
    if fence == "toml invalid"
]


def test_keys() -> None:
    """The reference's table has every key of the code once, in the code's order, and no other."""
    assert list(_keys(_REFERENCE)) == list(FIELDS)


def test_keys_of_readme() -> None:
    """README's table invents no key, and gives each the type that the reference gives it."""
    readme, reference = _keys(_README), _keys(_REFERENCE)
    assert readme
    assert readme.keys() <= reference.keys()
    assert {key: row[0] for key, row in readme.items()} == {key: reference[key][0] for key in readme}


@pytest.mark.parametrize(
    ("key", "documented"),
    [
        pytest.param(key, row[1], id=f"{document}-{key}")
        for document, text in {"reference": _REFERENCE, "readme": _README}.items()
        for key, row in _keys(text).items()
    ],
)
def test_defaults(key: str, documented: str) -> None:
    """A documented default is the code's, and written into a card it says the same as leaving the key out."""
    default = None if key == "replicas" else attrs.fields_dict(Agent)[key].default
    if key in _IN_WORDS:
        assert documented == _IN_WORDS[key]
        assert default is (None if key == "binary" else attrs.NOTHING)
    elif key == "workdir" or documented == _NONE:
        assert default is None
    else:
        (toml,) = _CODE.findall(documented)
        # The code's own default is whatever an agent has that was left to it.
        lines = '[agent]\nharness = "custom"\n' + ("" if key == "type" else 'type = "sandboxed"\n')
        assert _card(key, toml) == parse_card(lines.encode())


@pytest.mark.parametrize("key", FIELDS)
def test_types(key: str) -> None:
    """A key takes a value of its documented type, and of no other."""
    documented = _keys(_REFERENCE)[key][0]
    assert _card(key, _toml(_SAMPLES.get(key, _TYPES[documented]))).warnings == ()
    for other, value in _TYPES.items():
        if other != documented and (documented, other) != ("string", "duration"):
            with pytest.raises(CardError):
                _card(key, _toml(value))


def test_empty_strings() -> None:
    """The keys that may be empty, or may hold empty strings, are those that it says."""
    ((alone, inside),) = re.findall(r"Only\s(`[^.;]*)\sand\sstrings\sinside\s(`[^.;]*)\smay\sbe\s`\"\"`", _REFERENCE)
    assert set(_CODE.findall(alone)) == {key for key in FIELDS if _is_valid(key, '""')}
    holders = {key for key in FIELDS if _is_valid(key, '[""]') or _is_valid(key, '{A = ""}')}
    assert set(_CODE.findall(inside)) == holders


@pytest.mark.parametrize("key", ["harness", "restart", "type"])
def test_choices(key: str) -> None:
    """The values listed for a choice are those that the code accepts, in its order."""
    listed = [_value(row[0].strip("`")) for row in _table(_REFERENCE, f"`{key}`")]
    assert listed == _options(key)
    assert [getattr(_card(key, f'"{value}"').agents[0], key) for value in listed] == listed


@pytest.mark.parametrize("text", [_REFERENCE, _README], ids=["reference", "readme"])
def test_harnesses(text: str) -> None:
    """The command lines listed for the harnesses are those that they build."""
    listed = {row[0].strip('`"'): tuple(cell.strip("`") for cell in row[1:]) for row in _table(text, "`harness`")}
    assert listed == {
        name: (" ".join(harness.build_command("PROMPT")), " ".join(harness.build_command("")))
        for name, harness in HARNESSES.items()
    }


def test_sections() -> None:
    """Every key is in the heading of one section, and its row in the table links there."""
    sections = [heading for heading in _HEADING.findall(_BLOCK.sub("", _REFERENCE)) if heading.startswith("`")]
    assert sorted(key for heading in sections for key in _CODE.findall(heading)) == sorted(FIELDS)
    anchors = {key: "-".join(_CODE.findall(heading)).lower() for heading in sections for key in _CODE.findall(heading)}
    assert dict(re.findall(r"^\| \[`(\w+)`\]\(#([^)]+)\)", _REFERENCE, re.MULTILINE)) == anchors


@pytest.mark.parametrize("example", _VALID)
def test_valid_examples(example: str) -> None:
    """Every example is a card with agents, without errors or warnings, and gives the agents that it says it gives."""
    card = parse_card(example.encode())
    assert card.agents
    assert card.warnings == ()
    for names in _AGENTS.findall(example):
        assert names.split(", ") == [agent.name for agent in card.agents]


@pytest.mark.parametrize(("example", "said"), _INVALID)
def test_invalid_examples(example: str, said: str) -> None:
    """What is said about an example that is marked as invalid stands below it, word for word."""
    assert said == _said(example) + "\n"


def test_fences() -> None:
    """Every block is a valid example, an invalid one, or what is said about the invalid one above it."""
    fences = [fence for fence, _ in _BLOCKS]
    assert set(fences) == {"toml", "toml invalid", "text"}
    assert [index - 1 for index, fence in enumerate(fences) if fence == "text"] == [
        index for index, fence in enumerate(fences) if fence == "toml invalid"
    ]


def test_every_key_has_an_example() -> None:
    """Every key stands in at least one valid example."""
    shown: set[str] = set()
    for example in _VALID:
        document = tomllib.loads(example)
        for agent in document.get("agents", [document.get("agent")]):
            shown |= agent.keys()
    assert shown == set(FIELDS)


def test_durations() -> None:
    """The durations listed are as long as it says."""
    rows = _table(_REFERENCE, "duration")
    assert rows
    for written, seconds in rows:
        assert parse_duration(_value(written.strip("`"))) == float(seconds) * 1e9


def test_limits() -> None:
    """The limits listed are the code's, in this order."""
    listed = [int(re.sub(r"\D", "", row[1])) for row in _table(_REFERENCE, "what")]
    assert listed == [
        card_syntax.LARGEST_CARD,
        parsing._LONGEST,
        MOST_AGENTS,
        prompts._MAX_PROMPT,
        resolve._MAX_STRING,
        resolve._MAX_TOTAL,
    ]
    assert f"1 to {MOST_AGENTS}" in _keys(_REFERENCE)["replicas"][2]
