"""Harnesses: the argv of each, for every kind of prompt."""

import pytest

from agentd.card.harness import HARNESSES, build_argv

_AWKWARD = 'it\'s "q" $HOME `id` !x {} {0} %7\n\ttab\r\x1b[0m é☃ end;'


class _Echo:
    """A harness that is none of agentd's own."""

    name = "echo"
    binary = "echo"

    def build_command(self, prompt: str) -> tuple[str, ...]:
        return (self.binary, "first", prompt, "last")


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("claude-code", ("claude", "-p", "fix it")),
        ("opencode", ("opencode", "--prompt", "fix it")),
        ("gemini-cli", ("gemini", "fix it")),
        ("custom", ("agent", "fix it")),
    ],
)
def test_plain_prompt(name: str, argv: tuple[str, ...]) -> None:
    """A prompt without a leading dash gives the documented command line exactly."""
    assert HARNESSES[name].build_command("fix it") == argv


@pytest.mark.parametrize("prompt", ["-x", "--help", "-", "--", "- a list\n- of things"])
@pytest.mark.parametrize(
    ("name", "before", "glue"),
    [
        ("claude-code", ("claude", "-p", "--"), ""),
        ("opencode", ("opencode",), "--prompt="),
        ("gemini-cli", ("gemini",), "--prompt-interactive="),
        ("custom", ("agent", "--"), ""),
    ],
)
def test_dashed_prompt(name: str, before: tuple[str, ...], glue: str, prompt: str) -> None:
    """A prompt that begins with a dash is passed in the form that this harness takes as a prompt."""
    assert HARNESSES[name].build_command(prompt) == (*before, glue + prompt)


@pytest.mark.parametrize("name", HARNESSES)
def test_no_prompt(name: str) -> None:
    """Without a prompt the command line is the bare binary."""
    assert HARNESSES[name].build_command("") == (HARNESSES[name].binary,)


@pytest.mark.parametrize("prompt", [_AWKWARD, "-" + _AWKWARD])
@pytest.mark.parametrize("name", HARNESSES)
def test_prompt_is_kept(name: str, prompt: str) -> None:
    """Whatever a prompt holds, the last argument ends with all of it, unchanged."""
    assert HARNESSES[name].build_command(prompt)[-1].endswith(prompt)


def test_registry_names() -> None:
    """Every harness is registered under its own name."""
    assert {name: harness.name for name, harness in HARNESSES.items()} == {name: name for name in HARNESSES}


@pytest.mark.parametrize(
    ("prompt", "binary", "args", "argv"),
    [
        ("go", None, (), ("claude", "-p", "go")),
        ("go", "/opt/claude", (), ("/opt/claude", "-p", "go")),
        ("go", None, ("--model", "m"), ("claude", "--model", "m", "-p", "go")),
        ("-go", "c", ("--model", "m"), ("c", "--model", "m", "-p", "--", "-go")),
        ("", None, ("--resume",), ("claude", "--resume")),
    ],
)
def test_binary_and_args(prompt: str, binary: str | None, args: tuple[str, ...], argv: tuple[str, ...]) -> None:
    """The card's binary replaces the program, and its args come right after it."""
    assert build_argv(HARNESSES["claude-code"], prompt, binary, args) == argv


def test_any_harness() -> None:
    """A harness of any class will do, as long as it follows the protocol."""
    assert build_argv(_Echo(), "hi", "printf", ("x",)) == ("printf", "x", "first", "hi", "last")
