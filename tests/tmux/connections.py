"""Waiting for the end of a connection to tmux and for the next one, which nothing but a test has to."""

import trio

from agentd.tmux.connection import Tmux


def generation(tmux: Tmux) -> int:
    """How many connections there have been, the present one included."""
    return tmux._generation


async def lost(tmux: Tmux, number: int) -> None:
    """Wait until the connection of that number is gone."""
    with trio.fail_after(10):
        if tmux._client is not None and tmux._generation == number:
            await tmux._client.lost.wait()


async def reconnected(tmux: Tmux, number: int) -> None:
    """Wait until the one after the connection of that number is there."""
    await lost(tmux, number)
    with trio.fail_after(10):
        await tmux._wait_client()
    assert tmux._generation == number + 1
