"""Where things are unless the command line says otherwise, for agentd and agentctl alike.

agentctl lives for some milliseconds, so nothing here imports more than it needs.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple


class Defaults(NamedTuple):
    """The default paths of one user's agentd, all absolute."""

    config: str
    secret_dir: str
    tmux_socket: str
    api_socket: str
    run_dir: str


ROOT_DEFAULTS = Defaults(
    config="/etc/stereos/jcard.toml",
    secret_dir="/run/stereos/secrets",  # noqa: S106 - a path
    tmux_socket="/run/agentd/tmux.sock",
    api_socket="/run/stereos/agentd.sock",
    run_dir="/run/agentd-run",
)


def ordinary_defaults(uid: int, home: str, environ: Mapping[str, str]) -> Defaults:
    """Return the defaults of a user other than root."""
    # The XDG specification has relative paths ignored.
    config_home = environ.get("XDG_CONFIG_HOME", "")
    base = os.path.join(config_home if config_home.startswith("/") else os.path.join(home, ".config"), "agentd")
    runtime = _runtime_dir(uid, environ)
    return Defaults(
        config=f"{base}/jcard.toml",
        secret_dir=f"{base}/secrets",
        tmux_socket=f"{runtime}/tmux.sock",
        api_socket=f"{runtime}/agentd.sock",
        run_dir=f"{runtime}/run",
    )


def own_home(uid: int, environ: Mapping[str, str]) -> str:
    """Return our own home: HOME, as for every shell that we start, before the password database, which may lack us."""
    home = environ.get("HOME", "")
    if home.startswith("/"):
        return home
    import pwd

    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return "/"


def own_defaults(environ: Mapping[str, str]) -> Defaults:
    """Return the defaults of whoever runs this process."""
    uid = os.geteuid()
    return ROOT_DEFAULTS if uid == 0 else ordinary_defaults(uid, own_home(uid, environ), environ)


def own_or_system(own: str, system: str) -> str:
    """Return our own path, unless there is nothing at it and the system's agentd has something at its own."""
    return system if _is_missing(own) and not _is_missing(system) else own


def _runtime_dir(uid: int, environ: Mapping[str, str]) -> str:
    given = environ.get("XDG_RUNTIME_DIR", "")
    # After `su` the variable may still name another user's directory.
    if given.startswith("/") and os.path.isdir(given) and os.stat(given).st_uid == uid:
        return os.path.join(given, "agentd")
    return f"/tmp/agentd-{uid}"  # noqa: S108 - directories.py takes it only when it is ours alone


def _is_missing(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        # Out of our reach, which is worth being told.
        return False
    return False
