import pwd

import pytest

from tests.e2e.outside import World


def try_as(world: World, *flags: str) -> tuple[int, str]:
    done = world.try_command(*world.command(*flags))
    return done.returncode, done.stderr


def test_no_agent_user(world: World) -> None:
    """Root without a user `agent` is refused with a message that names -agent-user."""
    try:
        pwd.getpwnam("agent")
    except KeyError:
        code, words = try_as(world)
        assert code == 1
        assert "-agent-user" in words
    else:
        pytest.skip("this machine has a user agent")


def test_root_as_agent_user(world: World) -> None:
    """-agent-user root runs without sudo, and is warned about once."""
    world.write_card(world.agent("a"))
    world.start("-agent-user", "root")
    world.wait_ready("a")
    assert sum("agents run as root" in line for line in world.log_lines) == 1


def test_places_that_the_user_cannot_use(world: World) -> None:
    """Directories that the agent user cannot use are refused with the flag, before anything runs."""
    code, words = try_as(world, "-agent-user", "nobody")
    assert code == 1
    assert "-tmux-socket" in words
    assert "nobody" in words


def test_no_sudo(world: World) -> None:
    """Without sudo agents cannot run as somebody else, and agentd says so."""
    world.env["PATH"] = str(world.home)
    tmux = world.home / "tmux"
    tmux.write_text("#!/bin/sh\necho tmux 3.4\n")
    tmux.chmod(0o755)
    code, words = try_as(world, "-agent-user", "nobody")
    assert code == 1
    assert "sudo is needed" in words


def test_unknown_group(world: World) -> None:
    """An admin group that does not exist is one warning; agentd runs."""
    world.write_card()
    world.start("-admin-group", "no-such-group-here")
    assert sum("no-such-group-here" in line and "WARN" in line for line in world.log_lines) == 1
