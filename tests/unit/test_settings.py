"""Settings: defaults for root and for an ordinary user, and everything that agentd refuses to start with."""

import fcntl
import grp
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from agentd.directories import lock_sockets, prepare_directories
from agentd.errors import StartupError, UsageError
from agentd.settings import AgentUser, Flags, Settings, _is_recent, build_settings

_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not _ROOT, reason="only root can")
as_ordinary_user = pytest.mark.skipif(_ROOT, reason="root is refused nothing here")


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _program(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def runtime() -> Iterator[Path]:
    """Make a runtime directory with a short name: a socket's path has 107 bytes at most."""
    path = Path(tempfile.mkdtemp(prefix="agentd-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def environ(tmp_path: Path, runtime: Path) -> dict[str, str]:
    programs = tmp_path / "bin"
    programs.mkdir()
    _program(programs, "tmux", "echo tmux 3.3a")
    _program(programs, "sudo", "exit 1")
    return {
        "PATH": str(programs),
        "HOME": str(tmp_path / "home"),
        "SHELL": "/bin/sh",
        "XDG_RUNTIME_DIR": str(runtime),
    }


@pytest.fixture
def settings(environ: Mapping[str, str], tmp_path: Path) -> Settings:
    flags = Flags(
        agent_user=_own_name(),
        config=str(tmp_path / "card" / "jcard.toml"),
        tmux_socket=str(tmp_path / "t" / "tmux.sock"),
        api_socket=str(tmp_path / "a" / "agentd.sock"),
        run_dir=str(tmp_path / "run"),
    )
    return build_settings(flags, environ)


_NOBODY = AgentUser(name="nobody", uid=65534, gid=65534, groups=(65534,), home="/", shell="/bin/sh")


@as_root
def test_defaults_of_root(environ: Mapping[str, str]) -> None:
    """As root the documented system paths are the defaults."""
    settings = build_settings(Flags(agent_user="nobody"), environ)
    assert settings.config == Path("/etc/stereos/jcard.toml")
    assert settings.secret_dir == Path("/run/stereos/secrets")
    assert settings.tmux_socket == Path("/run/agentd/tmux.sock")
    assert settings.api_socket == Path("/run/stereos/agentd.sock")
    assert settings.run_dir == Path("/run/agentd-run")
    assert settings.default_workdir == "/home/agent/workspace"
    assert settings.switch_user
    assert settings.agent_user.uid == pwd.getpwnam("nobody").pw_uid
    assert settings.sudo == f"{environ['PATH']}/sudo"
    assert settings.tmux == f"{environ['PATH']}/tmux"
    assert not settings.debug


@as_ordinary_user
def test_defaults_of_an_ordinary_user(environ: Mapping[str, str]) -> None:
    """As an ordinary user agents run as that user, without sudo and without an admin group."""
    settings = build_settings(Flags(), environ)
    runtime = Path(environ["XDG_RUNTIME_DIR"], "agentd")
    assert settings.tmux_socket == runtime / "tmux.sock"
    assert settings.agent_user.uid == os.geteuid()
    assert settings.agent_user.home == environ["HOME"]
    assert not settings.switch_user
    assert settings.sudo is None
    assert settings.admin_gid is None
    assert settings.default_workdir == f"{environ['HOME']}/.config/agentd"


def test_own_user_needs_no_sudo(settings: Settings, tmp_path: Path) -> None:
    """With -agent-user naming our own user nothing is switched and the card's directory is the workdir."""
    assert not settings.switch_user
    assert settings.sudo is None
    assert settings.agent_user.uid == os.geteuid()
    assert settings.default_workdir == str(tmp_path / "card")


def test_unit_needs_systemctl(environ: Mapping[str, str], settings: Settings, tmp_path: Path) -> None:
    """With -tmux-unit systemctl is looked for on PATH, and not finding it is told; without it nobody needs it."""
    flags = Flags(agent_user=_own_name(), tmux_unit="agentd-tmux.service")
    assert (settings.tmux_unit, settings.systemctl) == (None, None)
    with pytest.raises(StartupError, match=r"systemctl is needed to start agentd-tmux\.service and is not on PATH"):
        build_settings(flags, environ)
    _program(tmp_path / "bin", "systemctl", "exit 1")
    found = build_settings(flags, environ)
    assert (found.tmux_unit, found.systemctl) == ("agentd-tmux.service", f"{environ['PATH']}/systemctl")


@pytest.mark.parametrize("unit", [None, "a.service"])
@pytest.mark.parametrize("ours", [True, False])
def test_keeping_agents_in_our_own_unit(
    environ: Mapping[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture, ours: bool, unit: str | None
) -> None:
    """A service that is to keep its agents, and has them in its own unit, is told that systemd will end them."""
    _program(tmp_path / "bin", "systemctl", "exit 1")
    flags = Flags(agent_user=_own_name(), keep_agents=True, tmux_unit=unit)
    assert build_settings(flags, {**environ, "SYSTEMD_EXEC_PID": str(os.getpid() if ours else 1)}).keep_agents
    assert ("-keep-agents keeps nothing here" in caplog.text) is (ours and unit is None)


@pytest.mark.parametrize("name", ["a.service", "agentd-tmux@x.service", "a\\x2db:c_d.e.service"])
def test_names_of_units(environ: Mapping[str, str], tmp_path: Path, name: str) -> None:
    """Whatever systemd takes as the name of a service is one."""
    _program(tmp_path / "bin", "systemctl", "exit 1")
    assert build_settings(Flags(agent_user=_own_name(), tmux_unit=name), environ).tmux_unit == name


@pytest.mark.parametrize(
    "name",
    [
        "agentd-tmux",
        ".service",
        "-a.service",
        "--now.service",
        "a b.service",
        "a/b.service",
        "@x.service",
        "é.service",
        "a.service\n",
        "a.socket",
        "x" * 248 + ".service",
    ],
)
def test_wrong_names_of_units(environ: Mapping[str, str], name: str) -> None:
    """A name that is no service's is wrong usage, and never reaches systemctl."""
    with pytest.raises(UsageError, match=r"-tmux-unit .* is no name of a systemd service"):
        build_settings(Flags(agent_user=_own_name(), tmux_unit=name), environ)


@as_root
def test_root_is_warned_once_about_agents_as_root(environ: Mapping[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """Agents as root are one warning."""
    build_settings(Flags(agent_user="root", admin_group="root"), environ)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "agents run as root" in caplog.text


def test_relative_paths_are_made_absolute_lexically(
    environ: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is taken from the current directory, and symlinks in it are kept."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    settings = build_settings(Flags(agent_user=_own_name(), config="link/../link/./jcard.toml"), environ)
    assert settings.config == tmp_path / "link" / "jcard.toml"


@pytest.mark.parametrize("name", ["", "a" * 32])
def test_user_that_does_not_exist_is_refused(environ: Mapping[str, str], name: str) -> None:
    """An unknown agent user is refused with a message that names -agent-user."""
    with pytest.raises(StartupError, match=f'no user "{name}".*-agent-user'):
        build_settings(Flags(agent_user=name), environ)


@as_ordinary_user
def test_ordinary_user_cannot_switch(environ: Mapping[str, str]) -> None:
    """An ordinary user is refused any other agent user."""
    with pytest.raises(StartupError, match="only root can run agents as root"):
        build_settings(Flags(agent_user="root"), environ)


@as_root
def test_admin_group_is_looked_up(environ: Mapping[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """The admin group's id is taken, and a missing group is one warning and no group."""
    group = grp.getgrgid(1)
    assert build_settings(Flags(agent_user="nobody", admin_group=group.gr_name), environ).admin_gid == 1
    assert not caplog.records
    assert build_settings(Flags(agent_user="nobody", admin_group="x" * 32), environ).admin_gid is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(("length", "fits"), [(107, True), (108, False)])
def test_socket_path_that_is_too_long_is_refused(environ: Mapping[str, str], length: int, fits: bool) -> None:
    """A socket's path may have 107 bytes, encoded, and one more is said before anything else is tried."""
    path = "/tmp/é" + "x" * (length - len("/tmp/é".encode()))
    for flags in (Flags(tmux_socket=path), Flags(api_socket=path)):
        named = attrs.evolve(flags, agent_user=_own_name())
        if fits:
            build_settings(named, environ)
            continue
        with pytest.raises(StartupError, match="has 108 bytes"):
            build_settings(named, environ)


def test_sockets_must_differ(environ: Mapping[str, str]) -> None:
    """One path for both sockets is wrong usage."""
    with pytest.raises(UsageError, match="both /tmp/x"):
        build_settings(Flags(agent_user=_own_name(), tmux_socket="/tmp/x", api_socket="/tmp/./x"), environ)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("tmux 3.2", True),
        ("tmux 3.2a", True),
        ("tmux 3.3a", True),
        ("tmux 3.10", True),
        ("tmux 4.0", True),
        ("tmux 3.5-rc", True),
        ("tmux 3.6-rc2", True),
        ("tmux next-3.4", True),
        ("tmux master", True),
        ("tmux openbsd-7.4", True),
        ("tmux 3.1c", False),
        ("tmux 2.9", False),
        ("tmux next-3.1", False),
        ("tmux", False),
        ("", False),
        ("screen 4.9", False),
    ],
)
def test_tmux_version(version: str, expected: bool) -> None:
    """tmux 3.2 and later will do, and so will the versions that have no number."""
    assert _is_recent(version) is expected


def test_old_tmux_is_refused(environ: Mapping[str, str]) -> None:
    """An old tmux is refused with what it says and what is needed."""
    _program(Path(environ["PATH"]), "tmux", "echo tmux 3.1c")
    with pytest.raises(StartupError, match=r"'tmux 3\.1c': agentd needs tmux 3\.2 or later"):
        build_settings(Flags(agent_user=_own_name()), environ)


@pytest.mark.parametrize(
    ("installer", "hint"),
    [
        ("apt-get", "`apt-get install -y tmux`"),
        ("dnf", "`dnf install -y tmux`"),
        ("apk", "`apk add tmux`"),
        (None, "the package tmux"),
    ],
)
def test_missing_tmux_is_refused_with_the_remedy(environ: Mapping[str, str], installer: str | None, hint: str) -> None:
    """A missing tmux is refused with the one command that installs it here."""
    programs = Path(environ["PATH"])
    (programs / "tmux").unlink()
    if installer:
        _program(programs, installer, "exit 0")
    with pytest.raises(StartupError, match=f"tmux is needed .* not on PATH: install it with {hint}"):
        build_settings(Flags(agent_user=_own_name()), environ)


@as_root
def test_missing_sudo_is_refused_only_where_it_is_needed(environ: Mapping[str, str]) -> None:
    """sudo must be there to switch users, and only then."""
    (Path(environ["PATH"]) / "sudo").unlink()
    build_settings(Flags(agent_user="root"), environ)
    with pytest.raises(StartupError, match="sudo is needed to run agents as nobody"):
        build_settings(Flags(agent_user="nobody"), environ)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@as_ordinary_user
def test_directories_of_an_ordinary_user_are_private(settings: Settings) -> None:
    """An ordinary user's directories are made for that user alone."""
    prepare_directories(settings)
    prepare_directories(settings)
    for directory in (settings.tmux_socket.parent, settings.api_socket.parent, settings.run_dir):
        assert _mode(directory) == 0o700


@as_root
@pytest.mark.parametrize(("admin_gid", "api_mode", "tmux_gid"), [(1, 0o750, 1), (None, 0o755, 65534)])
def test_directories_of_root(
    settings: Settings, tmp_path: Path, admin_gid: int | None, api_mode: int, tmux_gid: int
) -> None:
    """As root the tmux directory is the agent user's, the others root's, and the admin group may enter."""
    for ancestor in (tmp_path, *tmp_path.parents):
        if "pytest-of-" in str(ancestor):
            ancestor.chmod(0o711)
    os.umask(0o077)
    prepare_directories(attrs.evolve(settings, agent_user=_NOBODY, switch_user=True, admin_gid=admin_gid))
    tmux = settings.tmux_socket.parent.stat()
    assert (stat.S_IMODE(tmux.st_mode), tmux.st_uid, tmux.st_gid) == (0o750, 65534, tmux_gid)
    assert _mode(settings.api_socket.parent) == api_mode
    assert settings.api_socket.parent.stat().st_gid == (admin_gid or 0)
    assert _mode(settings.run_dir) == 0o711


def test_directories_that_exist_are_not_altered(settings: Settings) -> None:
    """A directory that is there keeps its mode."""
    for directory in (settings.tmux_socket.parent, settings.api_socket.parent, settings.run_dir):
        directory.mkdir()
        directory.chmod(0o701)
    prepare_directories(settings)
    assert {_mode(settings.run_dir), _mode(settings.tmux_socket.parent)} == {0o701}


@as_root
def test_tmux_directory_that_the_agent_user_cannot_write_is_refused(settings: Settings) -> None:
    """Root's own directory is no place for the tmux socket of another user."""
    settings.tmux_socket.parent.mkdir(mode=0o755)
    with pytest.raises(StartupError, match=r"is not writable for nobody.*-tmux-socket"):
        prepare_directories(attrs.evolve(settings, agent_user=_NOBODY, switch_user=True))


@as_ordinary_user
def test_directory_that_we_cannot_write_is_refused(settings: Settings) -> None:
    """A directory without the right to write is refused, with the flag that names another."""
    settings.api_socket.parent.mkdir(mode=0o500)
    with pytest.raises(StartupError, match=r"is not writable for us.*-api-socket"):
        prepare_directories(settings)


def test_file_in_the_place_of_a_directory_is_refused(settings: Settings) -> None:
    """A file where the socket's directory should be is named."""
    settings.tmux_socket.parent.touch()
    with pytest.raises(StartupError, match=r"is not a directory.*-tmux-socket"):
        prepare_directories(settings)


def test_run_directory_that_others_can_write_is_refused(settings: Settings) -> None:
    """The run directory must not be writable by anybody else."""
    settings.run_dir.mkdir()
    settings.run_dir.chmod(0o777)
    with pytest.raises(StartupError, match=r"has mode 0777.*-run-dir"):
        prepare_directories(settings)


def test_run_directory_that_is_a_symlink_is_refused(settings: Settings) -> None:
    """The run directory must be a directory itself."""
    real = settings.run_dir.with_name("real")
    real.mkdir()
    settings.run_dir.symlink_to(real)
    with pytest.raises(StartupError, match=r"is not a directory.*-run-dir"):
        prepare_directories(settings)


@as_root
def test_run_directory_of_another_user_is_refused(settings: Settings) -> None:
    """The run directory must be ours."""
    settings.run_dir.mkdir()
    os.chown(settings.run_dir, 65534, 65534)
    with pytest.raises(StartupError, match="belongs to uid 65534"):
        prepare_directories(settings)


def test_second_agentd_on_a_socket_is_refused(settings: Settings, tmp_path: Path) -> None:
    """Each socket has one agentd, whatever its run directory; the refused one is told its pid; later both are free."""
    prepare_directories(settings)
    other = settings.tmux_socket.parent / "other.sock"
    shared_tmux = attrs.evolve(settings, api_socket=other, run_dir=tmp_path / "other")
    shared_api = attrs.evolve(settings, tmux_socket=other, run_dir=tmp_path / "other")
    prepare_directories(shared_tmux)
    with lock_sockets(settings):
        for second, flag in ((settings, "-tmux-socket"), (shared_tmux, "-tmux-socket"), (shared_api, "-api-socket")):
            with (
                pytest.raises(StartupError, match=rf"another agentd \(pid {os.getpid()}\) owns .*{flag}"),
                lock_sockets(second),
            ):
                pytest.fail("two agentd own one socket")
    with lock_sockets(shared_tmux):
        pass


@pytest.mark.parametrize("kind", ["directory", "fifo", "symlink", "readable", "hard link"])
def test_what_is_in_the_way_of_a_lock(settings: Settings, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """Agents own their socket's directory: what they put in the lock's place is a warning, and blocks nobody."""
    prepare_directories(settings)
    place = settings.tmux_socket.with_name(f".{settings.tmux_socket.name}.agentd")
    other = place.with_name("other")
    if kind == "directory":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place, 0o600)
    elif kind == "symlink":
        place.symlink_to(other)
    else:
        place.touch(0o644 if kind == "readable" else 0o600)
    if kind == "hard link":
        os.link(place, other)
    with lock_sockets(settings), lock_sockets(attrs.evolve(settings, api_socket=other.with_name("api"))):
        pass
    assert [str(place) in record.message for record in caplog.records] == [True, True]
    assert os.path.exists(other) == (kind == "hard link")


@as_root
def test_lock_of_another_user(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Root is not blocked by a lock that somebody else holds in the place of its own."""
    prepare_directories(settings)
    place = settings.tmux_socket.with_name(f".{settings.tmux_socket.name}.agentd")
    place.touch(0o600)
    os.chown(place, 65534, 65534)
    with place.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with lock_sockets(settings):
            assert [str(place) in record.message for record in caplog.records] == [True]


def test_socket_by_another_path_is_the_same_socket(settings: Settings, tmp_path: Path) -> None:
    """A symlink on the way to a socket does not make it another one."""
    prepare_directories(settings)
    (tmp_path / "link").symlink_to(settings.tmux_socket.parent)
    aliased = attrs.evolve(settings, tmux_socket=tmp_path / "link" / "tmux.sock", api_socket=tmp_path / "b.sock")
    with lock_sockets(settings), pytest.raises(StartupError, match="another agentd"), lock_sockets(aliased):
        pytest.fail("two agentd own one socket")
