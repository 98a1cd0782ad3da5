"""What attempts on real tmux share, and what is known of one of them: its launch finds it out, its end needs it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from agentd.attempts import session
from agentd.attempts.cgroups import Cgroups
from agentd.attempts.directory import AttemptDirectory
from agentd.attempts.lifeline import Lifeline
from agentd.attempts.obstacles import Obstacles
from agentd.processes.cgroup import Cgroup
from agentd.processes.ending import Footprint, Scanner
from agentd.processes.scan import Stat, read_stat, read_uid
from agentd.settings import Settings
from agentd.tmux.connection import Tmux


@attrs.frozen(kw_only=True)
class World:
    """What the attempts of one agentd share."""

    settings: Settings
    tmux: Tmux
    scanner: Scanner
    wall: Callable[[], float]
    instance: str
    """The same for every agentd that serves this tmux socket, so that the next one knows what this one started."""
    cgroups: Cgroups
    obstacles: Obstacles = attrs.field(factory=Obstacles)
    unended: set[str] = attrs.field(factory=set)
    """Runs that are over, and may have a session still: tmux did not answer."""
    untouchable: set[str] = attrs.field(factory=set)
    """Runs that another version of agentd has left: their sessions are nobody's here."""


@attrs.define(kw_only=True)
class AttemptState:
    """What is known of one attempt."""

    tag: str
    directory: AttemptDirectory
    place: session.Place | None = None
    certain: bool = True
    """Whether tmux answered all that was asked of the place."""
    leftover: session.Found | None = None
    """A session that is in the way and is being ended."""
    cgroup: Cgroup | None = None
    lifeline: Lifeline | None = None
    typed: bool = False
    """Whether something may come of the attempt: its shell was told to start it."""
    accounted: bool = False
    """Whether it is known what the shell made of that."""
    swept: bool = False
    """Whether nothing of it is left, and nothing can come: what is in its shell from now on is an admin's."""
    launcher: int | None = None
    launcher_ticks: int | None = None
    harness: int | None = None
    started: float = 0.0
    """On trio's clock."""
    tree: frozenset[tuple[int, int]] = frozenset()

    def footprint(self, *, keep_shell: bool) -> Footprint:
        """By what its processes are told from all others."""
        place = self.place = self.place and session.confirm(self.place)
        return Footprint(
            tag=self.tag,
            launcher=self.launcher,
            launcher_ticks=self.launcher_ticks,
            shell=place.shell if place else None,
            shell_ticks=place.shell_ticks if place else None,
            sid=place.sid if place else None,
            keep_shell=keep_shell,
            tree=self.tree,
            cgroup=self.cgroup,
        )

    def tidy(self) -> None:
        """Give back what the attempt holds; nothing can come of it any more."""
        if self.lifeline is not None:
            self.lifeline.close()
        self.directory.remove()
        if self.cgroup is not None and self.cgroup.remove():
            self.cgroup = None

    def to_json(self) -> dict[str, Any]:
        """What another agentd needs to take the attempt over; the start excepted, whose clock is this process's."""
        return {
            "cgroup": None if self.cgroup is None else str(self.cgroup.path),
            "place": None if self.place is None else attrs.asdict(self.place),
            "typed": self.typed,
            "accounted": self.accounted,
            "swept": self.swept,
            "launcher": self.launcher,
            "launcher_ticks": self.launcher_ticks,
            "harness": self.harness,
        }

    def take_over(self, remembered: dict[str, Any], found: session.Found | None) -> None:
        """Know again what a dead agentd has written down, as far as tmux and the kernel still say the same."""
        self.place = None if found is None else found.place_like(remembered_place(remembered))
        self.typed, self.accounted = remembered["typed"], remembered["accounted"]
        self.launcher, self.launcher_ticks = remembered["launcher"], remembered["launcher_ticks"]
        self.harness = remembered["harness"]
        cgroup = remembered.get("cgroup")
        if cgroup is not None:
            self.cgroup = Cgroup(Path(cgroup))
        self.swept = remembered.get("swept", False)

    def launcher_stat(self) -> Stat | None:
        """The launcher, if it lives."""
        stat = None if self.launcher is None else read_stat(self.launcher)
        return None if stat is None or stat.dead or stat.start_ticks != self.launcher_ticks else stat

    def harness_stat(self) -> Stat | None:
        """The harness, if it lives and the launcher does."""
        stat = None if self.harness is None else read_stat(self.harness)
        return None if stat is None or self.launcher not in {stat.ppid, stat.pid} else stat

    def watch_launcher(self, uid: int) -> bool:
        """Open the lifeline of an attempt that was taken over; return whether its launcher lives to say something.

        Raises:
            OSError: if it cannot be opened just now.
        """
        if self.launcher is None:
            return False
        try:
            pidfd = os.pidfd_open(self.launcher)
        except ProcessLookupError:
            return False
        try:
            if self.launcher_stat() is None or read_uid(self.launcher) != uid:
                os.close(pidfd)
                return False
            lifeline = self.directory.reopen()
        except OSError:
            os.close(pidfd)
            raise
        try:
            lifeline.watch(pidfd)
        except OSError:
            lifeline.close()
            raise
        self.lifeline = lifeline
        return True


def check_remembered(remembered: dict[str, Any]) -> None:
    """Raise KeyError or TypeError for what `AttemptState.to_json` of this release never gives."""
    remembered_place(remembered)
    for name in ("typed", "accounted", "launcher", "launcher_ticks", "harness"):
        remembered[name]


def remembered_place(remembered: dict[str, Any]) -> session.Place | None:
    """The place in what `AttemptState.to_json` gave."""
    return None if remembered["place"] is None else session.Place(**remembered["place"])
