"""The launch script: the few lines of POSIX sh that turn a shell in tmux into one attempt (pure text, no I/O).

It is right in dash, bash and zsh as sh. What it writes to the lifeline, a line each:

    start LAUNCHER HARNESS      the pids of this script and of the harness, which runs from now on
    blocked workdir missing     there is no such directory; `denied`: the agent user may not enter it
    blocked binary PATH         the program is in none of these directories
    exit CODE                   the shell's $? of the harness

and, by closing it, that the script is gone.
"""

import re
from collections.abc import Mapping
from shlex import quote

import attrs

SHOWN = 400
"""Characters of the command line that the script prints; the prompt in it may be 100 KB."""
PATH_SHOWN = 3000
"""Bytes of the PATH that it says on the lifeline, which takes 4 KB in all."""

_SAFE_PATH = re.compile(r"[A-Za-z0-9/._-]+\Z")
_SHELLS_OWN = frozenset(
    {
        *("_", "IFS", "LINENO", "OLDPWD", "OPTARG", "OPTIND", "PPID", "PWD", "RANDOM", "SECONDS", "SHLVL"),
        *("BASHOPTS", "BASHPID", "BASH_VERSINFO", "EUID", "FUNCNAME", "GROUPS", "SHELLOPTS", "UID"),
        *("COLUMNS", "FUNCNEST", "HISTCMD", "HISTSIZE", "LINES", "SAVEHIST", "SRANDOM"),
        *("EGID", "ERRNO", "GID", "TRY_BLOCK_ERROR", "TRY_BLOCK_INTERRUPT", "TTYIDLE", "USERNAME"),
        *("ZSH_EVAL_CONTEXT", "ZSH_SUBSHELL", "signals", "status"),
    }
)
"""Variables that some shell reads only or counts itself: an assignment would end the script."""


@attrs.frozen(kw_only=True)
class Script:
    """What one launch script needs to know. The environment and the command line are secret."""

    lifeline: str
    tag: str
    workdir: str
    argv: tuple[str, ...] = attrs.field(repr=False)
    env: Mapping[str, str] = attrs.field(repr=False)
    tmux: str
    tmux_socket: str
    session: str
    pane: str

    def text(self) -> str:
        """The script.

        Raises:
            ValueError: if the lifeline's path has a character that could mean something to a shell.
        """
        if not _SAFE_PATH.match(self.lifeline):
            message = f"the lifeline's path {self.lifeline!r} may hold letters, digits and /._- only"
            raise ValueError(message)
        exports = "\n".join(
            f"  export {name}={quote(value)}" for name, value in self.env.items() if name not in _SHELLS_OWN
        )
        tmux = f"{quote(self.tmux)} -S {quote(self.tmux_socket)}"
        return _TEMPLATE.format(
            lifeline=self.lifeline,
            path_shown=PATH_SHOWN,
            exports=exports,
            tag=quote(self.tag),
            workdir=quote(self.workdir),
            binary=quote(self.argv[0]),
            shown=quote(_shown(self.argv)),
            command=" ".join(map(quote, self.argv)),
            remember=f"{tmux} set-option -t '{self.session}' @agentd_exit {quote(self.tag)}\" $code\" "
            f"\\; display-message -p -t '{self.pane}' '#{{alternate_on}}'",
        )


def _shown(argv: tuple[str, ...]) -> str:
    """The command line for the eyes of an admin: one line, shortened, nothing in it that a terminal would obey."""
    line = " ".join(map(quote, argv))
    line = "".join(char if char.isprintable() else "?" for char in line.replace("\n", " "))
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}… ({len(line)} characters)"


# Descriptor 9 is the lifeline. Opened read-write it never blocks and never raises SIGPIPE while agentd is away.
# `[ -p` twice: opening makes a regular file where the FIFO was just taken away, and then this launch was given up.
# What runs is shown after `start`: until then the screen tells, in the log and the API, why nothing came up.
# The traps are caught, not ignored: an ignored signal would stay ignored in the harness. TSTP is left alone, so that
# Ctrl-Z stops script and harness together. TTOU is ignored at the end only: in the background, stty would stop us.
_TEMPLATE = """\
if ! [ -p {lifeline} ]; then echo 'agentd: this launch was given up' >&2; exit 125; fi
exec 9<>{lifeline}
if ! [ -p {lifeline} ]; then rm -f {lifeline}; echo 'agentd: this launch was given up' >&2; exit 125; fi
trap : HUP INT QUIT TERM
(
{exports}
  export AGENTD_ATTEMPT={tag}
  if ! [ -d {workdir} ]; then
    printf 'blocked workdir missing\\n' >&9
    printf 'agentd: the workdir %s does not exist\\n' {workdir} >&2; exit 125
  fi
  if ! cd {workdir}; then printf 'blocked workdir denied\\n' >&9; exit 125; fi
  if ! command -v {binary} >/dev/null; then
    printf 'blocked binary %.{path_shown}s\\n' "$PATH" >&9
    printf 'agentd: %s is not in PATH (%s)\\n' {binary} "$PATH" >&2; exit 125
  fi
  exec /bin/sh -c '
    printf "start %s %s\\n" "$PPID" "$$" >&9
    printf "agentd runs: %s\\n" "$1"
    shift
    exec "$@" 9>&-' sh {shown} {command}
)
code=$?
printf 'exit %s\\n' "$code" >&9
exec 9>&-
alternate=$({remember} 2>/dev/null)
trap '' TTOU
if [ "$alternate" = 1 ]; then printf '\\033[?1049l'; fi
stty sane 2>/dev/null
printf '\\nagentd: exit code %s\\n' "$code"
exit "$code"
"""
