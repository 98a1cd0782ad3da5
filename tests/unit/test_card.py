"""The card: what it may say, what becomes of it, and what is said about each mistake in it."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.card.card import Agent, Card, parse_card
from agentd.card.fields import FIELDS
from agentd.errors import CardError

MASTERBLASTER = b"""\
mixtape = "opencode-mixtape:latest"
name = "my-box"

[resources]
cpus = 4
memory = "8GiB"

[network]
mode = "nat"
forwards = [{ host = 8080, guest = 80 }]

[[shared]]
host = "./"
guest = "/home/agent/workspace"

[secrets]
ANTHROPIC_API_KEY = "${ANTHROPIC_API_KEY}"

[agent]
harness = "claude-code"
prompt = "fix the tests"

[agent.env]
CI = "1"
"""

BASE = 'harness = "claude-code"\n'


def agent_of(lines: str, *, base: str = BASE) -> Agent:
    (agent,) = parse_card(f"[agent]\n{base}{lines}".encode()).agents
    return agent


def problems_of(card: str | bytes) -> list[str]:
    with pytest.raises(CardError) as caught:
        parse_card(card if isinstance(card, bytes) else card.encode())
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return [str(problem) for problem in caught.value.problems]


def problem_of(lines: str) -> str:
    (problem,) = problems_of(f"[agent]\n{BASE}{lines}")
    return problem


def many(*entries: str) -> str:
    return "".join(f"[[agents]]\n{entry}\n" for entry in entries)


def names_of(*entries: str) -> list[tuple[str, str]]:
    return [(agent.name, agent.session) for agent in parse_card(many(*entries).encode()).agents]


# What is valid


def test_whole_masterblaster_card_loads() -> None:
    """Everything outside the agents is ignored, without a warning."""
    agent = Agent(
        name="claude-code", harness="claude-code", session="claude-code", prompt="fix the tests", env={"CI": "1"}
    )
    assert parse_card(MASTERBLASTER) == Card(agents=(agent,), warnings=())


def test_defaults() -> None:
    """An agent needs its harness only."""
    agent = agent_of("")
    assert agent == Agent(name="claude-code", harness="claude-code", session="claude-code")
    assert (agent.type, agent.prompt, agent.prompt_file, agent.workdir) == ("native", "", None, None)
    assert (agent.restart, agent.max_restarts, agent.restart_delay_max) == ("no", 0, 3.0)
    assert (agent.timeout, agent.grace_period, dict(agent.env)) == (None, 30.0, {})
    assert (agent.binary, agent.args) == (None, ())
    assert (agent.memory, agent.pid_limit, agent.extra_packages) == (None, None, ())


def test_every_key_arrives() -> None:
    """Each key of the card reaches its field of the agent, durations as seconds."""
    card = parse_card(
        b"""
        [agent]
        name = "Fixer"
        harness = "opencode"
        replicas = 1
        session = "fix.er:1"
        type = "sandboxed"
        prompt = "do it"
        prompt_file = "prompt.md"
        workdir = "~/src"
        restart = "on-failure"
        max_restarts = 5
        restart_delay_max = "1m"
        timeout = "1h30m"
        grace_period = "1500ms"
        binary = "/opt/agent"
        args = ["--model", "", "x y"]
        memory = "2GiB"
        pid_limit = 512
        extra_packages = ["ripgrep"]
        [agent.env]
        A = ""
        _b2 = "two\\nlines"
        """
    )
    assert card.warnings == ()
    assert card.agents == (
        Agent(
            name="Fixer",
            harness="opencode",
            session="fix_er_1",
            type="sandboxed",
            prompt="do it",
            prompt_file="prompt.md",
            workdir="~/src",
            restart="on-failure",
            max_restarts=5,
            restart_delay_max=60.0,
            timeout=5400.0,
            grace_period=1.5,
            env={"A": "", "_b2": "two\nlines"},
            binary="/opt/agent",
            args=("--model", "", "x y"),
            memory="2GiB",
            pid_limit=512,
            extra_packages=("ripgrep",),
        ),
    )


def test_fields_of_agent_are_the_keys_of_the_card() -> None:
    """No key is checked and then lost, and no field of an agent is out of the card's reach."""
    assert {field.name for field in Agent.__attrs_attrs__} == set(FIELDS) - {"replicas"}


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b" \t\r\n", b"# nothing\n", b"\xef\xbb\xbf", b'mixtape = "x"\n', b"agents = []\n", b"[[shared]]\n"],
)
def test_card_without_agents(data: bytes) -> None:
    """TOML without agents wants none."""
    assert parse_card(data) == Card(agents=(), warnings=())


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + MASTERBLASTER,
        MASTERBLASTER.replace(b"\n", b"\r\n"),
        MASTERBLASTER.replace(b"[agent]\n", b"[[agents]]\n").replace(b"[agent.env]", b"[agents.env]"),
        b'agent.prompt = "fix the tests"\nagent.harness = "claude-code"\nagent.env.CI = "1"\n',
        b'agents = [{ harness = "claude-code", prompt = "fix the tests", env = { CI = "1" } }]',
        b'[agent.env]\nCI = "1"\n[other]\n[agent]\nharness = "claude-code"\nprompt = "fix the tests"\n',
    ],
    ids=["bom", "crlf", "agents", "dotted", "inline", "out of order"],
)
def test_spellings_of_one_card(data: bytes) -> None:
    """A byte order mark, CRLF and TOML's ways to write the same tables make no difference."""
    assert parse_card(data) == parse_card(MASTERBLASTER)


@pytest.mark.parametrize("key", ["prompt_file", "workdir", "memory"])
def test_empty_string_is_no_value(key: str) -> None:
    """An empty path or size is the same as none."""
    assert agent_of(f'{key} = ""') == agent_of("")


def test_agent_cannot_be_changed_and_keeps_secrets_out_of_its_repr() -> None:
    """An agent is a value, and neither prompt nor environment is shown with it."""
    agent = agent_of('prompt = "s3cret"\nenv.A = "s3cret"')
    assert "s3cret" not in repr(agent)
    with pytest.raises(TypeError):
        agent.env["A"] = "x"  # type: ignore[index]


# Names


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        ((BASE,), [("claude-code", "claude-code")]),
        ((BASE, BASE), [("claude-code-0", "claude-code-0"), ("claude-code-1", "claude-code-1")]),
        (
            (BASE, 'harness = "opencode"', BASE),
            [("claude-code-0", "claude-code-0"), ("opencode", "opencode"), ("claude-code-1", "claude-code-1")],
        ),
        ((BASE, BASE + 'name = "rev"'), [("claude-code", "claude-code"), ("rev", "rev")]),
        ((BASE + 'name = "rev"\nreplicas = 2',), [("rev-0", "rev-0"), ("rev-1", "rev-1")]),
        ((BASE + 'name = "rev"\nreplicas = 1',), [("rev", "rev")]),
        ((BASE + "replicas = 2",), [("claude-code-0", "claude-code-0"), ("claude-code-1", "claude-code-1")]),
        (
            (BASE + "replicas = 2", BASE + 'session = "s"'),
            [("claude-code-0", "claude-code-0"), ("claude-code-1", "claude-code-1"), ("claude-code-2", "s")],
        ),
        ((BASE + 'name = "rev"\nsession = "s"\nreplicas = 2',), [("rev-0", "s-0"), ("rev-1", "s-1")]),
        ((BASE + 'name = "v1.2:x"',), [("v1.2:x", "v1_2_x")]),
        ((BASE + 'name = "v1.2"\nreplicas = 2',), [("v1.2-0", "v1_2-0"), ("v1.2-1", "v1_2-1")]),
        ((BASE + 'name = "$x"\nsession = "x"',), [("$x", "x")]),
        ((BASE + 'name = "été ☃"',), [("été ☃", "été ☃")]),
        ((BASE + f'name = "{"n" * 100}"',), [("n" * 100, "n" * 100)]),
        ((BASE + 'name = "a"', BASE + 'name = "ab"'), [("a", "a"), ("ab", "ab")]),
    ],
)
def test_names_and_sessions(entries: tuple[str, ...], names: list[tuple[str, str]]) -> None:
    """Unnamed agents are called after their harness, several are numbered, and the session follows the name."""
    assert names_of(*entries) == names


@pytest.mark.parametrize(
    ("entries", "problems"),
    [
        (('name = "rev"', 'name = "REV"'), ['agents[1].name: "REV" is already the name of agents[0] (case aside)']),
        (
            ('name = "rev"', 'name = "rev"', 'name = "rev"'),
            [
                'agents[1].name: "rev" is already the name of agents[0]',
                'agents[2].name: "rev" is already the name of agents[0]',
            ],
        ),
        (
            ('name = "rev-1"', 'name = "rev"\nreplicas = 3'),
            ['agents[1].name: "rev-1" is already the name of agents[0]'],
        ),
        (
            ('name = "rev"\nreplicas = 3', 'name = "rev"\nreplicas = 2'),
            ['agents[1].name: "rev-0" is already the name of agents[0]'],
        ),
        (('name = "claude-code"', ""), ['agents[1].name: "claude-code" is already the name of agents[0]']),
        (
            ('name = "a.b"', 'name = "a:b"'),
            ['agents[1].session: "a_b" is already the session of agents[0] (. and : become _); choose another session'],
        ),
        (
            ('name = "a"', 'name = "b"\nsession = "a"'),
            ['agents[1].session: "a" is already the session of agents[0]'],
        ),
        (
            ('name = "a"\nsession = "s"', 'name = "A"\nsession = "s"'),
            ['agents[1].name: "A" is already', 'agents[1].session: "s" is already'],
        ),
        (('name = "_agentd"',), ['agents[0].name: "_agentd" cannot name its session: agentd itself uses that session']),
    ],
)
def test_names_and_sessions_are_unique(entries: tuple[str, ...], problems: list[str]) -> None:
    """Two agents share neither a name, upper and lower case being the same, nor a session as tmux spells it."""
    found = problems_of(many(*(BASE + entry for entry in entries)))
    assert len(found) == len(problems)
    for one, start in zip(found, problems, strict=True):
        assert one.startswith(start)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "the string is empty"),
        ("a/b", '"a/b" cannot be part of a path'),
        (".", '"." cannot be part of a path'),
        ("..", '".." cannot be part of a path'),
        (" a", '" a" begins or ends with a space'),
        ("a ", '"a " begins or ends with a space'),
        ("a\\tb", '"a\\tb" has a character that cannot be printed'),
        ("a\\u001bb", '"a\\x1bb" has a character that cannot be printed'),
        ("a\\u00a0", '"a\\xa0" has a character that cannot be printed'),
        ("a\\u202eb", '"a\\u202eb" has a character that cannot be printed'),
        ("a\\u0000", "a NUL character"),
        ("n" * 101, "101 characters are more than the 100"),
    ],
)
@pytest.mark.parametrize("key", ["name", "session"])
def test_names_that_cannot_be(key: str, name: str, fault: str) -> None:
    """Names and sessions are short, printable, without slashes and spaces at the ends."""
    assert problem_of(f'{key} = "{name}"').startswith(f"agent.{key}: {fault}")


@pytest.mark.parametrize(
    "session",
    ["_agentd", "$x", "=x", "@1", "%7", "{last}", "-x", "+1", "a#S", "#(id)", "a\\\\b", "a$HOME", "a$", "a${b}", "a$1"],
)
def test_sessions_that_tmux_would_misread(session: str) -> None:
    """A session is refused whose name tmux takes for a target or rewrites, given or come from the name."""
    assert problem_of(f'session = "{session}"').startswith("agent.session: ")
    assert problem_of(f'name = "{session}"').startswith("agent.name: ")
    assert agent_of(f'name = "{session}"\nsession = "fine"').session == "fine"


def test_dollar_in_a_session() -> None:
    """What is wrong with a $ in the name of a session is said, and how a name with a $ can stay."""
    fault = "tmux changes a #, a $ or a \\ in the name of a session"
    assert problem_of('session = "a$b"') == f'agent.session: "a$b" cannot be used: {fault}; choose another one'
    assert problem_of('name = "a$b"') == (
        f'agent.name: "a$b" cannot name its session: {fault}; choose another name, or give the agent a session'
    )
    assert agent_of('name = "a$b"\nsession = "x"').name == "a$b"


def test_refused_session_says_nothing_about_the_name() -> None:
    """A mistake in the session is one problem."""
    assert problem_of('name = "$x"\nsession = 3') == 'agent.session: expected a string, found the integer 3; write "3"'


@pytest.mark.parametrize(("entries", "count"), [(("replicas = 1000",), 1000), ((BASE,) * 3, 3)])
def test_many_agents(entries: tuple[str, ...], count: int) -> None:
    """A thousand agents fit into a card."""
    assert len({name for name, _ in names_of(*(BASE * (BASE not in entry) + entry for entry in entries))}) == count


def test_too_many_agents() -> None:
    """More than a thousand agents are one problem, not a machine out of memory."""
    assert problems_of(many(BASE + "replicas = 600", BASE + "replicas = 600")) == [
        "agents: 1200 agents are more than the 1000 that a card may have"
    ]


# What is refused


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('restart = "sometimes"', '.restart: "sometimes" is not one of no, on-failure, always'),
        (
            'restart = "onfailure"',
            '.restart: "onfailure" is not one of no, on-failure, always; did you mean "on-failure"?',
        ),
        ('restart = "Always"', '.restart: "Always" is not one of no, on-failure, always; did you mean "always"?'),
        ("restart = false", '.restart: expected one of "no", "on-failure", "always", found the boolean false'),
        ('type = "docker"', '.type: "docker" is not one of native, sandboxed'),
        ("max_restarts = true", ".max_restarts: expected an integer, found the boolean true"),
        ('max_restarts = "3"', '.max_restarts: expected an integer, found the string "3"; write 3'),
        ("max_restarts = 3.0", ".max_restarts: expected an integer, found the float 3.0; write 3"),
        ("max_restarts = 1e30", ".max_restarts: expected an integer, found the float 1e+30"),
        ("replicas = -1.0", ".replicas: expected an integer, found the float -1.0"),
        ('replicas = "0"', '.replicas: expected an integer, found the string "0"'),
        ("max_restarts = -inf", ".max_restarts: expected an integer, found the float -inf"),
        ("max_restarts = nan", ".max_restarts: expected an integer, found the float nan"),
        ("max_restarts = -1", ".max_restarts: the integer -1 is too small; write 0 or more"),
        (
            f"max_restarts = {1 << 63}",
            ".max_restarts: an integer is too large; write 9223372036854775807 or less",
        ),
        (
            f"max_restarts = 0x{'f' * 4000}",
            ".max_restarts: an integer is too large; write 9223372036854775807 or less",
        ),
        ("replicas = 0", ".replicas: the integer 0 is too small; write 1 or more"),
        ("replicas = 1001", ".replicas: the integer 1001 is too large; write 1000 or less"),
        ("replicas = false", ".replicas: expected an integer, found the boolean false"),
        ("pid_limit = -1", ".pid_limit: the integer -1 is too small; write 0 or more"),
        ("timeout = 30", '.timeout: expected a duration in quotes, found the integer 30; write "30s"'),
        ("timeout = 1.5", '.timeout: expected a duration in quotes, found the float 1.5; write "1.5s"'),
        ("timeout = -5", '.timeout: expected a duration in quotes, found the integer -5; write "30s"'),
        ("timeout = inf", '.timeout: expected a duration in quotes, found the float inf; write "30s"'),
        ("timeout = 1e300", '.timeout: expected a duration in quotes, found the float 1e+300; write "30s"'),
        (
            "timeout = 10000000000",
            '.timeout: expected a duration in quotes, found the integer 10000000000; write "30s"',
        ),
        (f"timeout = 1{'0' * 309}", '.timeout: expected a duration in quotes, found an integer; write "30s"'),
        (f"timeout = -1{'0' * 309}", '.timeout: expected a duration in quotes, found an integer; write "30s"'),
        (
            f"restart_delay_max = 0x{'f' * 400}",
            '.restart_delay_max: expected a duration in quotes, found an integer; write "30s"',
        ),
        (f"grace_period = 1{'0' * 309}", '.grace_period: expected a duration in quotes, found an integer; write "30s"'),
        ("timeout = nan", '.timeout: expected a duration in quotes, found the float nan; write "30s"'),
        ("timeout = true", '.timeout: expected a duration in quotes, found the boolean true; write "30s"'),
        ("timeout = 07:32:00", '.timeout: expected a duration in quotes, found a date or time; write "30s"'),
        (
            'timeout = "30"',
            '.timeout: the duration "30" has a number without a unit: write for example "30s" or "1h30m"',
        ),
        (
            'timeout = "3000000h"',
            '.timeout: the duration "3000000h" is longer than the 292 years that a duration can have',
        ),
        ('timeout = "0"', '.timeout: "0" is not longer than zero; write for example "30s" or leave the key out'),
        ('timeout = "-1s"', '.timeout: "-1s" is not longer than zero; write for example "30s" or leave the key out'),
        (
            'grace_period = "0s"',
            '.grace_period: "0s" is not longer than zero; write for example "30s" or leave the key out',
        ),
        (
            'restart_delay_max = "0.1ns"',
            '.restart_delay_max: "0.1ns" is not longer than zero; write for example "30s" or leave the key out',
        ),
        ("name = -1", ".name: expected a string, found the integer -1"),
        ("session = -0.5", ".session: expected a string, found the float -0.5"),
        ("session = 3", '.session: expected a string, found the integer 3; write "3"'),
        ("prompt = 3", '.prompt: expected a string, found the integer 3; write "3"'),
        ("prompt = true", '.prompt: expected a string, found the boolean true; write "true"'),
        ("prompt = 31415926", ".prompt: expected a string, found an integer; put it in quotes"),
        ("prompt = 2020-02-02", ".prompt: expected a string, found a date or time; put it in quotes"),
        ('prompt = ["x"]', ".prompt: expected a string, found an array"),
        ('prompt = "a\\u0000b"', ".prompt: a NUL character cannot be given to a program; remove it"),
        ("prompt_file = 31415926", '.prompt_file: expected a string, found the integer 31415926; write "31415926"'),
        ('prompt_file = "a\\u0000b"', ".prompt_file: a NUL character cannot be given to a program; remove it"),
        ("workdir = {}", ".workdir: expected a string, found a table"),
        ('workdir = "a\\u0000b"', ".workdir: a NUL character cannot be given to a program; remove it"),
        ('binary = ""', ".binary: the string is empty; write something, or leave the key out for its default"),
        ("memory = 2", '.memory: expected a string, found the integer 2; write "2"'),
        (
            'args = "--token s3cret"',
            '.args: expected an array of strings, found a string; write it in brackets, as in ["one", "two"]',
        ),
        ('args = ["-p", 8080]', '.args[1]: expected a string, found the integer 8080; write "8080"'),
        ('args = ["a\\u0000"]', ".args[0]: a NUL character cannot be given to a program; remove it"),
        ('args = [["a"]]', ".args[0]: expected a string, found an array"),
        ("extra_packages = [1]", '.extra_packages[0]: expected a string, found the integer 1; write "1"'),
        ("env.PORT = 8080", '.env.PORT: expected a string, found the integer 8080; write "8080"'),
        ("env.DEBUG = true", '.env.DEBUG: expected a string, found the boolean true; write "true"'),
        ("env.RATE = 0.5", '.env.RATE: expected a string, found the float 0.5; write "0.5"'),
        ("env.PIN = 123456", ".env.PIN: expected a string, found an integer; put it in quotes"),
        ("env.A.B = 1", ".env.A: expected a string, found a table"),
        ('env.A = "x\\u0000"', ".env.A: a NUL character cannot be given to a program; remove it"),
        ('env = "A=1"', '.env: expected a table of strings, found a string; write it as in { NAME = "value" }'),
        ('env = ["A=1"]', '.env: expected a table of strings, found an array; write it as in { NAME = "value" }'),
        (
            'env."A B" = "x"',
            '.env."A B": not the name of a variable; use letters, digits and _, and no digit first',
        ),
        ('env.A-B = "x"', ".env.A-B: not the name of a variable; use letters, digits and _, and no digit first"),
        ('env.1A = "x"', ".env.1A: not the name of a variable; use letters, digits and _, and no digit first"),
        ('env."" = "x"', '.env."": not the name of a variable; use letters, digits and _, and no digit first'),
        ('env."é" = "x"', '.env."é": not the name of a variable; use letters, digits and _, and no digit first'),
        (
            'env."A\\n" = "x"',
            '.env."A\\n": not the name of a variable; use letters, digits and _, and no digit first',
        ),
        (
            'env.TMUX = "x"',
            ".env.TMUX: variables named TMUX… and AGENTD_… are reserved for tmux and agentd; rename it",
        ),
        (
            'env.TMUX_PANE = "x"',
            ".env.TMUX_PANE: variables named TMUX… and AGENTD_… are reserved for tmux and agentd; rename it",
        ),
        (
            'env.AGENTD_X = "x"',
            ".env.AGENTD_X: variables named TMUX… and AGENTD_… are reserved for tmux and agentd; rename it",
        ),
    ],
)
def test_each_mistake_is_explained(lines: str, problem: str) -> None:
    """A wrong value is one problem with its place, what was found and what to write."""
    assert problem_of(lines) == f"agent{problem}"


@pytest.mark.parametrize("name", ["AGENTD", "AGENT_X", "tmux", "MY_TMUX", "PATH"])
def test_variables_that_are_not_reserved(name: str) -> None:
    """Only what begins with TMUX or AGENTD_ is reserved."""
    assert dict(agent_of(f'env.{name} = "x"').env) == {name: "x"}


@pytest.mark.parametrize(
    ("harness", "problem"),
    [
        ("", "missing; write one of claude-code, opencode, gemini-cli, custom"),
        ('harness = "claude"', '; did you mean "claude-code"?'),
        ('harness = "Gemini"', '; did you mean "gemini-cli"?'),
        ('harness = "zzz"', '"zzz" is not one of claude-code, opencode, gemini-cli, custom'),
        ('harness = ""', '"" is not one of claude-code, opencode, gemini-cli, custom'),
        ("harness = 3", 'expected one of "claude-code", "opencode", "gemini-cli", "custom", found the integer 3'),
    ],
)
def test_harness_is_one_of_the_registered(harness: str, problem: str) -> None:
    """A missing or unknown harness is answered with the known ones and the nearest of them."""
    (found,) = problems_of(f"[agent]\n{harness}\n")
    assert found.startswith("agent.harness: ")
    assert found.endswith(problem)


@pytest.mark.parametrize(
    ("card", "problems"),
    [
        ("agent = 3", ["agent: expected a table, found the integer 3; write [agent] for one agent, or [[agents]] for"]),
        (many(BASE).replace("agents", "agent"), ["agent: expected a table, found an array; write [agent] for one"]),
        (
            "[agents]\n" + BASE,
            ["agents: expected an array of tables, found a table; write [[agents]] for each"],
        ),
        ('agents = ["s3cret"]', ["agents[0]: expected a table, found a string; write [[agents]] for each"]),
        (
            f"[agent]\n{BASE}" + many(BASE),
            ["agents: the card has [agent] too; write every agent as an entry of [[agents]]"],
        ),
    ],
)
def test_wrong_tables(card: str, problems: list[str]) -> None:
    """`[agent]` is a table, `[[agents]]` an array of tables, and a card has one of the two."""
    found = problems_of(card)
    assert len(found) == len(problems)
    for one, start in zip(found, problems, strict=True):
        assert one.startswith(start)


def test_every_problem_is_reported_at_once_in_the_cards_order() -> None:
    """All mistakes of all agents come in one error, each with the path of its agent."""
    card = many(
        BASE + 'timeout = 30\nname = "a"',
        BASE + 'restart = "sometimes"\nname = "a"\nenv.PORT = 8080\nenv.TMUX = 1',
        'prompt = 3\nargs = [1, 2]\nunknown = "x"',
    )
    assert [problem.split(":")[0] for problem in problems_of(card)] == [
        "agents[0].timeout",
        "agents[1].restart",
        "agents[1].env.TMUX",
        "agents[1].env.PORT",
        "agents[1].env.TMUX",
        "agents[1].name",
        "agents[2].prompt",
        "agents[2].args[0]",
        "agents[2].args[1]",
        "agents[2].harness",
    ]


# Warnings


@pytest.mark.parametrize(
    ("lines", "warning"),
    [
        ('workdri = "/w"', 'agent.workdri: unknown key, ignored; did you mean "workdir"?'),
        ("max_restart = 3", 'agent.max_restart: unknown key, ignored; did you mean "max_restarts"?'),
        ('zzzzzz = "s3cret"', "agent.zzzzzz: unknown key, ignored"),
        ('"a\\u001bb" = 1', 'agent."a\\x1bb": unknown key, ignored'),
        (
            '[agent.env]\nTIMEOUT = "1h"\ntimeout = "2h"',
            "agent.env.timeout: a variable, and not the agent's timeout, which stands above its env table",
        ),
        ('memory = "2GiB"', 'agent.memory: only for type = "sandboxed", ignored'),
    ],
)
def test_warnings(lines: str, warning: str) -> None:
    """What has no effect is not an error, but is said, with the nearest key."""
    card = parse_card(f"[agent]\n{BASE}{lines}".encode())
    assert card.warnings == (warning,)
    assert len(card.agents) == 1


# Syntax


@pytest.mark.parametrize(
    ("card", "problem"),
    [
        (
            "[agent]\nrestart = always\n",
            (
                "line 2, column 11: unexpected character: 'a'; a value that is text needs quotes\n"
                "    restart = always\n"
                "              ^"
            ),
        ),
        (
            '[agent]\nharness = "claude-code\nprompt = "x"\n',
            (
                "line 2, column 23: the string is not closed at the end of its line; add the quote, or write it between"
                ' triple quotes\n    harness = "claude-code\n                          ^'
            ),
        ),
        (
            "[agent]\r\ntimeout = 30s\r\n",
            (
                "line 2, column 11: invalid number; a value that is text needs quotes\n"
                "    timeout = 30s\n"
                "              ^"
            ),
        ),
        ("[agent\n", "line 1, column 7: unexpected end of the line\n    [agent\n          ^"),
        (
            "[agent]\nrestart\n",
            "line 2, column 8: unexpected end of the line\n    *******\n           ^",
        ),
        (
            "[agent]\nmax_restarts",
            "line 2, column 13: unexpected end of the line\n    ************\n                ^",
        ),
        (
            "[agent]\nargs = [",
            (
                "line 2, column 9: the file ends inside a string, an array, a table or a line that is not finished\n"
                "    args = [\n"
                "            ^"
            ),
        ),
        (
            '[agent]\nname = "a"\n  name = "b"\n# end\n',
            'line 3, column 3: key "name" already exists\n      name = "b"\n      ^',
        ),
        (
            '[agent]\nenv.A = "1"\nenv.A = "2"\n# end\n',
            'line 3, column 1: key "A" already exists\n    env.A = "*"\n    ^',
        ),
        (
            "[agent]\n[x]\n[agent]\nname = 1\n",
            'line 3, column 1: key "agent" already exists\n    [agent]\n    ^',
        ),
        (
            '[agent]\n["\\n    ^"]\n["\\n    ^"]\n',
            'line 3, column 1: key "\\n    ^" already exists\n    ["**    *"]\n    ^',
        ),
        (
            '[agent]\nprompt = "\u2028\u0085"\nrestart = x\n',
            (
                "line 3, column 11: unexpected character: 'x'; a value that is text needs quotes\n"
                "    restart = x\n"
                "              ^"
            ),
        ),
        (
            "a = 1\0\n",
            "line 1, column 6: a NUL character cannot stand in a card; remove it\n    a = **\n         ^",
        ),
        (
            b'[agent]\nname = "\xe9t\xe9"\n',
            'line 2, column 9: byte 0xe9 is not UTF-8; save the card as UTF-8\n    name = "�t�"\n            ^',
        ),
        (
            '[agent]\n\tname\t= "a"b\n',
            "line 2, column 12: unexpected character: 'b'\n     name = \"a\"*\n               ^",
        ),
        (
            f'[agent]\nname = "{"n" * 200}\\q{"n" * 200}"\n',
            f"line 2, column 210: invalid character 'q' in string\n    …{'n' * 59}\\q{'n' * 39}…\n    {' ' * 61}^",
        ),
        (
            '[agent]\nname = "\u65e5\u672ce\u0301\u00e9"x\n',
            "line 2, column 15: unexpected character: 'x'\n    name = \"**e*\u00e9\"*\n                  ^",
        ),
    ],
)
def test_syntax_error_shows_its_line_with_a_caret(card: str | bytes, problem: str) -> None:
    """A card that is not TOML is one problem: line, column, the reason, and the line with a caret below."""
    assert problems_of(card) == [problem]


@pytest.mark.parametrize(
    ("card", "where"),
    [
        ("[agent]\nharness='custom'\nharness='x'", "line 3, column 1"),
        ('env = {A = "1",}\na = 1\na = 2\n', "line 3, column 1"),
        ("x = {\n}\n[a]\n[a]\n", "line 4, column 1"),
        ("x = 07:32\na = 1\n\ta = 2\n", "line 3, column 2"),
        ("args = [\n'a',\n]\nargs = [\n'b',\n]\n", "line 4, column 1"),
        ('a = """\n[a]\na = 1 \\""" \n"""\r\n a = 1\r\n', "line 5, column 2"),
        ("a = '''\n[ " + '"""' + " # '''\nb = [ # [\n]\nb = 1\n", "line 5, column 1"),
        ('env = {\n A = "1",\n A = "2",\n}\n', "line 3, column 2"),
        ('env = {A = "1", A = "2"}\n', "line 1, column 1"),
        ("[a]\n[b]\nx = 1\n[a]\ny = 1\n[c]\n", "line 4, column 1"),
        ("[a]\nb.c = 1\n[a.b]\nd = 1\n[e]\n", "line 3, column 1"),
        ("[a]\nb = 1\n[[a]]\n[e]\n", "line 3, column 1"),
        (many(*['name = "x"\nharness = "custom"'] * 300) + "name = 1", "line 901, column 1"),
        ("".join(f"a{number} = 1\n" for number in range(2000)) + "a0 = 1", "card"),
    ],
)
def test_repeated_key_is_where_it_is_repeated(card: str, where: str) -> None:
    """The second of two equal keys or tables is found where it begins, unless the card is very long."""
    (problem,) = problems_of(card)
    assert problem.startswith(f"{where}: ")


@pytest.mark.parametrize(
    ("line", "column", "advice"),
    [
        ("timeout = 30s", 11, "a value that is text needs quotes"),
        ("timeout = 1h30m # half an hour", 11, "a value that is text needs quotes"),
        ("memory =\t2GiB", 10, "a value that is text needs quotes"),
        ("x=1979-02-30", 3, "a value that is text needs quotes"),
        ("x = 1979-02-03 25:00", 5, "a value that is text needs quotes"),
        ("x = 1979-02-03T25:00", 5, "a value that is text needs quotes"),
        ("x = 25:00:00", 5, "a value that is text needs quotes"),
        ("x = [1, 2x]", 9, "a value that is text needs quotes"),
        ("x = {a=1, b=-x}", 13, "a value that is text needs quotes"),
        ("max_restarts = 03", 16, "write it without a zero in front, or in quotes if it is text"),
        ("name = frontend", 9, "a value that is text needs quotes"),
    ],
)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"], ids=["end", "lf", "crlf"])
def test_value_that_is_none_is_where_it_begins(line: str, column: int, advice: str, end: str) -> None:
    """A bad number or date is found at its first character, however its line ends."""
    (problem,) = problems_of(f"[agent]\n{line}{end}")
    assert problem.startswith(f"line 2, column {column}: ")
    assert problem.split("\n")[0].endswith(f"; {advice}")


@pytest.mark.parametrize(
    ("card", "problem"),
    [
        (
            'prompt = "abc\r\n',
            "line 1, column 14: the string is not closed at the end of its line; add the quote, or write it between",
        ),
        (
            "prompt = 'abc",
            "line 1, column 14: the string is not closed at the end of its line; add the quote, or write it between",
        ),
        ("a = 1\rb = 2\n", "line 1, column 6: the control character 0x0d cannot stand there; remove it"),
        ("# a\rb = 2\n", "line 1, column 4: the control character 0x0d cannot stand there; remove it"),
        ("a = 1 # \x1b[2J\n", "line 1, column 9: the control character 0x1b cannot stand there; remove it"),
        ('a = """\n\x7f"""\n', "line 2, column 1: the control character 0x7f cannot stand there; remove it"),
        ("a = '\x0b'\n", "line 1, column 6: the control character 0x0b cannot stand there; remove it"),
        ("\u00c4 = '1'", "line 1, column 1: this is not a key; quote it, or write # before a comment"),
        ("a = 1\n// note\n", "line 2, column 1: this is not a key; quote it, or write # before a comment"),
        ("\u200ba = 1", "line 1, column 1: the character U+200B cannot begin a key; remove it"),
        ("\ufeff\ufeffa = 1", "line 1, column 1: the character U+FEFF cannot begin a key; remove it"),
        ("the s3cret = 1", "line 1, column 12: this is not a key; quote it, or write one word before the ="),
        ("= 1", "line 1, column 1: empty key"),
        ("a.", "line 1, column 3: empty key"),
        ("[]", "line 1, column 2: empty table name"),
        ("[\u00c4]", "line 1, column 2: this is not the name of a table; quote it, or write # before a comment"),
        (
            "[the s3cret]",
            "line 1, column 12: this is not the name of a table; quote it, or write one word between the brackets",
        ),
        (
            ' {"agent": {"harness": "custom"}}',
            "line 1, column 2: this looks like JSON; write the card in TOML, as in [agent]",
        ),
        ('[\n{"harness": 1}]', "line 1, column 2: this looks like JSON; write the card in TOML, as in [agent]"),
    ],
)
def test_syntax_error_says_what_to_do(card: str, problem: str) -> None:
    """A string that is not closed, a character and a name that cannot stand there: each is called what it is."""
    (found,) = problems_of(card)
    assert found.split("\n")[0].startswith(problem)
    assert "s3cret" not in found


@pytest.mark.parametrize(
    "card",
    [
        '[secrets]\nTOKEN = "s3cret\n',
        "[secrets]\nTOKEN = s3cret\n",
        '[secrets]\nname = "s3cret\n',
        '[agent]\nenv.TOKEN = "s3cret\n',
        '[agent.env]\nsession = "s3cret\n',
        '[agent]\nenv = { TOKEN = "s3cret" \n',
        '[agent]\nname = "x", env = { TOKEN = "s3cret" }\n',
        '[agent]\nprompt = """\nname the s3cret \\q\n"""',
        '[agent]\nprompt = """\n[x] s3cret \\q\n"""',
        '[agent]\nprompt = """\ns3cret= \\q\n"""',
        '[agent]\nprompt = """\nthe s3cret',
        '[agent]\nprompt = """\ns3cret=',
        '[agent]\nprompt = """\ns3cret==',
        '[agent]\nargs = [\n"s3cret"\n"s3cret"]\n',
        b'[secrets]\nTOKEN = "s3cret\xff"\n',
        '[agent]\nenv.TOKEN = "s3cret"\nenv.TOKEN = "s3cret"\n',
        'env.TOKEN = "s3cret',
        '[agent]\nprompt = """a"""\nthe s3cret "b"\n',
        "[agent]\nthe s3cret = 1\n",
        '[agent]\nenv = {\n session = "s3cret";\n}',
        "[agent]\nenv = {\n name = s3cret\n}",
        '# use """ for prompts\n[agent]\nprompt = """\nlogin\nsession = \\s3cret\n"""',
        "[agent]\nprompt = '''\n" + '"""' + "\nsession = s3cret\x7f\n'''",
        "[agent]\nrestart = on # pw s3cret\n",
        '[agent]\nname = "x # pw s3cret\n',
        '[agent]\nname = "x" # pw s3cret \x7f\n',
        "[agent] # pw s3cret \x7f\n",
        "[agent]\nrestart = on, s3cret\n",
        '[agent]\nprompt = """\nsay """\n[the s3cret]\n"""\n',
        b'it\'s """\n[agent]\nprompt = """\nsession = s3cret\xff\n"""',
        b'[agent]\nit\'s """\nsession = s3cret\0\n"""',
    ],
)
def test_syntax_error_covers_what_may_be_secret(card: str | bytes) -> None:
    """The line of a syntax error shows neither a secret, nor a variable, nor a prompt, nor an argument."""
    (problem,) = problems_of(card)
    assert "s3cret" not in problem


@pytest.mark.parametrize(
    "lines",
    [
        'prompt = ["s3cret"]',
        'env = "s3cret"',
        'env = ["s3cret"]',
        'env.A = ["s3cret"]',
        'env.TMUX = "s3cret"',
        'env."a b" = "s3cret"',
        'env.A = "s3cret\\u0000"',
        'prompt = "s3cret\\u0000"',
        'args = "s3cret"',
        'args = [["s3cret"]]',
        'env = 5\nprompt = { a = "s3cret" }',
    ],
)
def test_problems_never_quote_a_secret(lines: str) -> None:
    """What is wrong with a prompt, a variable or an argument is said without its text."""
    assert "s3cret" not in "\n".join(problems_of(f"[agent]\n{BASE}{lines}"))


@pytest.mark.parametrize(
    "card",
    [
        "a = " + "[" * 20_000,
        "a = " + "[" * 20_000 + "]" * 20_000,
        "a = " + "{a=" * 20_000 + "1" + "}" * 20_000,
        ".".join("a" * 20_000) + " = 1",
        f"[{'.'.join('a' * 20_000)}]",
    ],
)
def test_deep_nesting_is_a_problem(card: str) -> None:
    """No nesting is deep enough to break the daemon."""
    (problem,) = problems_of(card)
    assert "nested" in problem


def test_no_room_on_the_stack_is_a_problem() -> None:
    """Where nesting exhausts Python's stack, the card is to blame, not agentd."""
    card = ("a = " + "[" * 90 + "]" * 90).encode()
    parse_card(card)
    depth, frame = 0, sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + 80)
    try:
        problems = problems_of(card)
    finally:
        sys.setrecursionlimit(limit)
    assert problems == ["card: nested too deeply to be read; use fewer tables inside tables"]


@pytest.mark.parametrize("digits", ["9" * 5000, "0x" + "f" * 50_000])
def test_integer_too_long_for_python_is_a_problem(digits: str) -> None:
    """An integer of thousands of digits is no crash."""
    (problem,) = problems_of(f"[agent]\n{BASE}max_restarts = {digits}")
    assert problem.startswith(("agent.max_restarts: an integer is too large", "line 3, column 16: invalid number"))
    assert len(problem) < 500


def test_large_card() -> None:
    """A prompt of a megabyte is read."""
    assert len(agent_of(f'prompt = "{"é" * (1 << 19)}"').prompt) == 1 << 19


def test_too_large_card() -> None:
    """A card of more than 4 MiB is refused unread."""
    assert problems_of(b"#" * ((4 << 20) + 1)) == [
        "card: 4194305 bytes are more than the 4194304 that a card may have; move prompts to a prompt_file"
    ]


# Anything

_NASTY = st.sampled_from([*FIELDS, "agent", "agents", "", "a b", "é", "TMUX", "A"])
_VALUES = st.recursive(
    st.sampled_from(
        ["1", "-1", "0xffff", "1e400", "nan", "true", "2020-01-01", "07:00:00", '"x"', '"\\u0000"', "''", "x", '"1s"']
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(_NASTY, inner), max_size=3).map(
            lambda items: "{" + ", ".join(f'"{key}" = {value}' for key, value in items) + "}"
        ),
    ),
    max_leaves=5,
)
_LINES = st.one_of(
    st.sampled_from(["[agent]", "[[agents]]", "[agent.env]", "[agents.env]", '"""', "[x", "agent = 1", BASE.strip()]),
    st.builds('"{}" = {}'.format, _NASTY, _VALUES),
    st.text(max_size=10),
)


def _parses_or_explains(data: bytes) -> None:
    try:
        card = parse_card(data)
    except CardError as error:
        problems = error.problems
    else:
        problems = ()
        assert len({agent.name.casefold() for agent in card.agents}) == len(card.agents)
        assert len({agent.session for agent in card.agents}) == len(card.agents)
    assert all(problem.path and problem.text for problem in problems)
    assert all(problem.text.count("\n") in {0, 2} for problem in problems)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80))
def test_no_bytes_raise_anything_but_card_error(data: bytes) -> None:
    """Random bytes are a card or a CardError."""
    _parses_or_explains(data)


@settings(max_examples=300, deadline=None)
@given(st.lists(_LINES, max_size=12).map("\n".join))
def test_no_lines_raise_anything_but_card_error(card: str) -> None:
    """Random lines of TOML are a card, with unique names and sessions, or a CardError."""
    _parses_or_explains(card.encode(errors="surrogatepass"))
