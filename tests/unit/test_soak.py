"""The soak's own judgement: what it takes for a mishap, and what for a cause."""

import time
from pathlib import Path

import pytest

from tests.soak.fleet import Slot
from tests.soak.ledger import Touch
from tests.soak.records import Records, Start, against_policy, unexplained
from tests.soak.report import BEGIN, END, write_into

_NOW = time.time()
_SIGN = "v1/go/a/b"
_GONE = 2**22 + 1  # no pid is as large


def _start(at: float, sign: str = _SIGN, **more: object) -> Start:
    start = Start("a", _GONE, 1, _NOW + at, sign, "i/r/1", deaf_to_hup=False)
    for key, value in more.items():
        setattr(start, key, value)
    return start


def _found(*starts: Start, touches: tuple[Touch, ...] = (), slot: Slot | None = None, sign: str = _SIGN) -> int:
    return len(unexplained(Records({"a": list(starts)}), {"a": slot or Slot("a")}, {"a": sign}, touches))


def _touch(what: str, begin: float, end: float, name: str = "") -> Touch:
    return Touch(what, name, _NOW + begin, _NOW + end)


def test_an_end_without_a_cause() -> None:
    """An agent that ends, or is started anew, although nobody touched it, is told."""
    assert _found(_start(-100)) == 1
    assert _found(_start(-100), _start(-50)) == 2
    assert _found(_start(-100, heard={"HUP": _NOW - 50}), _start(-50, exit=0)) == 1
    assert _found(_start(-100), _start(-50), sign="v2/go/a/b") == 1, "only the second was edited"


@pytest.mark.parametrize(
    "touch",
    [
        _touch("stop", -60, -55),
        _touch("killed", -60, -60, "a"),
        _touch("tmux", -101, -99),
        _touch("hangup", -101, -99, "a"),
    ],
)
def test_a_cause(touch: Touch) -> None:
    """What was done to an agent explains its end; what was done to another, or after that, does not."""
    before, after = _start(-100), _start(-50, exit=0)
    assert _found(before, after, touches=(touch,)) == 0
    assert _found(before, after, touches=(Touch(touch.what, "b", touch.begin, touch.end),)) == 1
    assert _found(before, after, touches=(Touch(touch.what, touch.name, _NOW - 40, _NOW - 39),)) == 1


def test_a_disturbed_tmux_is_no_cause() -> None:
    """What happened to tmux while an agent was running for long ends nobody who does not hear of it."""
    for what in ("tmux", "hangup"):
        assert _found(_start(-100), _start(-50, exit=0), touches=(_touch(what, -60, -58),)) == 1
    assert _found(_start(-100, heard={"HUP": _NOW - 59}), touches=(_touch("hangup", -60, -58),)) == 0


def test_its_own_ends_and_edits_are_causes() -> None:
    """An end of its own, an edit, a removal and a timeout are causes."""
    assert _found(_start(-100, exit=1), _start(-50, exit=0)) == 0
    assert _found(_start(-100, sign="v0/go/a/b"), _start(-50, exit=0)) == 0
    assert _found(_start(-100), sign="v2/go/a/b") == 0
    assert _found(_start(-100), slot=Slot("a", timeout=4.0)) == 0
    assert unexplained(Records({"a": [_start(-100)]}), {}, {}, ()) == []


@pytest.mark.parametrize(("restart", "code", "wrong"), [("no", 3, 1), ("on-failure", 0, 1), ("on-failure", 3, 0)])
def test_starts_against_the_policy(restart: str, code: int, wrong: int) -> None:
    """A second start that the policy does not allow is told, unless agentd was stopped cleanly in between."""
    records = Records({"a": [_start(-100, exit=code), _start(-50, exit=code)]})
    wanted, signs = {"a": Slot("a", restart=restart)}, {"a": _SIGN}
    assert len(against_policy(records, wanted, signs, ())) == wrong
    assert against_policy(records, wanted, signs, [_touch("stop", -80, -70)]) == []


def test_the_place_in_the_page(tmp_path: Path) -> None:
    """The tables replace what is between the marks of a page, as often as asked, and nothing else."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for text in ("one", "two"):
        write_into(page, text)
    assert page.read_text() == f"before\n{BEGIN}\n\ntwo\n\n{END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no place"):
        write_into(page, "three")
