"""Random cards that are nearly right, and damaged real ones: the whole way from bytes to the launch script."""

import subprocess
from pathlib import Path

from hypothesis import given, seed, settings
from hypothesis import strategies as st

from agentd.attempts.script import Script
from agentd.card.card import Agent, parse_card
from agentd.card.fields import FIELDS
from agentd.errors import CardError
from agentd.resolve import Blocked, EffectiveAgent, Unsupported, resolve

_EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.toml"))
_SECRET = "sesame"  # noqa: S105 - it stands for one
"""Whatever the cards below have in a prompt, a variable or an argument begins with it: no error may show it."""

_ODD_TEXT = st.sampled_from(
    [
        *("", " ", ".", "..", "/", "~", "~/x", "-x", "a:b", "a.b", "_agentd", "$x", "é", "É", "\u0130", "ﬀ", "\u202e"),
        *(
            "a\\u0000b",
            "\\ud800",
            "\\U0010ffff",
            "\\u001b[2J",
            "\\r\\n",
            "\\\\",
            "\\q",
            "%s",
            "{}",
            "'",
            "$(id)",
            "`id`",
        ),
        *("1s", "1h30m", "-1s", "1d", "9" * 30 + "h", "0", ".5s", "x" * 101, "x" * 3000, "☃", "a\tb", "A", "a"),
        *("custom", "claude-code", "no", "always", "native", "sandboxed"),
    ]
)
_PLAIN = st.sampled_from(
    [
        *("0", "1", "-1", "2", "1000", "1001", "9" * 19, "9" * 400, "0x" + "f" * 300, "1_0", "0.5", "nan", "-inf"),
        *("1e999", "true", "false", "1979-05-27", "07:32:00", "1979-05-27T07:32:00.5Z", "1979-02-30", "07", "+", "x"),
        *("", "=", "[]"),
    ]
)
_STRINGS = st.one_of(
    _ODD_TEXT.map('"{}"'.format),
    _ODD_TEXT.map("'{}'".format),
    _ODD_TEXT.map('"""{}"""'.format),
    st.text(max_size=6).map('"{}"'.format),
)
_VALUES = st.recursive(
    _PLAIN | _STRINGS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(_ODD_TEXT, inner), max_size=3).map(
            lambda items: "{" + ", ".join(f'"{key}" = {value}' for key, value in items) + "}"
        )
    ),
    max_leaves=4,
)
_SECRETS = _ODD_TEXT.filter(lambda text: text not in {"a\\u0000b", "\\ud800", "\\q"}).map(f'"{_SECRET}{{}}"'.format)
_RIGHT = {
    "name": st.sampled_from(['"a"', '"A"', '"b.c"', '"b:c"', '"é ☃"']),
    "harness": st.sampled_from(['"claude-code"', '"opencode"', '"gemini-cli"', '"custom"']),
    "replicas": st.sampled_from(["1", "2", "3"]),
    "session": st.sampled_from(['"s"', '"S"', '"b_c"']),
    "type": st.sampled_from(['"native"', '"sandboxed"']),
    "prompt": _SECRETS,
    "prompt_file": st.sampled_from(['"~/p"', '"p"', '""']),
    "workdir": st.sampled_from(['"~"', '"/"', '"it\'s"', '"a\\nb"']),
    "restart": st.sampled_from(['"no"', '"on-failure"', '"always"']),
    "max_restarts": st.sampled_from(["0", "5", "9223372036854775807"]),
    "restart_delay_max": st.sampled_from(['"1s"', '"1m"']),
    "timeout": st.sampled_from(['"2h"', '"1ns"']),
    "grace_period": st.sampled_from(['"30s"', '"1µs"']),
    "env": st.lists(
        st.tuples(
            st.sampled_from(["A", "B", "PATH", "IFS", "LD_PRELOAD"] * 2 + ["é", "TMUX_PANE", "AGENTD_RUN"]), _SECRETS
        )
    ).map(lambda items: "{" + ", ".join(f'"{key}" = {value}' for key, value in dict(items).items()) + "}"),
    "binary": st.sampled_from(['"x"', '"./x y"', '"~/x"', '"$(x)"']),
    "args": st.lists(_SECRETS, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
    "memory": st.sampled_from(['"1GiB"']),
    "pid_limit": st.sampled_from(["1"]),
    "extra_packages": st.sampled_from(['["x"]']),
}
_SECRET_KEYS = ("prompt", "env", "args")
_KEYS = st.sampled_from(
    [*FIELDS, *(key.upper() for key in FIELDS), "nmae", "", "a b", "é", "env.A", "env.1", "a\\u0000"]
)
_LINES = st.one_of(
    *(st.builds("{} = {}".format, st.just(key), right) for key, right in _RIGHT.items()),
    st.builds('"{}" = {}'.format, _KEYS.filter(lambda key: key not in _SECRET_KEYS), _VALUES),
    st.builds("env.{} = {}".format, st.sampled_from(["A", "B.C", '"TMUX"', "-"]), _SECRETS),
    st.sampled_from(["# é", "", "\ufeff", "\x07", "\x00", "\x85", "[agents.env]", "[agent.env]", '"""', "]"]),
)
_HEADERS = st.sampled_from(
    ["[[agents]]"] * 8
    + ["[agent]", "[agents]", "[Agents]", "[agents.a]", "[[agents.a]]", "[other]", "[ [agents] ]", "["]
)
_ENTRIES = st.builds(
    lambda header, harness, lines, end: end.join([header, harness, *lines]) + end,
    _HEADERS,
    st.sampled_from(['harness = "custom"'] * 3 + [""]),
    st.lists(_LINES, max_size=6),
    st.sampled_from(["\n", "\n", "\r\n", "\r"]),
)


_RIGHT_ENTRIES = st.builds(
    lambda keys, more: "[[agents]]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items()) + more,
    st.fixed_dictionaries(
        {"harness": _RIGHT["harness"]}, optional={key: right for key, right in _RIGHT.items() if key != "harness"}
    ),
    st.sampled_from(["", "", "x = 1\n", "é"]),
)


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    """A real card with a few bytes replaced, cut out or doubled."""
    data = bytearray(draw(st.sampled_from(_EXAMPLES)).read_bytes())
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 12))
        piece = bytes(data[at : at + length])
        other = st.binary(max_size=4) | st.sampled_from([b"\0", b"\xff", b"\r", b'"', b"[", b"=", b"\xef\xbb\xbf"])
        data[at : at + length] = draw(st.sampled_from([b"", piece * 2]) | other)
    return bytes(data)


def _scripts(data: bytes) -> list[str]:
    """Go the whole way, hold each station to what it promises, and return the launch scripts."""
    try:
        card = parse_card(data)
    except CardError as error:
        _check_error(error)
        return []
    assert all(warning.isprintable() and len(warning) < 600 and _SECRET not in warning for warning in card.warnings)
    assert len({agent.name.casefold() for agent in card.agents}) == len(card.agents) <= 1000
    return [script for agent in card.agents if (script := _script(agent)) is not None]


def _check_error(error: CardError) -> None:
    assert error.problems
    for problem in error.problems:
        assert problem.path.isprintable()
        assert 0 < len(problem.path) < 400
        lines = problem.text.split("\n")
        # A syntax error shows its line, with a caret below.
        assert len(lines) in ({1, 3} if problem.path.startswith("line ") else {1})
        assert all(line.isprintable() and 0 < len(line) < 600 for line in lines)
        assert _SECRET not in str(problem)
    str(error).encode()


def _script(agent: Agent) -> str | None:
    effective = resolve(
        agent, prompt=agent.prompt, secrets={"S": "it's"}, home="/home/a", card_dir="/etc", default_workdir="~"
    )
    if not isinstance(effective, EffectiveAgent):
        assert isinstance(effective, Blocked | Unsupported)
        assert effective.message
        assert _SECRET not in effective.message
        return None
    assert _SECRET not in repr(effective)
    return Script(
        lifeline="/run/agentd/1/lifeline",
        tag="a:b:1",
        workdir=effective.workdir,
        argv=effective.argv,
        env=effective.env,
        tmux="/usr/bin/tmux",
        tmux_socket="/run/agentd/tmux.sock",
        session="$1",
        pane="%1",
    ).text()


_found: list[str] = []


@seed(5)
@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(_ENTRIES | _RIGHT_ENTRIES, max_size=3).map("".join))
def test_nearly_right_cards(card: str) -> None:
    """A card with right, wrong and odd values is taken to its launch scripts, or refused with place and advice."""
    _found.extend(_scripts(card.encode(errors="surrogatepass")))


@seed(5)
@settings(max_examples=100, deadline=None, database=None)
@given(_damaged())
def test_damaged_cards(card: bytes) -> None:
    """A real card with damaged bytes is taken to its launch scripts, or refused with place and advice."""
    _scripts(card)


def test_scripts_of_random_cards_are_sh() -> None:
    """What became of random cards is a script for sh, whatever is in it."""
    if not _found:
        test_nearly_right_cards()
    scripts = sorted(set(_found), key=len)
    assert len(scripts) > 20
    step = max(1, len(scripts) // 40)
    for script in scripts[::step]:
        checked = subprocess.run(["sh", "-n"], input=script.encode(), capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, b""), script
