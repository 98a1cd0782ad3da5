"""Cards that take their parser long: in the real time of real threads, since that is what they are about."""

import threading
import time

import pytest
import trio

import agentd.inputs.parsing
from agentd.card.card import Card
from agentd.errors import CardError
from agentd.inputs.parsing import _is_quick, parse

# An interruption that comes while the garbage collector has something finalised ends that, and is told to nobody else.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

_DEEP = "a." * 40
_FOR_EVER = f"{_DEEP}b = 1\n{_DEEP}c = 1\n".encode()
_AGENT = '[[agents]]\nharness = "custom"\n'
_DUPLICATE = "\nz = 1\nz = 1\n"


def _up_to(size: int, unit: str, end: str = "") -> bytes:
    return (unit * ((size - len(end)) // len(unit)) + end).encode()


async def test_card_that_takes_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small card at which tomlkit never ends is refused when its time is over, and the others go on meanwhile."""
    monkeypatch.setattr(agentd.inputs.parsing, "_LONGEST", 0.3)
    longest = 0.0
    threads = threading.active_count()

    async def live() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await trio.sleep(0.01)
            longest = max(longest, time.monotonic() - began)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live)
            parsed = await parse(_FOR_EVER)
            nursery.cancel_scope.cancel()
        assert isinstance(parsed, CardError)
        assert str(parsed) == "card: it takes longer than 0.3 s to be read; write fewer dotted keys and tables"
        assert longest < 0.3
        # The thread is free for others, and nothing of the interruption comes after.
        for _ in range(20):
            assert isinstance(await parse(_AGENT.encode() + b"#" * 5000), Card)
        assert threading.active_count() <= threads + 1


async def test_interruption_that_gets_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser that is interrupted just when garbage is finalised, where exceptions are lost, is interrupted again."""
    monkeypatch.setattr(agentd.inputs.parsing, "_LONGEST", 0.1)
    monkeypatch.setattr(agentd.inputs.parsing, "_PAUSE", 0.1)
    lost = threading.Event()

    class Garbage:
        def __del__(self) -> None:
            try:
                while True:
                    pass
            finally:
                lost.set()

    def parse_for_ever(data: bytes) -> Card:
        Garbage()
        while True:
            pass

    monkeypatch.setattr(agentd.inputs.parsing, "parse_card", parse_for_ever)
    with trio.fail_after(10):
        assert isinstance(await parse(_FOR_EVER), CardError)
    assert lost.is_set()


@pytest.mark.parametrize("late", [0.0, 0.0001, 0.001])
async def test_interruption_that_comes_too_late(monkeypatch: pytest.MonkeyPatch, late: float) -> None:
    """A card that is read just when its time is over is the card, or refused, and never ends anything else."""
    monkeypatch.setattr(agentd.inputs.parsing, "_LONGEST", late)
    card = f"{_AGENT}#{'.' * 30}".encode()
    with trio.fail_after(30):
        for _ in range(50):
            assert isinstance(await parse(card), Card | CardError)


@pytest.mark.parametrize(
    "unit",
    [
        "a={a=1}\n",
        "[a]\n[b]\n",
        "[[a]]\n[[a.b]]\n",
        "[[a]]\n",
        "#\n",
        "[" * 90 + "]" * 90 + ",\n",
        "\n",
        _AGENT,
        "\r\n",
    ],
)
@pytest.mark.parametrize("end", ["", _DUPLICATE, "\n="])
def test_quick_cards_are_quick(unit: str, end: str) -> None:
    """What is parsed among the other tasks takes a fraction of a second, however hostile it is."""
    card = _up_to(2048, unit, end)
    while card.count(b".") > 20:
        card = _up_to(len(card) - 100, unit, end)
    assert _is_quick(card)
    began = time.thread_time()
    agentd.inputs.parsing._parse(card)
    assert time.thread_time() - began < 0.5


@pytest.mark.parametrize("card", [_FOR_EVER, b"a.b.c.d.e=1", b"#" * 2049, b"a.b=1\n" * 21])
def test_other_cards_are_not(card: bytes) -> None:
    """What is long or has many dots is for a thread."""
    assert not _is_quick(card)
