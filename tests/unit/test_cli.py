"""The command line: flags in the style of Go, what is printed where, and the exit codes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from agentd import __version__
from agentd.cli import _exit_code, _parse, main
from agentd.errors import StartupError, UsageError
from agentd.settings import Flags


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], Flags()),
        (["-config", "a"], Flags(config="a")),
        (["--config", "a"], Flags(config="a")),
        (["-config=a"], Flags(config="a")),
        (["--config=a=b"], Flags(config="a=b")),
        (["-config", "-debug"], Flags(config="-debug")),
        (["-config", "a", "-config", "b"], Flags(config="b")),
        (["-secret-dir", "s"], Flags(secret_dir="s")),
        (["-tmux-socket", "t", "-api-socket", "a"], Flags(tmux_socket="t", api_socket="a")),
        (["-run-dir", "r"], Flags(run_dir="r")),
        (["-tmux-unit", "t.service"], Flags(tmux_unit="t.service")),
        (["-agent-user", "u", "-admin-group", "g"], Flags(agent_user="u", admin_group="g")),
        (["-debug"], Flags(debug=True)),
        (["--debug", "-config", "a"], Flags(debug=True, config="a")),
        (["-debug", "--"], Flags(debug=True)),
        (["-keep-agents"], Flags(keep_agents=True)),
        (["-version=false"], Flags()),
    ],
)
def test_flags_are_read_as_in_go(argv: list[str], expected: Flags) -> None:
    """One dash or two, a value after a blank or an equals sign, the last one wins."""
    assert _parse(argv) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(word, True) for word in ("1", "t", "T", "true", "TRUE", "True")]
    + [(word, False) for word in ("0", "f", "F", "false", "FALSE", "False")],
)
def test_switch_takes_the_booleans_of_go(value: str, expected: bool) -> None:
    """A switch takes a value after an equals sign, in every spelling that Go knows."""
    assert _parse([f"-debug={value}"]) == Flags(debug=expected)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["-nope"], "there is no flag -nope"),
        (["--nope=1"], "there is no flag --nope"),
        (["---config", "a"], "there is no flag ---config"),
        (["-=a"], "there is no flag -"),
        (["-config"], "flag -config needs a value"),
        (["-config="], "flag -config needs a value"),
        (["-config", ""], "flag -config needs a value"),
        (["-debug=yes"], "flag -debug is on or off, as in -debug or -debug=false, and not 'yes'"),
        (["-debug="], "flag -debug is on or off, as in -debug or -debug=false, and not ''"),
        (["-debug", "false"], "agentd takes flags only, and 'false' is none"),
        (["start"], "agentd takes flags only, and 'start' is none"),
        (["-"], "agentd takes flags only, and '-' is none"),
        ([""], "agentd takes flags only, and '' is none"),
        (["--", "-debug"], "agentd takes flags only, and '-debug' is none"),
    ],
)
def test_wrong_usage_is_told_in_one_line(argv: list[str], expected: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Wrong usage is one line on stderr with a hint, nothing on stdout, and exit code 2."""
    assert main(argv) == 2
    printed = capfd.readouterr()
    assert printed.err == f'agentd: {expected} (run "agentd -h" for the flags)\n'
    assert printed.out == ""


@pytest.mark.parametrize("flag", ["-h", "--h", "-help", "--help", "-h=1"])
def test_help_names_every_flag(flag: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Help goes to stdout, names every flag, and is no failure."""
    assert main([flag, "-nope"]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    for name in ("config", "secret-dir", "tmux-socket", "api-socket", "run-dir", "tmux-unit"):
        assert f"\n  -{name} " in printed.out
    assert all(f"\n  -{name} " in printed.out for name in ("admin-group", "keep-agents", "debug", "version", "h"))
    assert max(map(len, printed.out.splitlines())) <= 100


def test_version_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """The version goes to stdout and is no failure."""
    assert main(["-version"]) == 0
    assert capfd.readouterr().out == f"agentd {__version__}\n"


def _raising(error: BaseException) -> Callable[[], None]:
    def serve() -> None:
        raise error

    return serve


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StartupError("no tmux"), 1),
        (ExceptionGroup("", [ExceptionGroup("", [StartupError("no tmux"), StartupError("nor sudo")])]), 1),
        (UsageError("no tmux"), 2),
        (KeyboardInterrupt(), 1),
        (BaseExceptionGroup("", [KeyboardInterrupt()]), 1),
    ],
)
def test_exit_code_tells_what_happened(
    error: BaseException, code: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A foreseen end, bare or in groups, is one line without a traceback, and 2 for usage or else 1."""
    assert _exit_code(_raising(error)) == code
    lines = [record.getMessage() for record in caplog.records] + capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert not any(record.exc_info for record in caplog.records)


def test_clean_stop_is_zero() -> None:
    """The exit code after a clean stop is 0."""
    assert _exit_code(lambda: None) == 0


def test_bug_is_raised() -> None:
    """A bug is nobody's exit code: it goes on, beside a foreseen error too."""
    group = ExceptionGroup("", [StartupError("no tmux"), ZeroDivisionError()])
    with pytest.raises(ExceptionGroup) as raised:
        _exit_code(_raising(group))
    assert raised.value.subgroup(ZeroDivisionError)
    assert not raised.value.subgroup(StartupError)


def test_refusal_is_quick_and_one_line(tmp_path: object) -> None:
    """What cannot start says so in one line of the log and exits with 1, before anything heavy is imported."""
    program = (
        "import sys; from agentd.cli import main; code = main(sys.argv[1:]); "
        "assert 'trio' not in sys.modules; sys.exit(code)"
    )
    user = "root" if os.geteuid() == 0 else "nobody-of-that-name"
    argv = ["-agent-user", user, "-admin-group", "root", "-api-socket", f"{tmp_path}/{'x' * 108}"]
    done = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if "WARN" not in line]
    assert len(errors) == 1
    assert " ERROR " in errors[0]


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_descriptors_are_no_trouble(closed: tuple[int, ...]) -> None:
    """With standard descriptors closed, help is still no failure and wrong usage is still 2."""
    shut = " ".join(f"{fd}>&-" for fd in closed)
    for flag, code in (("-h", 0), ("-nope", 2)):
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$0" -m agentd {flag} {shut}', sys.executable],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == code


@pytest.mark.parametrize(
    ("before", "code"),
    [
        ("", 7),
        ('exec <"$TTY"', -signal.SIGHUP),
        ("trap '' HUP; exec <\"$TTY\"", 7),
    ],
    ids=["service", "terminal", "nohup"],
)
def test_early_hangup(before: str, code: int) -> None:
    """Before the daemon is there a hang-up changes nothing, unless somebody closed the terminal, and not with nohup."""
    program = (
        "import os, signal, sys; from agentd import cli; cli.main = lambda: os.kill(os.getpid(), signal.SIGHUP) or 7; "
        "cli.run()"
    )
    ours, theirs = os.openpty()
    try:
        # A session leader that opens a terminal has it as its own from then on.
        done = subprocess.run(
            ["/bin/sh", "-c", f'{before}\nexec "$0" -c "$1"', sys.executable, program],
            env={**os.environ, "TTY": os.ttyname(theirs)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == code
