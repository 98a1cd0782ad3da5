"""The command `agentd`: its flags, in the style of Go, and its exit codes."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from agentd import __version__
from agentd.directories import lock_sockets, prepare_directories
from agentd.errors import StartupError, UsageError
from agentd.logs import configure
from agentd.process_context import raise_open_files
from agentd.processes.scan import read_stat
from agentd.settings import Flags, build_settings
from agentd.wording import escape

_HELP = """\
agentd runs AI coding agents, each in a tmux session, as a card (jcard.toml) says.

usage: agentd [flags]

  -config PATH       the card
                       root: /etc/stereos/jcard.toml
                       else: $XDG_CONFIG_HOME/agentd/jcard.toml, or in ~/.config
  -secret-dir DIR    files whose names and contents become variables of every agent
                       root: /run/stereos/secrets
                       else: $XDG_CONFIG_HOME/agentd/secrets, or in ~/.config
  -tmux-socket PATH  the socket of agentd's own tmux server
                       root: /run/agentd/tmux.sock
                       else: $XDG_RUNTIME_DIR/agentd/tmux.sock, or in /tmp/agentd-UID
  -api-socket PATH   the socket of the API
                       root: /run/stereos/agentd.sock
                       else: $XDG_RUNTIME_DIR/agentd/agentd.sock, or in /tmp/agentd-UID
  -run-dir DIR       agentd's own files while it runs
                       root: /run/agentd-run
                       else: $XDG_RUNTIME_DIR/agentd/run, or in /tmp/agentd-UID
  -tmux-unit NAME    the systemd service that holds the tmux server, such as agentd-tmux.service;
                       without it agentd starts the server itself
  -agent-user NAME   the user that agents run as; root: agent, else: yourself
  -admin-group NAME  the group that may attach and ask (only as root): admin
  -keep-agents       end without stopping the agents: the next agentd takes them over
  -debug             log more: commands, names of variables, last screens
  -version           print the version
  -h                 print this help

One dash or two, and -flag VALUE or -flag=VALUE, are the same.
Signals: INT, TERM stop the agents (or keep them), a second one at once; HUP reads the card again.
"""
_TEXT_FLAGS = (
    "config",
    "secret-dir",
    "tmux-socket",
    "api-socket",
    "run-dir",
    "tmux-unit",
    "agent-user",
    "admin-group",
)
_SWITCHES = ("debug", "keep-agents", "version")
_HELP_FLAGS = ("h", "help")
_BOOLEANS = dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "false", "FALSE", "False"), False
)

_log = logging.getLogger(__name__)


def run() -> NoReturn:
    """Run agentd as the program of this process."""
    _outlive_hangup()
    _fill_standard_descriptors()
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run agentd and return its exit code: 0 after a clean stop, 2 for wrong usage, otherwise 1.

    What nobody foresaw is a bug, and is raised.
    """
    try:
        request = _parse(sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        return _refuse(error)
    if isinstance(request, str):
        _print(1, request)
        return 0
    configure(debug=request.debug)
    return _exit_code(lambda: _serve(request))


def _serve(flags: Flags) -> None:
    settings = build_settings(flags, os.environ)
    prepare_directories(settings)
    raise_open_files()
    with lock_sockets(settings):
        # Half a second of imports, which no refusal above has to wait for.
        import trio

        from agentd.daemon import run as run_daemon

        trio.run(run_daemon, settings)


def _exit_code(serve: Callable[[], None]) -> int:
    code = 0
    try:
        serve()
    except* UsageError as group:
        code = _refuse(_first(group))
    except* StartupError as group:
        _log.error("%s", _first(group))
        code = 1
    except* KeyboardInterrupt:
        _log.warning("interrupted before agentd was ready")
        code = 1
    return code


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _refuse(error: BaseException) -> int:
    _print(2, f'agentd: {escape(str(error))} (run "agentd -h" for the flags)\n')
    return 2


def _parse(argv: Iterable[str]) -> Flags | str:
    """Read flags as Go's flag package does; text is what to print instead of running.

    UsageError: if they cannot be read.
    """
    values: dict[str, str] = {}
    switches = dict.fromkeys(_SWITCHES, False)
    rest = iter(argv)
    for word in rest:
        if word in {"-", "--"} or not word.startswith("-"):
            _refuse_argument(next(rest, None) if word == "--" else word)
            break
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        if name in _HELP_FLAGS:
            return _HELP
        if name in switches:
            switches[name] = _boolean(name, value) if equals else True
        elif name in _TEXT_FLAGS:
            values[name.replace("-", "_")] = _text(name, value if equals else next(rest, ""))
        else:
            msg = f"there is no flag {word.partition('=')[0]}"
            raise UsageError(msg)
    if switches["version"]:
        return f"agentd {__version__}\n"
    return Flags(**values, debug=switches["debug"], keep_agents=switches["keep-agents"])


def _refuse_argument(word: str | None) -> None:
    if word is not None:
        msg = f"agentd takes flags only, and {word!r} is none"
        raise UsageError(msg)


def _text(name: str, value: str) -> str:
    if not value:
        msg = f"flag -{name} needs a value"
        raise UsageError(msg)
    return value


def _boolean(name: str, value: str) -> bool:
    if value not in _BOOLEANS:
        msg = f"flag -{name} is on or off, as in -{name} or -{name}=false, and not {value!r}"
        raise UsageError(msg)
    return _BOOLEANS[value]


def _print(fd: int, text: str) -> None:
    # Not by sys.stdout and sys.stderr: they are None where the descriptor was closed, and complain of a lost reader.
    with contextlib.suppress(OSError):
        os.write(fd, text.encode(errors="backslashreplace"))


def _outlive_hangup() -> None:
    """Ignore SIGHUP until the daemon takes it, unless it means that somebody closed the terminal of agentd.

    Who has just written the card may send it at once; the first look is still to come.
    """
    stat = read_stat(os.getpid())
    if stat is None or stat.tty_nr == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _fill_standard_descriptors() -> None:
    # Where one is closed, the next file that we open would take its number, and receive the log.
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
