"""The shape of the package: imports go down only, pure modules stay pure, no module grows without end."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentd

_ROOT = Path(agentd.__file__).parent
_MODULES = sorted(path.stem for path in _ROOT.glob("*.py"))

# From the top to the bottom: a module imports only what stands after it. A new module gets its place here.
_ORDER = """
    __main__ cli daemon
    api api_server api_socket
    reconciler run announcer interrupt
    testing
    tmux_sessions memory attempt launch leftovers attempt_state attempt_directory session
    obstacles script lifeline terminal
    tmux tmux_socket tmux_admins tmux_unit tmux_client tmux_protocol
    processes proc_scan
    sdnotify
    inputs prompts settle watch
    sessions status plan lifecycle
    ctl ctl_client ctl_text
    resolve
    card_file secrets card card_fields card_syntax harness duration regular_file
    directories settings process_context defaults logs wording errors __init__
""".split()  # noqa: SIM905 - read as a picture

# Values and decisions: no trio, no tmux, so that agentctl and every test have them for nothing.
_PURE = """
    plan lifecycle resolve card_file secrets card card_fields card_syntax harness duration wording errors regular_file
    script terminal proc_scan tmux_protocol
    ctl ctl_client ctl_text defaults __init__
""".split()  # noqa: SIM905 - the same

_LONGEST = 420


def _imports(module: str) -> Iterator[tuple[str, str | None]]:
    """The top-level package of each import, and the module where it is one of ours; conditional imports count."""
    for node in ast.walk(ast.parse((_ROOT / f"{module}.py").read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            ours = rest.partition(".")[0]
            yield package, (ours if ours in _MODULES else "__init__") if package == "agentd" else None


@pytest.mark.parametrize("module", _MODULES)
def test_imports_go_down(module: str) -> None:
    """A module imports only modules below it in the order."""
    assert module in _ORDER, f"give {module} its place in the order"
    below = _ORDER[_ORDER.index(module) + 1 :]
    assert {name for _, name in _imports(module) if name is not None} <= set(below)


@pytest.mark.parametrize("module", sorted(set(_PURE) & set(_MODULES)))
def test_pure_modules(module: str) -> None:
    """A pure module imports neither trio nor the API's libraries, and of ours only pure ones."""
    assert not {package for package, _ in _imports(module)} & {"trio", "outcome", "hypercorn", "quart", "quart_trio"}
    assert {name for _, name in _imports(module) if name is not None} <= set(_PURE)


@pytest.mark.parametrize("module", _MODULES)
def test_length(module: str) -> None:
    """A module can be read in one sitting."""
    assert len((_ROOT / f"{module}.py").read_text().splitlines()) <= _LONGEST


def test_test_aids_stay_out() -> None:
    """Nothing that runs agentd imports the test aids."""
    assert [module for module in _MODULES if ("agentd", "testing") in set(_imports(module))] == []
