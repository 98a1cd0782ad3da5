"""agentctl's text: what is shown of the API's answers, where it is cut, and that no terminal obeys it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.ctl.text import (
    WIDTH,
    cells,
    details,
    encodable,
    encoded,
    notes,
    shorten,
    shorten_middle,
    table,
    valid_card,
)
from agentd.wording import escape

NOW = 1_800_000_000.0
"""2027-01-15T08:00:00Z."""


def lines(text: str) -> list[str]:
    return text.removeprefix("\n").removesuffix("\n").split("\n")


def agent(name: str, state: str = "running", since: str = "2027-01-15T07:59:55.000Z", **more: Any) -> dict[str, Any]:
    return {"name": name, "state": state, "since": since, "restarts": 0, "reason": None, "message": ""} | more


def test_table() -> None:
    """Each agent has a line, in the order given, with the age of its state and as much of its message as fits."""
    agents = [
        agent("web"),
        agent(
            "b", "backoff", restarts=1234, message='Exited with code 1; restart = "always", so it starts anew in 3 s.'
        ),
        agent("Reviewer", "waiting", "2027-01-15T07:48:00Z", reason="workdir_missing"),
        agent("c", "completed", "2027-01-11T07:00:00Z"),
    ]
    assert table(agents, NOW) == lines("""
NAME      STATE      SINCE  RESTARTS  MESSAGE
web       running    5s            0
b         backoff    5s         1234  Exited with code 1; restart = "always", s…
Reviewer  waiting    12m           0  workdir_missing
c         completed  4d            0
""")


def test_table_of_long_and_wide_names() -> None:
    """A long name loses its middle, since replicas differ in their ends, and wide characters take two cells."""
    agents = [
        agent("a-very-long-name-" + "x" * 75 + "-replica-7", message="m" * 100),
        agent("日本語のエージェントの名前", message="日本語の" * 20),
        agent("e\N{COMBINING ACUTE ACCENT}té"),
    ]
    assert table(agents, NOW) == lines("""
NAME                  STATE    SINCE  RESTARTS  MESSAGE
a-very-long-n…lica-7  running  5s            0  mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm…
日本語のエー…の名前   running  5s            0  日本語の日本語の日本語の日本語…
e\N{COMBINING ACUTE ACCENT}té                   running  5s            0
""")


def test_table_gives_names_what_messages_leave() -> None:
    """Where the messages are short, the names have their place."""
    assert table([agent("n" * 40, message="short")], NOW)[1].startswith("n" * 40 + "  running")


def test_no_agents() -> None:
    """That there are no agents is said in a line."""
    assert table([], NOW) == ["agentd has no agents."]


@pytest.mark.parametrize(
    ("since", "age"),
    [
        ("2027-01-15T08:00:00.000Z", "0s"),
        ("2027-01-15T08:00:09.000Z", "0s"),
        ("2027-01-15T07:59:01.500Z", "58s"),
        ("2027-01-15T07:59:00.000Z", "1m"),
        ("2027-01-15T07:00:00.001Z", "59m"),
        ("2027-01-15T07:00:00.000Z", "1h"),
        ("2027-01-14T08:00:00.000Z", "1d"),
        ("2017-01-15T08:00:00.000Z", "3652d"),
        ("yesterday", "?"),
        (None, "?"),
        (7, "?"),
    ],
)
def test_age(since: Any, age: str) -> None:
    """An age has one unit; of a clock that is ahead it is nothing, and of what is no time it is a question mark."""
    assert table([agent("a") | {"since": since}], NOW)[1].split() == ["a", "running", age, "0"]


def test_details() -> None:
    """One agent's facts stand below each other: first what it does and why, last what this agentctl does not know."""
    one = {
        "name": "web",
        "running": False,
        "session": "web",
        "restarts": 2,
        "type": "native",
        "error": "It is broken.",
        "harness": "custom",
        "wanted": "running",
        "state": "backoff",
        "reason": "code",
        "message": 'Exited with code 1; restart = "always", so it is started again as soon as the backoff is over.',
        "since": "2027-01-15T07:59:55.000Z",
        "attempt": 3,
        "started_at": "2027-01-15T07:00:00.000Z",
        "next_restart_at": "2027-01-15T08:00:03.000Z",
        "exit": {
            "how": "code",
            "code": 1,
            "signal": None,
            "at": "2027-01-15T07:59:55.000Z",
            "duration_seconds": 12.3456,
            "wish": None,
        },
        "digest": "d" * 64,
        "clients": ["é", 1],
    }
    assert details(one, NOW) == lines(
        r"""
name             web
state            backoff
reason           code
message          Exited with code 1; restart = "always", so it is started again
                 as soon as the backoff is over.
error            It is broken.
since            2027-01-15T07:59:55.000Z (5s ago)
running          no
wanted           running
attempt          3
restarts         2
exit             exited with code 1 after 12.3s, 2027-01-15T07:59:55.000Z (5s
                 ago)
next_restart_at  2027-01-15T08:00:03.000Z (in 3s)
started_at       2027-01-15T07:00:00.000Z (1h ago)
harness          custom
type             native
session          web
digest           dddddddddddd…
clients          ["\u00e9", 1]
"""
    )


def test_details_say_nothing_twice() -> None:
    """What is null or empty is left out, and an error that is the message again."""
    one = {"name": "a", "reason": None, "message": "Broken.", "error": "Broken.", "harness": ""}
    assert details(one, NOW) == ["name     a", "message  Broken."]


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        ({"how": "code", "code": 0, "duration_seconds": 0.25}, "exited with code 0 after 0.25s"),
        (
            {"how": "signal", "code": 137, "signal": "SIGKILL", "duration_seconds": 7300.0},
            "was ended by SIGKILL after 2h",
        ),
        ({"how": "killed", "duration_seconds": 59.0}, "was killed after 59s"),
        ({"how": "never_started", "duration_seconds": 60.0}, "never started after 1m"),
        ({"how": "code", "code": 130, "wish": "timed_out"}, "exited with code 130, as agentd asked it to (timed_out)"),
        ({"how": "news"}, "news"),
        ({"how": "news", "duration_seconds": 86_400 * 9_999_999}, "news after 9999999d"),
        ({"how": "news", "duration_seconds": 86_400 * 10_000_000}, "news after more than 9999999d"),
        ({"how": "news", "duration_seconds": 10**400}, "news after more than 9999999d"),
        ({"how": "news", "duration_seconds": 1e308}, "news after more than 9999999d"),
        ({"how": "news", "duration_seconds": -(10**400)}, "news after 0s"),
    ],
)
def test_exit_in_words(ended: dict[str, Any], words: str) -> None:
    """The last exit is told in words, with how long the attempt lasted, in few digits, and whether agentd wished it."""
    at = "2027-01-15T07:59:55Z"
    shown = " ".join(" ".join(details({"exit": ended | {"at": at}}, NOW)).split())
    assert shown == f"exit {words}, {at} (5s ago)"


def test_notes_of_a_healthy_agentd() -> None:
    """Where nothing is wrong nothing is said."""
    assert notes({"state": "running", "card": "/c", "warnings": []}, agents=1) == []


def test_notes() -> None:
    """A stop, every line of the card's error and all warnings are told, each wrapped at the words."""
    health = {
        "state": "stopping",
        "card": "/etc/stereos/jcard.toml",
        "card_error": 'agents[1].restart: "sometimes" is not one of no, on-failure, always\n'
        "agents[1].env.PORT: expected a string, found the integer 8080, which is not what a variable can hold",
        "warnings": ["agents[0].promt: unknown key, ignored", "secret X is left out: " + "x" * 80],
    }
    assert notes(health, agents=2) == lines("""
agentd is stopping.

The card /etc/stereos/jcard.toml cannot be used, the last good one stays in
force:
  agents[1].restart: "sometimes" is not one of no, on-failure, always
  agents[1].env.PORT: expected a string, found the integer 8080, which is not
    what a variable can hold

warning: agents[0].promt: unknown key, ignored
warning: secret X is left out:
  xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
  xx
""")


def test_notes_without_agents() -> None:
    """Without agents there is no last good card to speak of."""
    assert notes({"card": "/c", "card_error": "the card is missing"}, agents=0) == [
        "The card /c cannot be used:",
        "  the card is missing",
    ]


@pytest.mark.parametrize("before", [10, 60, 100])
@pytest.mark.parametrize("after", [5, 100])
def test_caret_stays_below_its_character(before: int, after: int) -> None:
    """A line of the card that is too wide is cut on both sides so that the caret stands where it stood."""
    error = f"line 3, column 7: wrong\n    {'=' * before}!{'=' * after}\n    {' ' * before}^"
    _, first, line, caret = notes({"card": "/c", "card_error": error}, agents=0)
    assert first == "  line 3, column 7: wrong"
    assert caret.strip() == "^"
    assert line[caret.index("^")] == "!"
    assert max(len(line), len(caret)) <= WIDTH


@pytest.mark.parametrize(
    ("line", "caret", "shown", "below"),
    [
        ("    日本語 !x", 11, "      日本語 !x", 13),
        ("    e\u0301\u0302!x", 5, "      e\u0301\u0302!x", 7),
        ("    日本", 8, "      日本", 10),
        ("    日本", 10, "      日本  ", 12),
        ("    日本", 5, "      日本", 6),
        ("    " + "日" * 40 + "!" + "本" * 40, 84, "      …" + "日" * 26 + "!" + "本" * 9 + "…", 59),
    ],
)
def test_caret_below_wide_characters(line: str, caret: int, shown: str, below: int) -> None:
    """The caret's place is counted in the cells of a terminal, and it stays below its character."""
    error = f"line 1, column 5: wrong\n{line}\n{' ' * caret}^"
    assert notes({"card": "/c", "card_error": error}, agents=0)[2:] == [shown, " " * below + "^"]


@pytest.mark.parametrize(
    ("path", "names", "line"),
    [
        ("jcard.toml", [], "jcard.toml is valid: no agents"),
        ("jcard.toml", ["a"], "jcard.toml is valid: 1 agent (a)"),
        ("jcard.toml", ["a", "b", "c"], "jcard.toml is valid: 3 agents (a, b, c)"),
        ("c", ["n" * 100], "c is valid: 1 agent (" + "n" * 58 + "…"),
        ("/" + "p" * 100 + "/jcard.toml", ["a"], "/" + "p" * 25 + "…pp/jcard.toml is valid: 1 agent (a)"),
        ("c\x1b\n", [], "c\\x1b\\n is valid: no agents"),
    ],
)
def test_valid_card(path: str, names: list[str], line: str) -> None:
    """That a card is valid takes one line, however long the path and the names."""
    assert valid_card(path, names) == line
    assert cells(line) <= WIDTH


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本 ☃", "plain é 日本 ☃"),
        ("\x1b[31m\x07\x00\x7f\x9b", r"\x1b[31m\x07\x00\x7f\x9b"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\u202e\u2066\u200f\u2028", r"\u202e\u2066\u200f\u2028"),
        ("\udc80", r"\udc80"),
    ],
)
def test_escape(text: str, shown: str) -> None:
    """Nothing reaches a terminal that it would obey, the direction of writing included."""
    assert escape(text) == shown


@pytest.mark.parametrize(("text", "width"), [("abc", 3), ("日本", 4), ("é", 1), ("e\u0301", 1), ("\u20dd", 0), ("", 0)])
def test_cells(text: str, width: int) -> None:
    """Wide characters take two cells, and what combines none."""
    assert cells(text) == width


def test_shortening() -> None:
    """What is cut says so, and no wide character is cut in two."""
    assert [shorten("abcdef", width) for width in (6, 5)] == ["abcdef", "abcd…"]
    assert [shorten("日本語", width) for width in (6, 5, 4)] == ["日本語", "日本…", "日…"]
    assert [shorten_middle("abcdefghij", width) for width in (10, 9, 4)] == ["abcdefghij", "abcdef…ij", "ab…j"]


def test_poor_encoding() -> None:
    """What an encoding lacks is escaped before the widths are reckoned, and the mark of a cut has another sign."""
    assert encodable({"é": ["日", 1, None, "…"]}, "ascii") == {"\\xe9": ["\\u65e5", 1, None, "~"]}
    assert encodable(["é", "\ud800"], "utf-8") == ["é", "\\ud800"]
    assert encoded("ab…", "ascii") == b"ab~"
    assert encoded("ab…", "utf-8") == "ab…".encode()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=100),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=30), inner, max_size=3),
    max_leaves=5,
)
_KEYS = (
    "name state since restarts message reason error exit next_restart_at card card_error warnings how at digest"
    " duration_seconds"
)
_OBJECT = st.dictionaries(st.sampled_from(_KEYS.split()) | st.text(max_size=30), _JSON, max_size=8)
_CARET = st.tuples(st.text(max_size=120), st.integers(0, 120)).map(lambda drawn: f"{drawn[0]}\n{' ' * drawn[1]}^")


@given(st.lists(_OBJECT, max_size=4), _OBJECT, _CARET)
def test_whatever_comes(agents: list[dict[str, Any]], health: dict[str, Any], error: str) -> None:
    """Whatever the answers hold, every line is printable and fits into 80 cells."""
    shown = table(agents, NOW) + notes(health, agents=1) + notes({"card_error": error}, agents=0)
    shown += [line for one in agents for line in details(one, NOW)]
    assert all(line.isprintable() and cells(line) <= WIDTH for line in shown)
