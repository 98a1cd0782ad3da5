"""Secrets with dangerous names, cards and secrets that come and go, crowds of clients: a whole agentd under them."""

import contextlib
import os
import resource
import shutil
import socket
import time
from pathlib import Path

from tests.e2e.outside import World, wait_for

_DANGEROUS = {
    "LD_PRELOAD": "/no/such/library.so",
    "BASH_ENV": "/no/such/file",
    "ENV": "/no/such/file",
    "IFS": "abc",
    "QUOTES": 'it\'s "q" $(id) `id`\nsecond line',
}
_RESERVED = ("TMUX", "TMUX_PANE", "AGENTD_RUN", "AGENTD_ATTEMPT")


def _environ(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def test_secrets_with_dangerous_names(world: World) -> None:
    """What loader and shells read reaches the agent alone, not agentd and the tmux server; reserved names nobody."""
    path = f"{world.bin}:{world.env['PATH']}:/from/the/secret"
    for name, value in {**_DANGEROUS, "PATH": path, **dict.fromkeys(_RESERVED, "forged")}.items():
        (world.secrets / name).write_text(value + "\r\n")
    agent = world.agent("a")
    del agent["env"]["PATH"]
    world.write_card(agent)
    world.start()
    start = world.wait_ready("a")
    for name in ("LD_PRELOAD", "BASH_ENV", "ENV", "QUOTES"):
        assert start.env[name] == _DANGEROUS[name]
    assert start.env["PATH"] == path
    assert "forged" not in start.env.values()
    assert start.env["AGENTD_ATTEMPT"]
    assert world.process is not None
    server = int(world.tmux("display-message", "-p", "#{pid}").stdout)
    shown = world.tmux("show-environment", "-g").stdout.encode()
    for seen in (_environ(world.process.pid), _environ(server), shown):
        assert b"/no/such" not in seen
        assert b"/from/the/secret" not in seen
        assert b"second line" not in seen
    warnings = world.get("/v1/health").json["warnings"]
    assert [warning.split()[1] for warning in warnings] == [f"'{name}'" for name in sorted(_RESERVED)]
    assert "/no/such" not in world.log


def test_card_that_becomes_a_directory(world: World) -> None:
    """A directory in the card's place is an error while it is there, and stops nothing; later the card is taken."""
    world.write_card(world.agent("a"))
    world.start()
    start = world.wait_ready("a")
    world.card.unlink()
    world.card.mkdir()
    wait_for(lambda: "it is a directory" in world.get("/v1/health").json.get("card_error", ""), "the error")
    assert world.status("a")["pid"] == start.pid
    world.card.rmdir()
    world.write_card(world.agent("a"), world.agent("b"))
    world.wait_status("b", state="running")
    assert "card_error" not in world.get("/v1/health").json
    assert world.status("a")["pid"] == start.pid


def test_secrets_directory_that_vanishes(world: World) -> None:
    """When the secrets' directory goes, its secrets go; one that cannot be read in its place keeps them."""
    (world.secrets / "TOKEN").write_text("t")
    world.write_card(world.agent("a"))
    world.start()
    start = world.wait_ready("a")
    kept = world.top / "kept"
    world.secrets.rename(kept)
    world.secrets.symlink_to("nowhere")
    wait_for(lambda: world.get("/v1/health").json["warnings"], "the warning")
    assert world.status("a")["pid"] == start.pid
    world.secrets.unlink()
    kept.rename(world.secrets)
    wait_for(lambda: not world.get("/v1/health").json["warnings"], "the end of the warning")
    assert world.status("a")["pid"] == start.pid
    shutil.rmtree(world.secrets)
    assert "TOKEN" not in world.wait_ready("a", 2).env


def test_crowd_of_clients_with_few_descriptors(world: World) -> None:
    """More clients than there are descriptors: agents are restarted, the API answers, and a stop is quick."""
    world.write_card(world.agent("a", restart="always", restart_delay_max="1ms", env={"AFTER": "0.2"}))
    world.start()
    wait_for(lambda: world.status("a").get("restarts"), "a restart")
    assert world.process is not None
    resource.prlimit(world.process.pid, resource.RLIMIT_NOFILE, (96, 96))
    with contextlib.ExitStack() as crowd:

        def connect(clients: int) -> None:
            for _ in range(clients):
                # Without a timeout, by which it would not wait for room in the backlog.
                crowd.enter_context(socket.socket(socket.AF_UNIX)).connect(os.fspath(world.api_socket))

        connect(150)

        def restarts() -> int:
            with contextlib.suppress(BlockingIOError):  # The backlog is full.
                return int(world.status("a")["restarts"])
            return 0

        before = wait_for(restarts, "the API")
        wait_for(lambda: restarts() > before + 2, "restarts")
        connect(20)
        wait_for(restarts, "the API")
        assert world.get("/v1/health").status == 200
        began = time.monotonic()
        assert world.stop() == 0
        assert time.monotonic() - began < 8
    assert world.log.count("the API has more than 24 connections") == 1
