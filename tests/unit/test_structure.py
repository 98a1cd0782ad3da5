"""The shape of the package: imports go down only, pure modules stay pure, no module grows without end."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentd

_ROOT = Path(agentd.__file__).parent


def _name(path: Path) -> str:
    return ".".join(path.relative_to(_ROOT).with_suffix("").parts)


_PACKAGES = sorted(_name(path.parent) for path in _ROOT.glob("*/__init__.py"))
_MODULES = sorted({_name(path) for path in _ROOT.rglob("*.py")} - {f"{package}.__init__" for package in _PACKAGES})

# From the top to the bottom: a module imports only what stands after it. A new module gets its place here.
_ORDER = """
    __main__ cli daemon
    api.app api.server api.crowd api.socket
    reconciler run announcer interrupt looks
    testing
    attempts.tmux_sessions attempts.memory attempts.attempt attempts.launch attempts.leftovers attempts.state
    attempts.cgroups attempts.directory attempts.naming attempts.session attempts.obstacles attempts.script
    attempts.lifeline attempts.terminal
    tmux.connection tmux.later tmux.socket tmux.admins tmux.unit tmux.client tmux.protocol
    processes.ending processes.cgroup processes.shortages processes.scan
    sdnotify
    inputs.reader inputs.parsing inputs.prompts inputs.settle inputs.watch
    sessions status plan lifecycle
    ctl.commands ctl.client ctl.text
    resolve
    inputs.card_file inputs.secrets card.card card.fields card.syntax card.harness card.duration inputs.regular_file
    directories settings process_context defaults logs wording errors __init__
""".split()  # noqa: SIM905 - read as a picture

# Values and decisions: no trio, no tmux, so that agentctl and every test have them for nothing.
_PURE = """
    plan lifecycle resolve card.card card.fields card.syntax card.harness card.duration wording errors
    inputs.card_file inputs.secrets inputs.regular_file attempts.script attempts.terminal processes.scan tmux.protocol
    ctl.commands ctl.client ctl.text defaults __init__
""".split()  # noqa: SIM905 - the same

_LONGEST = 420


def _source(module: str) -> str:
    return (_ROOT / f"{module.replace('.', '/')}.py").read_text()


def _imports(module: str) -> Iterator[tuple[str, str | None]]:
    """The top-level package of each import, and the module where it is one of ours; conditional imports count."""
    for node in ast.walk(ast.parse(_source(module))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            yield package, _ours(rest) if package == "agentd" else None


def _ours(rest: str) -> str:
    """The module of which a name is, or which it is."""
    return next((module for module in _MODULES if f"{rest}.".startswith(f"{module}.")), "__init__")


@pytest.mark.parametrize("module", _MODULES)
def test_imports_go_down(module: str) -> None:
    """A module imports only modules below it in the order."""
    assert module in _ORDER, f"give {module} its place in the order"
    below = _ORDER[_ORDER.index(module) + 1 :]
    assert {name for _, name in _imports(module) if name is not None} <= set(below)


def test_order_is_of_what_there_is() -> None:
    """The order names every module once, and nothing else."""
    assert sorted(_ORDER) == _MODULES


def test_design_has_every_module() -> None:
    """docs/design.md says of every module what is there, once."""
    design = (Path(__file__).parents[2] / "docs" / "design.md").read_text()
    table = design.partition("| where |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (?:`(\w+)/`: )?((?:`\w+`(?:, )?)+) \|", table, flags=re.MULTILINE)
    told = [f"{folder}.{name}".lstrip(".") for folder, names in rows for name in re.findall(r"`(\w+)`", names)]
    assert sorted(told) == sorted({*_MODULES} - {"__init__", "__main__"})


@pytest.mark.parametrize("package", _PACKAGES)
def test_packages_are_folders(package: str) -> None:
    """A package's own file says what is in it, and nothing more: what is imported is a module."""
    tree = ast.parse(_source(f"{package}.__init__"))
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


@pytest.mark.parametrize("module", _PURE)
def test_pure_modules(module: str) -> None:
    """A pure module imports neither trio nor the API's libraries, and of ours only pure ones."""
    assert not {package for package, _ in _imports(module)} & {"trio", "outcome", "hypercorn", "quart", "quart_trio"}
    assert {name for _, name in _imports(module) if name is not None} <= set(_PURE)


@pytest.mark.parametrize("module", _MODULES)
def test_length(module: str) -> None:
    """A module can be read in one sitting."""
    assert len(_source(module).splitlines()) <= _LONGEST


def test_test_aids_stay_out() -> None:
    """Nothing that runs agentd imports the test aids."""
    assert [module for module in _MODULES if ("agentd", "testing") in set(_imports(module))] == []
