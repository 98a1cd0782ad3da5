"""The card's file at one moment: its bytes, or in one sentence why there are none to read."""

from pathlib import Path

import attrs

from agentd.card.syntax import LARGEST_CARD
from agentd.inputs.regular_file import Stat, read_regular, stat_key


@attrs.frozen(kw_only=True)
class CardFile:
    """What was found at the card's path; two that are equal had nothing written to them in between."""

    stat: Stat = ()
    data: bytes | None = attrs.field(default=None, repr=False)
    problem: str | None = None

    @property
    def missing(self) -> str | None:
        """What is missing, when there is no card in it."""
        if self.problem is not None or (self.data and not self.data.isspace()):
            return None
        return "the card is missing" if self.data is None else "the card is blank"


def read_card_file(path: Path) -> CardFile:
    """Read the card's file; what is wrong with it is in the result, never raised."""
    try:
        data, found = read_regular(path, LARGEST_CARD)
    except FileNotFoundError:
        return CardFile()
    except OSError as error:
        return CardFile(problem=f"the card cannot be read ({error.strerror})")
    return CardFile(stat=stat_key(found), data=data)
