"""The real agentd, which kills itself as `kill -9` would, at its n-th step: `python killed.py N FLAGS...`.

Steps are what it does to the world, or hears of it, each before and after: commands to tmux, notes, files of attempts,
words on lifelines, signals, looks at all processes. It runs as a program of its own, and imports nothing of the tests.
"""

import inspect
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from agentd import cli
from agentd.attempts.directory import AttemptDirectory
from agentd.attempts.lifeline import Lifeline
from agentd.attempts.memory import Memory
from agentd.processes.ending import Scanner
from agentd.tmux.connection import Tmux

_HOOKED = (
    (Tmux, ("command",)),
    (Memory, ("write", "forget")),
    (Path, ("replace",)),
    (AttemptDirectory, ("write", "reopen", "withdraw_script", "remove")),
    (Lifeline, ("line",)),
    (Scanner, ("scan",)),
    (signal, ("pidfd_send_signal",)),
)


class _Steps:
    def __init__(self, last: int) -> None:
        self._left = last

    def take(self, what: str) -> None:
        self._left -= 1
        if self._left == 0:
            os.write(2, f"killed {what}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(self, owner: Any, name: str) -> None:
        """Count the calls of a function, and their returns."""
        real = getattr(owner, name)

        def said(args: tuple[Any, ...]) -> str:
            words = [word for word in args if isinstance(word, str)][:1]
            return " ".join((name, *words))

        if inspect.iscoroutinefunction(real):

            async def hooked_async(*args: Any, **keys: Any) -> Any:
                self.take(f"before {said(args)}")
                result = await real(*args, **keys)
                self.take(f"after {said(args)}")
                return result

            setattr(owner, name, hooked_async)
        else:

            def hooked(*args: Any, **keys: Any) -> Any:
                self.take(f"before {said(args)}")
                result = real(*args, **keys)
                self.take(f"after {said(args)}")
                return result

            setattr(owner, name, hooked)


def _main() -> NoReturn:
    steps = _Steps(int(sys.argv.pop(1)))
    for owner, names in _HOOKED:
        for name in names:
            steps.hook(owner, name)
    cli.run()


if __name__ == "__main__":
    _main()
