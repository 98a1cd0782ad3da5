"""The command `agentctl`: asks agentd what its agents do and why, and checks cards. It changes nothing.

It lives for less than a tenth of a second, so each subcommand imports what it needs when it runs.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, TextIO

from agentd import __version__
from agentd.ctl.text import WIDTH, details, encodable, encoded, notes, table, valid_card
from agentd.defaults import ROOT_DEFAULTS, own_defaults, own_or_system
from agentd.wording import escape, nearest, quoted

_SOCKET_VARIABLE = "AGENTD_API_SOCKET"
_INTERRUPTED = 130
_READER_GONE = 141
"""As the shell has it for a program that SIGPIPE ended."""
_ONE_DASH = frozenset({"-api-socket", "-help", "-json", "-version"})

_DESCRIPTION = "Tell what agentd's agents do and why, and check cards. Nothing is changed."
_EPILOG = f"""\
agentd's socket is --api-socket PATH (before or after the command), else
${_SOCKET_VARIABLE}, else where the agentd of this user has it by default, else
the system's: {ROOT_DEFAULTS.api_socket}.

exit codes: 0 done; 1 not done, or the card is not valid; 2 wrong usage
"""
_STATUS = """\
Show all agents as a table, or everything of one; and with the table, what is
wrong with the card that agentd has.
"""
_CHECK = f"""\
Read a card as agentd would, and tell everything that is wrong with it. Without
CARD it is the one that the agentd of this user has by default, else the
system's: {ROOT_DEFAULTS.config}.
"""


class _OutputError(Exception):
    """stdout cannot be written; the cause says why."""


def run() -> NoReturn:
    """Run agentctl as the program of this process."""
    # All is written and closed by now; to take Python itself apart would cost a sixth of the time.
    os._exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run agentctl and return its exit code: 0 when done, 2 for wrong usage, otherwise 1, or 128 and a signal."""
    try:
        request = _parse(sys.argv[1:] if argv is None else argv)
        if isinstance(request, int):
            return request
        code: int = request.command(request)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except _OutputError as error:
        if isinstance(error.__cause__, BrokenPipeError):
            return _READER_GONE
        _complain(f"stdout cannot be written: {error}")
        return 1
    return code


def _status(request: argparse.Namespace) -> int:
    from agentd.ctl.client import ApiError, Client, UnknownAgentError

    client = Client(_socket(request.api_socket))
    try:
        try:
            found = client.agents() if request.name is None else client.agent(request.name)
        except UnknownAgentError:
            _complain(_unknown(request.name, (agent.get("name") for agent in client.agents())))
            return 1
        if request.json:
            _print_json(found)
            return 0
        lines = _as_lines(found, client.health() if isinstance(found, list) else {})
    except ApiError as error:
        _complain(str(error))
        return 1
    except RecursionError:
        # To be read, walked through or written, an answer of agentd's is never nested too deeply.
        _complain(str(client.stranger()))
        return 1
    _print("".join(f"{line}\n" for line in lines))
    return 0


def _as_lines(found: Any, health: Any) -> list[str]:
    encoding = _encoding(sys.stdout)
    # UTF-8 has whatever is not escaped anyway.
    if encoding != "utf-8":
        found, health = encodable(found, encoding), encodable(health, encoding)
    if not isinstance(found, list):
        return details(found, time.time())
    more = notes(health, agents=len(found))
    return table(found, time.time()) + ([""] if more else []) + more


def _unknown(name: str, names: Iterable[object]) -> str:
    suggestion = nearest(name, (escape(one) for one in names if isinstance(one, str)))
    return f"there is no agent {quoted(name)}{suggestion or '; agentctl status lists them all'}"


def _socket(given: str | None) -> str:
    # A variable that is empty is none.
    given = given or os.environ.get(_SOCKET_VARIABLE)
    return given or own_or_system(own_defaults(os.environ).api_socket, ROOT_DEFAULTS.api_socket)


def _check(request: argparse.Namespace) -> int:
    from pathlib import Path

    from agentd.card.card import Card, parse_card
    from agentd.errors import CardError, Problem
    from agentd.inputs.card_file import read_card_file

    path: str = request.card or own_or_system(own_defaults(os.environ).config, ROOT_DEFAULTS.config)
    file = read_card_file(Path(path))
    unreadable = file.problem or file.missing
    found: Card | CardError
    try:
        found = CardError((Problem("card", unreadable),)) if unreadable else parse_card(file.data or b"")
    except CardError as error:
        found = error
    names = [agent.name for agent in found.agents] if isinstance(found, Card) else []
    problems = found.problems if isinstance(found, CardError) else ()
    if request.json:
        errors = [{"path": problem.path, "text": problem.text} for problem in problems]
        _print_json(
            {"card": path, "valid": not problems, "errors": errors, "warnings": list(found.warnings), "agents": names}
        )
    elif unreadable:
        _complain(f"{path}: {unreadable}")
    else:
        _print_lines(line for problem in problems for line in str(problem).split("\n"))
        if not problems:
            _print(valid_card(*encodable([path, names], _encoding(sys.stdout))) + "\n")
        _print_lines(f"warning: {warning}" for warning in found.warnings)
        if problems:
            _complain(f"{path} is not valid: {len(problems)} problem{'' if len(problems) == 1 else 's'}")
    return 1 if problems else 0


def _parse(argv: Iterable[str]) -> argparse.Namespace | int:
    """Read the command line; a number is the exit code when there is nothing more to do."""
    out, err = io.StringIO(), io.StringIO()
    words = list(argv)
    # One dash is as good as two, as it is for agentd.
    for index in range(words.index("--") if "--" in words else len(words)):
        if words[index].partition("=")[0] in _ONE_DASH:
            words[index] = "-" + words[index]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return _parser().parse_args(words)
    except SystemExit as done:
        _print(out.getvalue())
        _print_errors(err.getvalue().splitlines())
        return int(done.code or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "agentctl",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=_formatter,
        allow_abbrev=False,
    )
    _add_socket(parser, None)
    _add_json(parser, default=False)
    parser.add_argument("--version", action="version", version=f"agentctl {__version__}", help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, prog="agentctl")

    def add(name: str, summary: str, description: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=description,
            formatter_class=_formatter,
            allow_abbrev=False,
        )

    # After the command a flag has no default: what was given before the command stays.
    status = add("status", "what every agent does and why", _STATUS)
    _add_socket(status, argparse.SUPPRESS)
    _add_json(status, default=argparse.SUPPRESS)
    status.add_argument("name", nargs="?", metavar="NAME", help="only this agent, in any case, with everything of it")
    status.set_defaults(command=_status)
    check = add("check", "what is wrong with a card", _CHECK)
    _add_json(check, default=argparse.SUPPRESS)
    check.add_argument("card", nargs="?", metavar="CARD", type=_path, help="the card's path")
    check.set_defaults(command=_check)
    return parser


def _add_socket(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument("--api-socket", metavar="PATH", type=_path, default=default, help="the socket of agentd's API")


def _add_json(parser: argparse.ArgumentParser, *, default: bool | str) -> None:
    parser.add_argument("--json", action="store_true", default=default, help="print JSON, for programs")


def _formatter(prog: str) -> argparse.HelpFormatter:
    # Asked for the terminal's width, argparse imports half of the standard library's compressors.
    return argparse.RawDescriptionHelpFormatter(prog, width=WIDTH)


def _path(text: str) -> str:
    if not text:
        msg = "it needs a path"
        raise argparse.ArgumentTypeError(msg)
    return text


def _print_json(value: object) -> None:
    # In ASCII: nothing in it can act on a terminal.
    _print(json.dumps(value, indent=2) + "\n")


def _print_lines(lines: Iterable[str]) -> None:
    _print("".join(escape(line) + "\n" for line in lines))


def _print(text: str) -> None:
    try:
        _write(1, sys.stdout, text)
    except OSError as error:
        raise _OutputError(error.strerror) from error


def _complain(text: str) -> None:
    _print_errors([f"agentctl: {text}"])


def _print_errors(lines: Iterable[str]) -> None:
    # When it cannot be told, there is the exit code.
    with contextlib.suppress(OSError):
        _write(2, sys.stderr, "".join(escape(line) + "\n" for line in lines))


def _write(fd: int, stream: TextIO | None, text: str) -> None:
    """Write to the descriptor itself, so that nothing is left to be flushed, and to fail, when Python ends."""
    # Where it was closed, the descriptor may be another file's by now.
    if stream is None:
        return
    data = encoded(text, _encoding(stream))
    while data:
        data = data[os.write(fd, data) :]


def _encoding(stream: TextIO | None) -> str:
    return "utf-8" if stream is None else stream.encoding
