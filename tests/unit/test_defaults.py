import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.defaults import ROOT_DEFAULTS, Defaults, ordinary_defaults, own_defaults, own_home, own_or_system


def test_ordinary_user() -> None:
    """Without any variable an ordinary user's files are in ~/.config and in a directory of /tmp."""
    assert ordinary_defaults(61234, "/home/u", {}) == Defaults(
        config="/home/u/.config/agentd/jcard.toml",
        secret_dir="/home/u/.config/agentd/secrets",
        tmux_socket="/tmp/agentd-61234/tmux.sock",
        api_socket="/tmp/agentd-61234/agentd.sock",
        run_dir="/tmp/agentd-61234/run",
    )


@pytest.mark.parametrize(
    ("config_home", "expected"),
    [
        ("", "/home/u/.config/agentd"),
        ("relative", "/home/u/.config/agentd"),
        ("/elsewhere", "/elsewhere/agentd"),
    ],
)
def test_card_and_secrets_follow_xdg(config_home: str, expected: str) -> None:
    """An ordinary user's card and secrets are in XDG_CONFIG_HOME when it is absolute, else in ~/.config."""
    defaults = ordinary_defaults(61234, "/home/u", {"XDG_CONFIG_HOME": config_home})
    assert (defaults.config, defaults.secret_dir) == (f"{expected}/jcard.toml", f"{expected}/secrets")


@pytest.mark.parametrize("runtime", ["", "relative", "/nonexistent/dir", "/dev/null", "/proc/1"])
def test_runtime_directory_that_is_none_is_passed_over(runtime: str) -> None:
    """XDG_RUNTIME_DIR counts only when it is absolute, a directory, and that user's own."""
    assert ordinary_defaults(61234, "/home/u", {"XDG_RUNTIME_DIR": runtime}) == ordinary_defaults(61234, "/home/u", {})


def test_runtime_directory_of_ours_is_used(tmp_path: Path) -> None:
    """An own XDG_RUNTIME_DIR holds the sockets and the run directory."""
    defaults = ordinary_defaults(os.geteuid(), "/home/u", {"XDG_RUNTIME_DIR": str(tmp_path)})
    top = f"{tmp_path}/agentd"
    assert (defaults.tmux_socket, defaults.api_socket, defaults.run_dir) == (
        f"{top}/tmux.sock",
        f"{top}/agentd.sock",
        f"{top}/run",
    )


def test_own() -> None:
    """Whoever runs this has the defaults of root, or those of an ordinary user with its home."""
    uid = os.geteuid()
    assert own_defaults({"HOME": "/h"}) == (ROOT_DEFAULTS if uid == 0 else ordinary_defaults(uid, "/h", {}))


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"HOME": "relative"}])
def test_home_of_the_password_database(environ: dict[str, str]) -> None:
    """Where HOME is no absolute path, the password database has the home, and / is that of a user whom it lacks."""
    entry = pwd.getpwall()[0]
    assert own_home(entry.pw_uid, environ) == pwd.getpwuid(entry.pw_uid).pw_dir
    assert own_home(3_999_999_999, environ) == "/"


@pytest.mark.parametrize(
    ("own", "system", "expected"),
    [
        ("own", "system", "own"),
        ("own", "none", "own"),
        ("none", "system", "system"),
        ("own/x", "system", "system"),
        ("none", "nowhere", "none"),
    ],
)
def test_own_or_system(tmp_path: Path, own: str, system: str, expected: str) -> None:
    """The system's path is taken only when there is something at it, and nothing at our own."""
    (tmp_path / "own").touch()
    (tmp_path / "system").touch()
    assert own_or_system(str(tmp_path / own), str(tmp_path / system)) == str(tmp_path / expected)


@pytest.mark.skipif(os.geteuid() == 0, reason="root is refused nothing here")
def test_out_of_reach_is_not_missing(tmp_path: Path) -> None:
    """A path of the system's that we may not look at is taken, so that whoever asks is told so."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    found = own_or_system(str(tmp_path / "none"), str(closed / "x"))
    closed.chmod(0o700)
    assert found == str(closed / "x")


def test_imports() -> None:
    """The defaults cost neither attrs nor pathlib nor anything else that takes its time."""
    program = "import sys, agentd.defaults; print(*{'attr', 'pathlib', 'subprocess', 'logging'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-IS", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "\n"
