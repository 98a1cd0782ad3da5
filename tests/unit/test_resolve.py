"""Resolving: environment, workdir, argv, the kernel's limits and the digest of an effective agent."""

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import attrs
import pytest

from agentd.card.card import Agent
from agentd.resolve import Blocked, EffectiveAgent, Unsupported, resolve

_LIMIT = 131_072


def _agent(**values: Any) -> Agent:
    return Agent(**{"name": "a", "harness": "claude-code", "session": "a", **values})


def _resolve(
    agent: Agent, *, prompt: str | Blocked | None = None, secrets: Mapping[str, str] | None = None
) -> EffectiveAgent | Blocked | Unsupported:
    return resolve(
        agent,
        prompt=agent.prompt if prompt is None else prompt,
        secrets=secrets or {},
        home="/home/agent",
        card_dir="/etc/stereos",
        default_workdir="/home/agent/workspace",
    )


def _effective(agent: Agent, *, prompt: str | None = None, secrets: Mapping[str, str] | None = None) -> EffectiveAgent:
    resolved = _resolve(agent, prompt=prompt, secrets=secrets)
    assert isinstance(resolved, EffectiveAgent)
    return resolved


def _blocked(agent: Agent, *, prompt: str | None = None, secrets: Mapping[str, str] | None = None) -> Blocked:
    resolved = _resolve(agent, prompt=prompt, secrets=secrets)
    assert isinstance(resolved, Blocked)
    return resolved


def test_environment() -> None:
    """The environment is the secrets with the card's env over them."""
    effective = _effective(_agent(env={"A": "card", "B": "card"}), secrets={"A": "secret", "C": "secret"})
    assert effective.env == {"A": "card", "B": "card", "C": "secret"}


@pytest.mark.parametrize(
    ("workdir", "absolute"),
    [
        (None, "/home/agent/workspace"),
        ("~", "/home/agent"),
        ("~/", "/home/agent"),
        ("~/src/../x", "/home/agent/x"),
        ("~other", "/etc/stereos/~other"),
        ("work", "/etc/stereos/work"),
        (".", "/etc/stereos"),
        ("../other/", "/etc/other"),
        ("../../..", "/"),
        ("/srv//x/./y/", "/srv/x/y"),
        ("//srv/x", "/srv/x"),
        ("/", "/"),
    ],
)
def test_workdir(workdir: str | None, absolute: str) -> None:
    """The workdir becomes absolute and normalised: `~` is the agent's home, relative paths start at the card."""
    assert _effective(_agent(workdir=workdir)).workdir == absolute


def test_argv() -> None:
    """The command line is the harness's own for the prompt, with the card's args right after the program."""
    effective = _effective(_agent(harness="opencode", args=("--model", "m"), prompt="no"), prompt="yes")
    assert effective.argv == ("opencode", "--model", "m", "--prompt", "yes")


@pytest.mark.parametrize(
    ("binary", "program"),
    [
        (None, "claude"),
        ("other", "other"),
        ("/opt/x", "/opt/x"),
        ("~/bin/x", "/home/agent/bin/x"),
        ("./x", "./x"),
        ("bin/x", "bin/x"),
    ],
)
def test_binary(binary: str | None, program: str) -> None:
    """`~/` in the binary is the agent's home, and a relative one is left for the workdir, as a shell there has it."""
    assert _effective(_agent(binary=binary)).argv == (program,)


def test_unsupported() -> None:
    """An agent that is not native is unsupported, whatever else is wrong with it, and the message says what to do."""
    resolved = _resolve(_agent(name="boxed", type="sandboxed"), prompt=Blocked(reason="prompt_file", message="m"))
    assert isinstance(resolved, Unsupported)
    assert "boxed" in resolved.message
    assert 'type = "native"' in resolved.message


def test_blocked_prompt() -> None:
    """Without a readable prompt file the agent is blocked for that very reason."""
    blocked = Blocked(reason="prompt_file", message="m", paths=("/p",))
    assert _resolve(_agent(prompt_file="/p"), prompt=blocked) is blocked


@pytest.mark.parametrize(
    ("prompt_file", "paths", "named"),
    [(None, (), "the prompt of agent a"), ("p.md", ("/etc/stereos/p.md",), "the prompt file /etc/stereos/p.md")],
)
def test_nul_in_prompt(prompt_file: str | None, paths: tuple[str, ...], named: str) -> None:
    """A prompt with a NUL blocks the agent, and the message names where it is."""
    blocked = _blocked(_agent(prompt_file=prompt_file), prompt="x\0y")
    assert (blocked.reason, blocked.paths) == ("prompt_file", paths)
    assert blocked.message.startswith(named)


@pytest.mark.parametrize(
    ("values", "secrets", "reason", "key"),
    [
        ({"prompt": "x" * _LIMIT}, {}, "prompt_too_large", "prompt"),
        ({"prompt": "é" * (_LIMIT // 2)}, {}, "prompt_too_large", "prompt"),
        ({"prompt": "-" * (_LIMIT - len("--prompt=")), "harness": "opencode"}, {}, "prompt_too_large", "prompt"),
        ({"prompt": "x" * _LIMIT, "prompt_file": "p"}, {}, "prompt_too_large", "prompt_file"),
        ({"args": ("x", "y", "x" * _LIMIT)}, {}, "argument_too_large", "args[2]"),
        ({"binary": "/" + "x" * _LIMIT}, {}, "argument_too_large", "binary"),
        ({"env": {"BIG": "x" * (_LIMIT - len("BIG="))}}, {}, "variable_too_large", "env.BIG"),
        ({}, {"BIG": "x" * (_LIMIT - len("BIG="))}, "variable_too_large", "secret BIG"),
    ],
)
def test_too_large(values: dict[str, Any], secrets: dict[str, str], reason: str, key: str) -> None:
    """A string beyond the kernel's limit blocks the agent; the message names agent, key, size and limit."""
    blocked = _blocked(_agent(name="big", **values), secrets=secrets)
    assert blocked.reason == reason
    assert blocked.message.startswith(f"{key} of agent big makes 1310")
    assert f"at most {_LIMIT}" in blocked.message
    assert "file" in blocked.message.partition(":")[2]
    assert len(blocked.message) < 200


def test_largest() -> None:
    """The largest argument and variable that are let through are the largest that the kernel takes."""
    values: dict[str, Any] = {"binary": sys.executable, "args": ("-c", "pass"), "prompt": "é" + "x" * (_LIMIT - 3)}
    effective = _effective(_agent(**values, env={"BIG": "x" * (_LIMIT - len("BIG=\0"))}))
    subprocess.run(effective.argv, env=effective.env, check=True)
    with pytest.raises(OSError, match="Argument list too long"):
        subprocess.run((*effective.argv[:-1], effective.argv[-1] + "x"), env=effective.env, check=False)
    with pytest.raises(OSError, match="Argument list too long"):
        subprocess.run(effective.argv, env={"BIG": effective.env["BIG"] + "x"}, check=False)


def test_too_large_together() -> None:
    """Many strings that are each small enough block the agent when the kernel would not take them together."""
    many = {f"V{number}": "x" * 100_000 for number in range(20)}
    effective = _effective(_agent(), secrets=dict(list(many.items())[:15]))
    assert len(effective.env) == 15
    blocked = _blocked(_agent(prompt_file="~/p"), prompt="go", secrets=many)
    assert blocked.reason == "environment_too_large"
    assert blocked.paths == ("/home/agent/p",)
    assert "agent a" in blocked.message


def test_digest_is_fixed() -> None:
    """The digest is the SHA-256 of the canonical JSON of what differs from the defaults, the same in every release."""
    plain = _effective(_agent())
    assert plain.digest == hashlib.sha256(b'{"harness":"claude-code","name":"a","session":"a"}').hexdigest()
    full = _effective(
        _agent(prompt="x", prompt_file="p", timeout=1.5, args=("b", "a"), env={"B": "1"}),
        prompt="é",
        secrets={"A": "2"},
    )
    assert (
        full.digest
        == hashlib.sha256(
            b'{"args":["b","a"],"env":{"A":"2","B":"1"},"harness":"claude-code","name":"a","prompt":"\\u00e9",'
            b'"prompt_file":"p","session":"a","timeout":1.5}'
        ).hexdigest()
    )
    assert plain.digest == "314a33a294d7fb3fbc5665e0d235b5393e29b4173946d10b8a07dda639732dfb"


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "b"},
        {"harness": "opencode"},
        {"session": "b"},
        {"prompt": "b"},
        {"prompt_file": "b"},
        {"workdir": "b"},
        {"restart": "always"},
        {"max_restarts": 1},
        {"restart_delay_max": 4.0},
        {"timeout": 1.0},
        {"grace_period": 1.0},
        {"env": {"A": "b"}},
        {"binary": "b"},
        {"args": ("b",)},
        {"memory": "1g"},
        {"pid_limit": 1},
        {"extra_packages": ("b",)},
    ],
)
def test_digest_changes(changed: dict[str, Any]) -> None:
    """Any changed key changes the digest."""
    assert _effective(_agent(**changed)).digest != _effective(_agent()).digest


def test_every_key_counts() -> None:
    """The table above has every key of an agent that can be launched."""
    (mark,) = test_digest_changes.pytestmark
    assert {key for changed in mark.args[1] for key in changed} == {f.name for f in attrs.fields(Agent)} - {"type"}


def test_default_written_out() -> None:
    """Writing a default into the card changes nothing."""
    written = _agent(restart="no", max_restarts=0, restart_delay_max=3, grace_period=30.0, env={}, args=())
    assert _effective(written).digest == _effective(_agent()).digest


def test_new_key_in_a_later_release() -> None:
    """A key that a later release adds changes nobody's digest as long as it has its default."""

    @attrs.frozen(kw_only=True)
    class Later(Agent):
        colour: str = "blue"
        tags: list[str] = attrs.field(factory=list)

    values: dict[str, Any] = {"name": "a", "harness": "claude-code", "session": "a"}
    assert _effective(Later(**values)).digest == _effective(_agent()).digest
    assert _effective(Later(**values, colour="red")).digest != _effective(_agent()).digest


def test_secrets_in_digest() -> None:
    """A secret counts as if it stood in env, one that env overrides does not count, nor does the order of either."""
    plain = _effective(_agent(env={"A": "1", "B": "2"}))
    assert _effective(_agent(env={"B": "2"}), secrets={"A": "1"}).digest == plain.digest
    assert _effective(_agent(env={"B": "2", "A": "1"}), secrets={"A": "other"}).digest == plain.digest
    assert _effective(_agent(env={"B": "2"}), secrets={"A": "2"}).digest != plain.digest


def test_place_is_not_in_digest() -> None:
    """Where the card and the home are does not count, so that agentd started elsewhere relaunches nobody."""
    moved = resolve(_agent(), prompt="", secrets={}, home="/h", card_dir="/c", default_workdir="/w")
    assert isinstance(moved, EffectiveAgent)
    assert moved.digest == _effective(_agent()).digest


def test_hidden_in_repr() -> None:
    """Printing an effective agent shows its name, but nothing of its environment and its command line."""
    agent = _agent(name="shown", prompt="hush", env={"A": "hush"}, args=("hush",))
    shown = repr(_effective(agent, secrets={"B": "hush"}))
    assert "shown" in shown
    assert "hush" not in shown
