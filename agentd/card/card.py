"""The card: `jcard.toml` read into frozen agents, every mistake in it reported at once.

An agent without a name is called after its harness: `claude-code`, or `claude-code-0`, `claude-code-1`, … when the
card has several such agents. An agent with more than one replica is numbered likewise, its session too: `rev-0`, ….
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import count
from types import MappingProxyType
from typing import Any, Literal

import attrs

from agentd.card.fields import FIELDS, MOST_AGENTS, SANDBOX_FIELDS, Place, session_fault, session_name
from agentd.card.harness import HARNESSES
from agentd.card.syntax import parse_toml
from agentd.errors import CardError, Problem
from agentd.wording import described, nearest, quoted

_TABLES = ("agent", "agents")


def _frozen_mapping(value: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(value))


@attrs.frozen(kw_only=True)
class Agent:
    """One entry of the card after defaults, replicas and names. Durations are seconds."""

    name: str
    harness: str
    session: str
    type: Literal["native", "sandboxed"] = "native"
    prompt: str = attrs.field(default="", repr=False)
    prompt_file: str | None = None
    """Wins over `prompt`."""
    workdir: str | None = None
    restart: Literal["no", "on-failure", "always"] = "no"
    max_restarts: int = 0
    restart_delay_max: float = 3.0
    timeout: float | None = None
    grace_period: float = 30.0
    env: Mapping[str, str] = attrs.field(factory=dict, converter=_frozen_mapping, repr=False)
    binary: str | None = None
    args: tuple[str, ...] = ()
    memory: str | None = None
    pid_limit: int | None = None
    extra_packages: tuple[str, ...] = ()


@attrs.frozen
class Card:
    """A valid card: the agents that it wants, and what an operator should know about it."""

    agents: tuple[Agent, ...]
    warnings: tuple[str, ...] = ()


@attrs.frozen(eq=False)
class _Entry:
    """One `[agent]` or `[[agents]]` of the card: the values that were fine, and what is wrong with the others."""

    place: Place
    keys: frozenset[str]
    values: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def replicas(self) -> int:
        replicas: int = self.values.get("replicas", 1)
        return replicas

    @property
    def unnamed_harness(self) -> str | None:
        """The harness that this entry is called after, unless it has a name, or neither."""
        return None if "name" in self.keys else self.values.get("harness")


@attrs.frozen
class _Named:
    """One agent to be of an entry."""

    entry: _Entry
    name: str
    session: str


def parse_card(data: bytes) -> Card:
    """Read a card, or raise CardError with every problem in it; whatever is not about agents is ignored."""
    problems: list[Problem] = []
    document = parse_toml(data)
    misspelt = _misspelt(document, problems)
    entries = [_read(path, table) for path, table in _tables(document, problems)]
    wanted = sum(entry.replicas for entry in entries)
    named: list[_Named] = []
    if wanted > MOST_AGENTS:
        problems.append(Problem("agents", f"{wanted} agents are more than the {MOST_AGENTS} that a card may have"))
    else:
        named = list(_with_names(entries))
        _check_names(named)
    problems += [problem for entry in entries for problem in entry.place.problems]
    warnings = misspelt + tuple(warning for entry in entries for warning in entry.warnings)
    if problems:
        raise CardError(tuple(problems), warnings)
    return Card(agents=tuple(_agent(one) for one in named), warnings=warnings)


def _agent(named: _Named) -> Agent:
    values = {key: value for key, value in named.entry.values.items() if key != "replicas"}
    return Agent(**{**values, "name": named.name, "session": named.session})


def _tables(document: Mapping[str, object], problems: list[Problem]) -> Iterator[tuple[str, dict[str, object]]]:
    """Find the agents' tables, under the one of the two spellings that the card uses."""
    if "agent" in document and "agents" in document:
        problems.append(Problem("agents", "the card has [agent] too; write every agent as an entry of [[agents]]"))
    if "agent" in document:
        agent = document["agent"]
        if not isinstance(agent, dict):
            advice = "write [agent] for one agent, or [[agents]] for each of several"
            problems.append(Problem("agent", f"expected a table, found {described(agent, secret=True)}; {advice}"))
        yield from _tables_in("agent", agent)
    if "agents" in document:
        agents = document["agents"]
        if not isinstance(agents, list):
            found = described(agents, secret=True)
            problems.append(Problem("agents", f"expected an array of tables, found {found}; write [[agents]] for each"))
        for index, item in enumerate(agents if isinstance(agents, list) else ()):
            if not isinstance(item, dict):
                found = described(item, secret=True)
                text = f"expected a table, found {found}; write [[agents]] for each"
                problems.append(Problem(f"agents[{index}]", text))
        yield from _tables_in("agents", agents)


def _tables_in(path: str, value: object) -> Iterator[tuple[str, dict[str, object]]]:
    """The tables of agents that somebody meant, whether he wrote one table, several, or one for each name."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, dict):
                yield f"{path}[{index}]", item
    elif isinstance(value, dict):
        named = {key: item for key, item in value.items() if isinstance(item, dict) and key not in FIELDS}
        if path == "agent" or len(named) < len(value) or not value:
            yield path, value
        else:
            for key, item in named.items():
                yield Place(path, []).at(key).path, item


def _misspelt(document: Mapping[str, object], problems: list[Problem]) -> tuple[str, ...]:
    """Refuse what can only be the agents' table; warn of what may be it. Without this a typo would end every agent."""
    warnings = []
    for key in document if not {"agent", "agents"} & document.keys() else ():
        place = Place("", []).at(key).path.removeprefix(".")
        if key.casefold() in {"agent", "agents"}:
            problems.append(Problem(place, "only small letters are read; write [agent] or [[agents]]"))
        elif suggestion := nearest(key, _TABLES):
            warnings.append(f"{place}: not read, and the card has no agents{suggestion}")
    return tuple(warnings)


def _read(path: str, table: Mapping[str, object]) -> _Entry:
    place = Place(path, [])
    values: dict[str, Any] = {}
    warnings = []
    for key, value in table.items():
        at = place.at(key)
        check = FIELDS.get(key)
        if check is None:
            warnings.append(f"{at.path}: unknown key, ignored{nearest(key, FIELDS)}")
            continue
        before = len(place.problems)
        checked = check(at, value)
        if len(place.problems) == before:
            values[key] = checked
    warnings += [
        f"{place.at('env').at(name).path}: a variable, and not the agent's {name}, which stands above its env table"
        for name in values.get("env", ())
        if name in FIELDS
    ]
    if "harness" not in table:
        place.at("harness").refuse(f"missing; write one of {', '.join(HARNESSES)}")
    if values.get("type", "native") == "native":
        warnings += [
            f'{place.at(key).path}: only for type = "sandboxed", ignored' for key in SANDBOX_FIELDS if key in values
        ]
    return _Entry(place, frozenset(table), values, tuple(warnings))


def _with_names(entries: list[_Entry]) -> Iterator[_Named]:
    """Give each agent its name and session; an entry whose own name or harness was refused has none."""
    several = Counter[str]()
    for entry in entries:
        if harness := entry.unnamed_harness:
            several[harness] += entry.replicas
    numbers = {harness: count() for harness in several}
    for entry in entries:
        for index in range(entry.replicas):
            if harness := entry.unnamed_harness:
                name = harness if several[harness] == 1 else f"{harness}-{next(numbers[harness])}"
            elif "name" in entry.values:
                name = entry.values["name"] + (f"-{index}" if entry.replicas > 1 else "")
            else:
                break
            session = entry.values.get("session")
            if session is None:
                session = session_name(name)
            elif entry.replicas > 1:
                session = f"{session}-{index}"
            yield _Named(entry, name, session)


def _check_names(named: list[_Named]) -> None:
    """Refuse the names and sessions that two agents would share; an entry is told once of each."""
    names: dict[str, _Named] = {}
    sessions: dict[str, _Named] = {}
    told: set[str] = set()

    def refuse(one: _Named, key: str, fault: str, more: str = "") -> None:
        place = one.entry.place.at(key)
        if place.path not in told:
            told.add(place.path)
            place.refuse(f"{fault}; choose another {key}{more}")

    for one in named:
        holder = names.setdefault(one.name.casefold(), one)
        if holder is not one:
            refuse(one, "name", f"{quoted(one.name)} is already the name of {holder.entry.place.path} (case aside)")
        explicit = "session" in one.entry.values
        if not explicit and (holder is not one or "session" in one.entry.keys):
            continue
        holder = sessions.setdefault(one.session, one)
        if not explicit and (reason := session_fault(one.session)):
            fault = f"{quoted(one.name)} cannot name its session: {reason}"
            refuse(one, "name", fault, ", or give the agent a session")
        elif holder is not one:
            found = f"{quoted(one.session)} is already the session of {holder.entry.place.path}"
            refuse(one, "session", f"{found} (. and : become _)")
