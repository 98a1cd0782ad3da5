"""What agents are started with in place of what agentd itself has: environment, limits, priority, out-of-memory score.

A tmux server may be born of our client, and all agents are born of it. umask and directory are set where the client is
started; the rest is given to its process from outside, while it waits at a gate: a shell's start, and no code between
fork and exec.
"""

import os
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

UMASK = 0o022
OPEN_GATE = b"\n"
"""What a gated command waits for on its stdin."""

ONLY_OURS = (
    # sudo describes itself to what it starts, and tmux hands what it was started with to every session.
    *(f"SUDO_{name}" for name in ("COMMAND", "GID", "HOME", "TTY", "UID", "USER")),
    # What systemd tells a service of itself; see systemd.exec(5).
    *(f"LISTEN_{name}" for name in ("FDNAMES", "FDS", "PID", "PIDFDID")),
    *(f"{name}_DIRECTORY" for name in ("CACHE", "CONFIGURATION", "CREDENTIALS", "LOGS", "RUNTIME", "STATE")),
    *("FDSTORE", "INVOCATION_ID", "JOURNAL_STREAM", "MAINPID", "MANAGERPID", "MANAGERPIDFDID"),
    *("MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE", "NOTIFY_SOCKET", "PIDFILE", "SYSTEMD_EXEC_PID"),
    *("WATCHDOG_PID", "WATCHDOG_USEC"),
)
"""Variables that are for one process, agentd or a tmux server, and not for what it starts."""
_OURS_ALONE = ("TMUX", "AGENTD_", "SUDO_", "WATCHDOG_", "LISTEN_")

Limits = Mapping[int, tuple[int, int]]
"""Soft and hard limits by resource."""

_NAMES = {getattr(resource, name): name for name in sorted(dir(resource), reverse=True) if name.startswith("RLIMIT_")}
_SYSTEMD = "/run/systemd/system"
# The defaults of systemd for services and logins; for itself it raises both.
_SYSTEMD_LIMITS = {resource.RLIMIT_NOFILE: (1024, 524_288), resource.RLIMIT_MEMLOCK: (8 << 20, 8 << 20)}


def agents_limits(*, switch_user: bool) -> Limits:
    """Choose the limits of agents, before we raise our own: of another user the machine's own, else ours."""
    if not switch_user:
        return MappingProxyType({resource.RLIMIT_NOFILE: resource.getrlimit(resource.RLIMIT_NOFILE)})
    limits = {}
    for kind in _NAMES:
        try:
            limits[kind] = resource.prlimit(1, kind)
        except OSError:
            limits[kind] = resource.getrlimit(kind)
    return MappingProxyType(limits | (_SYSTEMD_LIMITS if os.path.isdir(_SYSTEMD) else {}))


def raise_open_files() -> None:
    """Let ourselves open as many files as we may: each agent takes three."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return  # A hard limit above the kernel's own, which was lowered since: what we have must do.


def gated(command: Sequence[str]) -> list[str]:
    """Have a command wait for a line, which ends the time in which its process is given its context."""
    # The shell reads byte by byte, so that what follows the line is the command's.
    return ["/bin/sh", "-c", 'read -r go && exec "$@"', "sh", *command]


def give_context(pid: int, limits: Limits, *, switch_user: bool) -> list[str]:
    """Give a gated process its limits, and to another user's our priority and score neither; return what failed."""
    failed = [failure for kind, wanted in limits.items() if (failure := _limit(pid, kind, wanted))]
    if switch_user:
        try:
            os.setpriority(os.PRIO_PROCESS, pid, 0)
        except OSError as error:
            failed.append(f"nice ({error.strerror})")
        try:
            Path(f"/proc/{pid}/oom_score_adj").write_text("0")
        except OSError as error:
            failed.append(f"oom_score_adj ({error.strerror})")
    return failed


def agents_environment(ours: Mapping[str, str], *, switch_user: bool) -> dict[str, str]:
    """Choose what a server that is born of our client, and with it all sessions, inherit."""
    if switch_user:
        wanted = {name: text for name, text in ours.items() if name == "LANG" or name.startswith("LC_")}
        utf8 = {name: text for name, text in wanted.items() if text.upper().replace("-", "").endswith("UTF8")}
        return {"PATH": agents_path(ours)} | utf8
    return {name: text for name, text in ours.items() if not name.startswith(_OURS_ALONE) and name not in ONLY_OURS}


def agents_path(ours: Mapping[str, str]) -> str:
    """Return our PATH for another user, who has no business in our home; sudo and login shells may set their own."""
    home = os.path.join(ours.get("HOME", "/root"), "")
    places = ours.get("PATH", os.defpath).split(os.pathsep)
    theirs = [place for place in places if place.startswith("/") and not os.path.join(place, "").startswith(home)]
    return os.pathsep.join(theirs) or os.defpath


def _limit(pid: int, kind: int, wanted: tuple[int, int]) -> str:
    """Limit a process as wanted, or as far as its hard limit can be raised, which is a failure to be told."""
    try:
        resource.prlimit(pid, kind, wanted)
    except (OSError, ValueError):
        try:
            _, most = resource.prlimit(pid, kind)
            resource.prlimit(pid, kind, (_lower(wanted[0], most), most))
        except (OSError, ValueError) as error:
            return f"{_NAMES[kind]} ({error})"
        return f"{_NAMES[kind]} (not above {most})"
    return ""


def _lower(one: int, other: int) -> int:
    limited = [limit for limit in (one, other) if limit != resource.RLIM_INFINITY]
    return min(limited, default=resource.RLIM_INFINITY)
