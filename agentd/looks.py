"""Looks at the world, as those know of them who wait for the next one."""

import trio


class Looks:
    """Tells those who wait that the reconciler has looked at the world again."""

    def __init__(self) -> None:
        self._looked = trio.Event()

    def ring(self) -> None:
        """Wake all who wait now."""
        self._looked.set()
        self._looked = trio.Event()

    async def next(self) -> None:
        """Wait for the next look."""
        await self._looked.wait()
