"""A kernel that has not enough of something just at one call: a test tries every call in its turn."""

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

TAKING = ((os, "open"), (os, "pidfd_open"), (os, "listdir"), (os, "scandir"), (select, "epoll"))
"""What takes a descriptor."""
WRITING = (
    *(
        (os, "open"),
        (os, "mkdir"),
        (os, "mkfifo"),
        (os, "unlink"),
        (os, "rmdir"),
        (os, "replace"),
        (os, "rename"),
        (os, "chmod"),
    ),
    *((os, "chown"), (os, "fchown")),
)
"""What changes a file system."""


class Faults:
    """Counts these calls of the main thread, and has some of them fail."""

    def __init__(self, patch: pytest.MonkeyPatch, calls: tuple[tuple[Any, str], ...], error: int) -> None:
        self._error = error
        self._failing = range(0)
        self._count = -1
        self.hit = False
        """Whether one has failed."""
        for module, name in calls:
            patch.setattr(module, name, self._counting(getattr(module, name)))

    @contextmanager
    def at(self, first: int, number: int = 1) -> Iterator[None]:
        """Have so many calls fail, the first of them after so many that do not."""
        self._count, self._failing, self.hit = 0, range(first, first + number), False
        try:
            yield
        finally:
            self._count = -1

    def _counting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **keys: Any) -> Any:
            if self._count >= 0 and threading.current_thread() is threading.main_thread():
                self._count += 1
                if self._count - 1 in self._failing:
                    self.hit = True
                    raise OSError(self._error, os.strerror(self._error))
            return call(*args, **keys)

        return counting
