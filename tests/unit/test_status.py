"""The status store: one direction, one revision for each change."""

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from agentd.lifecycle import State
from agentd.status import AgentStatus, DaemonStatus, StatusStore


def _status(name: str, state: State = State.WAITING) -> AgentStatus:
    return AgentStatus(
        name=name, session=name, type="native", harness="custom", wanted="running", state=state, since=1.0
    )


@pytest.fixture
def store() -> StatusStore:
    return StatusStore(DaemonStatus(started=0.0, card="/etc/stereos/jcard.toml"))


def test_empty(store: StatusStore) -> None:
    """A new store knows the daemon, no agents, and has seen no change."""
    assert (store.agents, store.revision, store.get("a")) == ((), 0, None)
    assert store.daemon.state == "running"


def test_put(store: StatusStore) -> None:
    """What was written is read, and each change is one revision."""
    store.put(_status("a"))
    store.put(_status("a", State.STARTING))
    assert store.agents == (_status("a", State.STARTING),)
    assert store.revision == 2


def test_put_the_same(store: StatusStore) -> None:
    """Writing the same again is no change."""
    store.put(_status("a"))
    store.put(_status("a"))
    store.put_daemon(attrs.evolve(store.daemon))
    assert store.revision == 1


@pytest.mark.parametrize("name", ["Coder", "coder", "CODER"])
def test_get_ignores_case(store: StatusStore, name: str) -> None:
    """An agent is found by its name in any case."""
    store.put(_status("Coder"))
    assert store.get(name) == _status("Coder")


def test_drop(store: StatusStore) -> None:
    """A dropped agent is gone, and dropping nobody is no change."""
    store.put(_status("a"))
    store.drop("a")
    assert (store.agents, store.revision) == ((), 2)
    store.drop("a")
    assert store.revision == 2


def test_order(store: StatusStore) -> None:
    """The card's order holds; names without a status are passed over, and those on their way out come last."""
    for name in ("out", "b", "a"):
        store.put(_status(name))
    store.order(["a", "missing", "b"])
    assert [status.name for status in store.agents] == ["a", "b", "out"]


def test_order_that_holds(store: StatusStore) -> None:
    """Putting agents into the order that they have is no change."""
    store.put(_status("a"))
    store.put(_status("b"))
    store.order(["a", "b"])
    assert store.revision == 2


def test_daemon(store: StatusStore) -> None:
    """A change of agentd's own status is a change like any other."""
    store.put_daemon(attrs.evolve(store.daemon, state="stopping"))
    assert (store.daemon.state, store.revision) == ("stopping", 1)


async def test_wait_for_change_that_was(store: StatusStore, autojump_clock: MockClock) -> None:
    """Who knows an old revision gets the current one at once."""
    store.put(_status("a"))
    store.put(_status("b"))
    assert await store.wait_for_change(0) == 2
    assert autojump_clock.current_time() == 0.0


async def test_wait_for_change_wakes_all(store: StatusStore, autojump_clock: MockClock) -> None:
    """A change wakes everybody who waits, at that instant."""
    woken: list[tuple[float, int]] = []

    async def wait() -> None:
        revision = await store.wait_for_change(0)
        woken.append((trio.current_time(), revision))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
            await trio.sleep(5)
            assert woken == []
            store.put(_status("a"))
    assert woken == [(5.0, 1)] * 3


async def test_no_change_wakes_nobody(store: StatusStore, autojump_clock: MockClock) -> None:
    """Writing the same again lets everybody sleep."""
    store.put(_status("a"))
    with trio.move_on_after(5) as patience:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.wait_for_change, 1)
            await wait_all_tasks_blocked()
            store.put(_status("a"))
    assert patience.cancelled_caught
