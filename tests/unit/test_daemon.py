"""The pieces of the daemon that can be tested without it."""

from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from agentd.daemon import _Orders
from agentd.status import DaemonStatus, StatusStore
from tests.settings import settings_below


@pytest.mark.parametrize("bug", [False, True])
async def test_stop_is_noted(tmp_path: Path, bug: bool) -> None:
    """That agentd stops is published as soon as the agents are cancelled, by an order or by a bug, and not before."""
    store = StatusStore(DaemonStatus(started=0.0, card="/etc/stereos/jcard.toml"))
    orders = _Orders(store, settings_below(tmp_path))
    seen = []

    async def stop_slowly() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
                seen.append(orders.store.daemon.state)

    async def fail() -> None:
        await wait_all_tasks_blocked()
        seen.append(orders.store.daemon.state)
        if bug:
            raise ZeroDivisionError
        await orders.stop()

    try:
        with orders.agents:
            async with trio.open_nursery() as agents:
                for task in (stop_slowly, orders.note_stop, fail):
                    agents.start_soon(task)
    except* ZeroDivisionError:
        assert bug
    assert seen == ["running", "stopping"]
