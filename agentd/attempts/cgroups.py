"""A cgroup for each attempt, where that is possible: root with cgroup v2, or a person's own systemd."""

import logging
import os
from collections.abc import Container, Iterator
from pathlib import Path

from agentd.attempts.naming import name_of, others
from agentd.errors import cannot_look
from agentd.processes.cgroup import Cgroup, own_cgroup
from agentd.settings import Settings
from agentd.tmux.connection import Tmux

_log = logging.getLogger("agentd.attempts.launch")


class Cgroups:
    """The cgroups of the attempts of one tmux server, in the cgroup of its unit, or without one, in our own."""

    def __init__(self, settings: Settings, tmux: Tmux, instance: str) -> None:
        self._settings = settings
        self._tmux = tmux
        self._instance = f"agentd-{instance}"
        self._own = own_cgroup() if settings.tmux_unit is None else None
        self._told = False

    @property
    def _top(self) -> Path | None:
        return self._own if self._settings.tmux_unit is None else self._tmux.cgroup

    def make(self, run: str, number: int) -> Cgroup | None:
        """Make one for an attempt; None where that cannot be done, which is said once.

        Raises:
            OSError: if there is not enough of something to do it with.
        """
        top, user = self._top, self._settings.agent_user
        if top is None:
            self.tell("there is no cgroup of version 2 to make them in, or systemd does not tell of it")
            return None
        cgroup = self._at(top, run, number)
        try:
            if os.geteuid() == 0 and self._settings.tmux_unit is not None:
                Cgroup(top).own()
            cgroup.make((user.uid, user.gid) if self._settings.switch_user else None)
        except OSError as error:
            if cannot_look(error):
                raise  # in a moment it could be made
            self.tell(error)
            return None
        return cgroup

    def tell(self, error: OSError | str) -> None:
        """Say once that attempts have no cgroups, and what that means; an ordinary user mostly cannot have any."""
        if not self._told:
            level = logging.WARNING if os.geteuid() == 0 else logging.DEBUG
            _log.log(
                level,
                "attempts have no cgroups of their own (%s), so that a process which clears its environment and leaves "
                "its session and its parents outlives the stop of its agent",
                error,
            )
        self._told = True

    def find(self, run: str, number: int) -> Cgroup | None:
        """The one that a dead agentd has made for an attempt, if there is one."""
        top = self._top
        cgroup = None if top is None else self._at(top, run, number)
        return cgroup if cgroup is not None and cgroup.path.is_dir() else None

    def others(self, attempts: Container[tuple[str, int]], runs: Container[str]) -> Iterator[Cgroup]:
        """All of a dead agentd, but those of these attempts and runs.

        Raises:
            OSError: if nobody knows which there are.
        """
        top = self._top
        if top is not None and top.is_dir():
            for run, number in others(os.listdir(top), self._instance, attempts, runs):
                yield self._at(top, run, number)

    def _at(self, top: Path, run: str, number: int) -> Cgroup:
        return Cgroup(top / name_of(self._instance, run, number))
