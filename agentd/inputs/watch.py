"""What changes between two looks: inotify on the directories of the card, the secrets and the prompt files.

Directories, not files: who replaces a file by a rename, or switches a symlink on the way to it, changes a directory.
"""

import errno
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

import attrs
import trio
from inotify_simple import INotify, flags

QUIET: Final = 0.3
"""Seconds without an event after which a path has settled."""
_RESTLESS: Final = 2.0
"""Seconds without a quiet moment after which that is worth being told."""
_TOGETHER: Final = 0.3
"""Seconds for which a path that has settled waits for others that have not: these may never."""
_PAUSE: Final = 0.05
"""Seconds between two readings of events: a busy directory wakes agentd so often and not more."""
_FLOOD: Final = 2000
_LONG_PAUSE: Final = 0.5
"""Seconds after so many events at once: to read them all would cost half a core, and the kernel drops the rest."""
_RETRY: Final = 5.0
_MOST_LINKS: Final = 40
"""The kernel's own limit on the symlinks of one path (MAXSYMLINKS)."""

_CHANGES: Final = (
    *(flags.MODIFY, flags.CLOSE_WRITE, flags.ATTRIB, flags.CREATE, flags.DELETE, flags.MOVED_FROM, flags.MOVED_TO),
    *(flags.DELETE_SELF, flags.MOVE_SELF),
)
# The agent user may own a directory, and put a symlink in its place.
_MASK: Final = sum((*_CHANGES, flags.EXCL_UNLINK, flags.ONLYDIR, flags.DONT_FOLLOW))

_log = logging.getLogger("agentd.inputs.watch")

_Place = tuple[str, str]
"""A directory without a symlink in its path, and the name of an entry of it."""


@attrs.frozen
class Trail:
    """Whatever decides what is at a path: the entries on the way to it, and what the path is in the end."""

    places: tuple[_Place, ...]
    end: str | None
    """The path without symlinks; None when there is nothing at it."""


def trail(path: str) -> Trail:
    """Follow an absolute path: its symlinks, wherever they stand, and its last entry, or the first missing."""
    places: list[_Place] = []
    here, rest = "/", [name for name in reversed(path.split("/")) if name]
    while rest:
        name = rest.pop()
        if name in {".", ".."}:
            here = os.path.normpath(os.path.join(here, name))
            continue
        entry = os.path.join(here, name)
        try:
            target = os.readlink(entry)
        except OSError as error:
            missing = error.errno != errno.EINVAL  # which says that it is there and no symlink
            if missing or not rest:
                places.append((here, name))
            if missing:
                return Trail(tuple(places), None)
            here = entry
            continue
        places.append((here, name))
        if len(places) > _MOST_LINKS:
            return Trail(tuple(places), None)
        here = "/" if target.startswith("/") else here
        rest += [name for name in reversed(target.split("/")) if name]
    return Trail(tuple(places), here)


@attrs.frozen(kw_only=True)
class _Stir:
    """What is known of a path that changes: when it will be quiet, unless there is more, and when that is too late."""

    restless_at: float
    quiet_at: float = math.inf
    told: bool = False


class Watch:
    """Knows which of the followed paths change right now, and knocks when one has settled.

    Until it works, and wherever the kernel cannot watch, nothing is known to change: the tick finds it all the same.
    """

    def __init__(self) -> None:
        self.warnings: tuple[str, ...] = ()
        """What keeps the kernel from watching."""
        self._about: Mapping[_Place, frozenset[str]] = {}
        self._followed: Mapping[str, str] = {}
        self._stirring: dict[str, _Stir] = {}
        self._settled_at: float | None = None
        self._kernel: INotify | None = None
        self._watched: dict[str, int] = {}
        self._knock: Callable[[], None] = lambda: None

    def is_quiet(self, path: str) -> bool:
        """Whether there was no event about a path for 0.3 s."""
        return path not in self._stirring

    def is_restless(self, path: str) -> bool:
        """Whether a path has not been quiet for 2 s."""
        return path in self._stirring and self._stirring[path].restless_at <= trio.current_time()

    def follow(self, files: Iterable[str], directory: str) -> None:
        """From now on follow these files, and all entries of a directory, wherever their symlinks lead by now."""
        about: dict[_Place, set[str]] = {}
        trails = {path: trail(path) for path in (*files, directory)}
        for path, found in trails.items():
            for place in found.places:
                about.setdefault(place, set()).add(path)
        end = trails[directory].end
        self._about = {place: frozenset(paths) for place, paths in about.items()}
        self._followed = {} if end is None else {end: directory}
        self._watch_directories()

    async def work(self, knock: Callable[[], None]) -> None:
        """Read the kernel's events for ever, and knock for every path that has settled after one."""
        while True:
            try:
                kernel = INotify(nonblocking=True)
            except OSError as error:
                self._warn(error, "fs.inotify.max_user_instances, or agentd's own limit of open files")
                await trio.sleep(_RETRY)
                continue
            with kernel:
                await self._read_all(kernel, knock)

    async def _read_all(self, kernel: INotify, knock: Callable[[], None]) -> None:
        self._kernel, self._knock = kernel, knock
        try:
            self._watch_directories()
            while True:
                with trio.move_on_at(self._next_knock()):
                    await trio.lowlevel.wait_readable(kernel)
                    events = self._note(kernel)
                    await trio.sleep(_PAUSE if events < _FLOOD else _LONG_PAUSE)
                self._note_quiet()
        finally:
            self._kernel, self._knock, self._stirring, self._settled_at = None, lambda: None, {}, None

    def _note(self, kernel: INotify) -> int:
        """Note what the kernel tells, and return how many events that were."""
        now = trio.current_time()
        directories: dict[int, list[str]] = {}
        for directory, descriptor in self._watched.items():
            directories.setdefault(descriptor, []).append(directory)
        events = kernel.read(timeout=0)
        # Of the events of a flood most are the same.
        for descriptor, mask, name in {(event.wd, event.mask, event.name) for event in events}:
            if mask & flags.Q_OVERFLOW and self._settled_at is None:
                # Nobody knows what is lost, nor whether it was about us; the two equal reads of a look must do.
                self._settled_at = now
            for directory in directories.get(descriptor, ()):
                for path in self._changed(directory, name):
                    stir = self._stirring.get(path) or _Stir(restless_at=now + _RESTLESS)
                    self._stirring[path] = attrs.evolve(stir, quiet_at=now + QUIET)
        return len(events)

    def _changed(self, directory: str, name: str) -> Iterable[str]:
        """The paths that an event is about; without a name it is about the directory itself."""
        if not name:
            yield from (path for place, paths in self._about.items() if place[0] == directory for path in paths)
            yield from (path for end, path in self._followed.items() if end == directory)
            return
        yield from self._about.get((directory, name), ())
        if directory in self._followed:
            yield os.path.join(self._followed[directory], name)

    def _next_knock(self) -> float:
        """When there may be something to knock for, unless there are events before that."""
        together = math.inf if self._settled_at is None else self._settled_at + _TOGETHER
        untold = (stir.restless_at for stir in self._stirring.values() if not stir.told)
        return min(*(stir.quiet_at for stir in self._stirring.values()), *untold, together, math.inf)

    def _note_quiet(self) -> None:
        now = trio.current_time()
        settled = [path for path, stir in self._stirring.items() if stir.quiet_at <= now]
        for path in settled:
            del self._stirring[path]
            _log.debug("%s changed, and has settled", path)
        if settled and self._settled_at is None:
            self._settled_at = now
        restless = [path for path, stir in self._stirring.items() if stir.restless_at <= now and not stir.told]
        for path in restless:
            self._stirring[path] = attrs.evolve(self._stirring[path], told=True)
        # Who writes a card and its secrets one after the other wants them taken in one go.
        waited = self._settled_at is not None and (not self._stirring or now >= self._settled_at + _TOGETHER)
        if waited or restless:
            self._settled_at = None
            self._knock()

    def _watch_directories(self) -> None:
        if self._kernel is None:
            return
        self.warnings = ()
        before, self._watched = self._watched, {}
        for directory in {place[0] for place in self._about} | self._followed.keys():
            self._watch_directory(self._kernel, directory)
        for descriptor in set(before.values()) - set(self._watched.values()):
            with suppress(OSError):  # the directory went, and its watch with it
                self._kernel.rm_watch(descriptor)
        if set(self._watched.values()) - set(before.values()):
            # What changed after it was read, and before it was watched, nobody will tell.
            self._knock()

    def _watch_directory(self, kernel: INotify, directory: str) -> None:
        try:
            self._watched[directory] = kernel.add_watch(directory, _MASK)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._warn(error, "fs.inotify.max_user_watches")

    def _warn(self, error: OSError, limit: str) -> None:
        found = f"inotify fails ({error.strerror}): raise {limit}"
        self.warnings = (f"{found}; until then changes are found by looking every few seconds",)
