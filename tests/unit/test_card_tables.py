"""Which tables of a card are agents, and what is said of those that were only meant to be."""

import pytest

from agentd.card.card import parse_card
from agentd.errors import CardError

BAD = 'harness = "custom"\nrestart = "x"\n'
FAULT = 'restart: "x" is not one of no, on-failure, always'
NOT_TABLE = "agent: expected a table, found an array; write [agent] for one agent, or [[agents]] for each of several"
NOT_ARRAY = "agents: expected an array of tables, found a table; write [[agents]] for each"
SMALL = "only small letters are read; write [agent] or [[agents]]"


@pytest.mark.parametrize(
    ("card", "problems"),
    [
        (f"[[agents]]\n{BAD}[[agents]]\n{BAD}", [f"agents[0].{FAULT}", f"agents[1].{FAULT}"]),
        (
            f"[[agent]]\n{BAD}[[agent]]\n{BAD}",
            [
                NOT_TABLE,
                f"agent[0].{FAULT}",
                f"agent[1].{FAULT}",
            ],
        ),
        (f"[agents]\n{BAD}", [NOT_ARRAY, f"agents.{FAULT}"]),
        (f'[agents.a]\n{BAD}[agents."b c"]\n{BAD}', [NOT_ARRAY, f"agents.a.{FAULT}", f'agents."b c".{FAULT}']),
        (
            f"[agent]\n{BAD}[[agents]]\n{BAD}",
            [
                "agents: the card has [agent] too; write every agent as an entry of [[agents]]",
                f"agent.{FAULT}",
                f"agents[0].{FAULT}",
            ],
        ),
        (
            'agents = [1, { harness = "custom", restart = "x" }]',
            ["agents[0]: expected a table, found the integer 1; write [[agents]] for each", f"agents[1].{FAULT}"],
        ),
        ('[Agent]\nharness = "custom"\n', [f"Agent: {SMALL}"]),
        ('[[AGENTS]]\nharness = "custom"\n', [f"AGENTS: {SMALL}"]),
    ],
)
def test_what_is_wrong_with_the_table_and_in_it(card: str, problems: list[str]) -> None:
    """A table of the wrong kind or in capitals is refused, and what is wrong in it is told at the same time."""
    with pytest.raises(CardError) as caught:
        parse_card(card.encode())
    assert str(caught.value).splitlines() == problems


@pytest.mark.parametrize(
    ("card", "warnings"),
    [
        (
            '[[agnets]]\nharness = "custom"\n',
            ('agnets: not read, and the card has no agents; did you mean "agents"?',),
        ),
        ("[resources]\ncpus = 1\n", ()),
        ("agents = []\n[Agents]\n[agnets]\n", ()),
        ('[agent]\nharness = "custom"\n[agnets]\n', ()),
    ],
)
def test_a_table_that_may_be_meant(card: str, warnings: tuple[str, ...]) -> None:
    """In a card without agents, a table with a name like theirs is a warning; beside agents it is somebody else's."""
    assert parse_card(card.encode()).warnings == warnings
