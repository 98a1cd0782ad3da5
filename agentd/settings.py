"""What agentd was told on its command line, with every default filled in and checked."""

import grp
import logging
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs

from agentd.defaults import ROOT_DEFAULTS, ordinary_defaults, own_home
from agentd.errors import StartupError, UsageError, is_shortage, shortage_words
from agentd.process_context import Limits, agents_limits
from agentd.wording import quoted

_MAX_SOCKET_PATH = 107
_OLDEST_TMUX = (3, 2)
_TMUX_VERSION = re.compile(r"tmux (?:next-)?(\d+)\.(\d+)[a-z]*(?:-rc\d*)?")
_TMUX_OF_THE_DAY = re.compile(r"tmux (?:master|openbsd-[\d.]+)")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\][A-Za-z0-9:_.\\@-]*\.service")
_LONGEST_UNIT = 255
_INSTALLERS = {
    "apt-get": "apt-get install -y",
    "dnf": "dnf install -y",
    "apk": "apk add",
    "pacman": "pacman -S --noconfirm",
    "zypper": "zypper install -y",
}

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class AgentUser:
    """The Unix user that all agents run as."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


@attrs.frozen(kw_only=True)
class Settings:
    """One agentd's configuration. All paths are absolute."""

    config: Path
    secret_dir: Path
    tmux_socket: Path
    api_socket: Path
    run_dir: Path
    debug: bool
    keep_agents: bool
    """Whether the agents outlive this agentd, however it ends: the next one takes them over."""
    agent_user: AgentUser
    switch_user: bool
    """Whether the agent user is another one than ours: only then is sudo used, and only root can."""
    admin_gid: int | None
    """The admin group, or None when it does not exist or we are not root (sockets then keep our own group)."""
    tmux: str
    sudo: str | None
    tmux_unit: str | None
    """The systemd unit that holds the tmux server; None when our client starts it."""
    systemctl: str | None
    default_workdir: str
    limits: Limits
    """The resource limits of a tmux server that our client starts, and with it of all agents."""


@attrs.frozen(kw_only=True)
class Flags:
    """The command line as it was given: None is a flag that was not."""

    config: str | None = None
    secret_dir: str | None = None
    tmux_socket: str | None = None
    api_socket: str | None = None
    run_dir: str | None = None
    tmux_unit: str | None = None
    agent_user: str | None = None
    admin_group: str | None = None
    debug: bool = False
    keep_agents: bool = False


def build_settings(flags: Flags, environ: Mapping[str, str]) -> Settings:
    """Fill in what the command line leaves open, for root or for an ordinary user; nothing is created.

    UsageError: if flags contradict each other. StartupError: if agentd cannot run on this machine like that.
    """
    if sys.platform != "linux":
        msg = f"agentd runs on Linux only, and this is {sys.platform}: run it in a Linux machine or container"
        raise StartupError(msg)
    root = os.geteuid() == 0
    ourselves = _own_user(environ)
    agent_user = _agent_user(flags.agent_user, ourselves, root=root)
    switch_user = agent_user.uid != ourselves.uid
    defaults = ROOT_DEFAULTS if root else ordinary_defaults(ourselves.uid, ourselves.home, environ)
    config = _absolute(flags.config, defaults.config)
    tmux_socket = _socket_path("-tmux-socket", flags.tmux_socket, defaults.tmux_socket)
    api_socket = _socket_path("-api-socket", flags.api_socket, defaults.api_socket)
    if tmux_socket == api_socket:
        msg = f"-tmux-socket and -api-socket are both {tmux_socket}: give each a path of its own"
        raise UsageError(msg)
    tmux_unit = None if flags.tmux_unit is None else _unit_name(flags.tmux_unit)
    if flags.keep_agents and tmux_unit is None and environ.get("SYSTEMD_EXEC_PID") == str(os.getpid()):
        _log.warning(
            "-keep-agents keeps nothing here: systemd ends what is left in agentd's unit; give -tmux-unit, too"
        )
    return Settings(
        config=config,
        secret_dir=_absolute(flags.secret_dir, defaults.secret_dir),
        tmux_socket=tmux_socket,
        api_socket=api_socket,
        run_dir=_absolute(flags.run_dir, defaults.run_dir),
        debug=flags.debug,
        keep_agents=flags.keep_agents,
        agent_user=agent_user,
        switch_user=switch_user,
        admin_gid=_admin_gid(flags.admin_group, root=root),
        tmux=_find_tmux(environ),
        sudo=_find("sudo", environ, why=f"to run agents as {agent_user.name}") if switch_user else None,
        tmux_unit=tmux_unit,
        systemctl=None if tmux_unit is None else _find_systemctl(tmux_unit, environ),
        default_workdir="/home/agent/workspace" if switch_user else str(config.parent),
        limits=agents_limits(switch_user=switch_user),
    )


def _absolute(given: str | None, default: str) -> Path:
    # Lexically, since a symlink on the way (a card in a Nix store) may point elsewhere tomorrow.
    return Path(default if given is None else os.path.abspath(given))


def _socket_path(flag: str, given: str | None, default: str) -> Path:
    path = _absolute(given, default)
    length = len(os.fsencode(path))
    if length > _MAX_SOCKET_PATH:
        msg = f"{path} has {length} bytes and a socket's path at most {_MAX_SOCKET_PATH}: give a shorter {flag}"
        raise StartupError(msg)
    return path


def _unit_name(given: str) -> str:
    if not _UNIT.fullmatch(given) or len(given) > _LONGEST_UNIT:
        msg = f"-tmux-unit {quoted(given)} is no name of a systemd service: it is to be like agentd-tmux.service"
        raise UsageError(msg)
    return given


def _own_user(environ: Mapping[str, str]) -> AgentUser:
    # SHELL comes first, as it does for tmux and for every shell that we start as ourselves; a container's
    # user may have no entry in the password database at all.
    uid = os.geteuid()
    try:
        entry = pwd.getpwuid(uid)
        name, shell = entry.pw_name, entry.pw_shell
    except KeyError:
        name, shell = str(uid), ""
    if _is_program(environ.get("SHELL", "")):
        shell = environ["SHELL"]
    groups = tuple(sorted({os.getegid(), *os.getgroups()}))
    shell = shell if _is_program(shell) else "/bin/sh"
    home = own_home(uid, environ)
    return AgentUser(name=name, uid=uid, gid=os.getegid(), groups=groups, home=home, shell=shell)


def _is_program(path: str) -> bool:
    return path.startswith("/") and os.path.isfile(path) and os.access(path, os.X_OK)


def _agent_user(given: str | None, ourselves: AgentUser, *, root: bool) -> AgentUser:
    if given is None and not root:
        return ourselves
    name = "agent" if given is None else given
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        if given == ourselves.name:
            return ourselves
        if given is None:
            msg = 'there is no user "agent" to run agents as: create it, or name another one with -agent-user'
        else:
            msg = f'there is no user "{name}": create it, or name another one with -agent-user'
        raise StartupError(msg) from None
    if entry.pw_uid == ourselves.uid:
        if root:
            _log.warning("agents run as root, with nothing between them and this machine: -agent-user is root")
        return ourselves
    if not root:
        msg = f"only root can run agents as {name}: leave -agent-user out, or start agentd as root"
        raise StartupError(msg)
    return AgentUser(
        name=entry.pw_name,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        groups=tuple(sorted(os.getgrouplist(entry.pw_name, entry.pw_gid))),
        home=entry.pw_dir,
        shell=entry.pw_shell or "/bin/sh",
    )


def _admin_gid(given: str | None, *, root: bool) -> int | None:
    if not root:
        if given is not None:
            _log.warning("-admin-group %s is ignored: only root can give the sockets to a group", given)
        return None
    name = "admin" if given is None else given
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        _log.warning('there is no group "%s": only root can attach and ask, unless -admin-group names another', name)
        return None


def _find_tmux(environ: Mapping[str, str]) -> str:
    tmux = _find("tmux", environ, why="to run agents in")
    try:
        shown = subprocess.run([tmux, "-V"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        remedy = "mend or reinstall tmux"
        if isinstance(error, OSError) and is_shortage(error):
            remedy = shortage_words(error)
        msg = f"{tmux} -V failed ({error}): {remedy}"
        raise StartupError(msg) from error
    text = shown.stdout.decode(errors="replace").strip()
    if not _is_recent(text):
        msg = f"{tmux} -V says {text!r}: agentd needs tmux {_OLDEST_TMUX[0]}.{_OLDEST_TMUX[1]} or later"
        raise StartupError(msg)
    return tmux


def _is_recent(version: str) -> bool:
    numbered = _TMUX_VERSION.fullmatch(version)
    if numbered:
        return (int(numbered[1]), int(numbered[2])) >= _OLDEST_TMUX
    return _TMUX_OF_THE_DAY.fullmatch(version) is not None


def _find_systemctl(unit: str, environ: Mapping[str, str]) -> str:
    found = shutil.which("systemctl", path=environ.get("PATH", os.defpath))
    if found is None:
        msg = f"systemctl is needed to start {unit} and is not on PATH: leave -tmux-unit out where there is no systemd"
        raise StartupError(msg)
    return os.path.abspath(found)


def _find(program: str, environ: Mapping[str, str], *, why: str) -> str:
    path = environ.get("PATH", os.defpath)
    found = shutil.which(program, path=path)
    if found is None:
        installer = next((words for name, words in _INSTALLERS.items() if shutil.which(name, path=path)), None)
        hint = f"`{installer} {program}` (as root)" if installer else f"the package {program}"
        msg = f"{program} is needed {why} and is not on PATH: install it with {hint}"
        raise StartupError(msg)
    return os.path.abspath(found)
