import fcntl
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from tests.e2e.outside import Connection, World, own_user, wait_for

DOCUMENTED = ("name", "running", "session", "restarts")


@pytest.fixture(scope="module")
def served() -> Iterator[World]:
    world = World()
    world.write_card(
        world.agent("Claude", harness="claude-code", session="s.1"),
        world.agent("broken", workdir="/nowhere/at/all"),
        world.agent("ü ☃", session="u"),
    )
    world.start()
    world.wait_ready("Claude")
    world.wait_status("broken", state="waiting")
    yield world
    world.close()


def test_health(served: World) -> None:
    """Health has its documented keys first: the state and the whole seconds that agentd is up."""
    health = served.get("/v1/health").json
    assert list(health)[:2] == ["state", "uptime_seconds"]
    assert health["state"] == "running"
    assert isinstance(health["uptime_seconds"], int)
    assert (health["card"], health["agents"]) == (str(served.card), 3)


def test_agents(served: World) -> None:
    """The agents come in the card's order, with the documented keys first; an error is there only if there is one."""
    agents = served.get("/v1/agents").json
    assert [agent["name"] for agent in agents] == ["Claude", "broken", "ü ☃"]
    claude, broken, _ = agents
    assert {key: claude[key] for key in DOCUMENTED} == {
        "name": "Claude",
        "running": True,
        "session": "s_1",
        "restarts": 0,
    }
    assert list(claude)[:4] == list(DOCUMENTED)
    assert (claude["type"], claude["state"], claude["reason"]) == ("native", "running", None)
    assert "error" not in claude
    assert (broken["running"], broken["state"]) == (False, "waiting")
    assert "/nowhere/at/all" in broken["error"]


@pytest.mark.parametrize("name", ["Claude", "claude", "CLAUDE", "%63laude"])
def test_agent_case_insensitive(served: World, name: str) -> None:
    """An agent is found by its name in any case."""
    reply = served.get(f"/v1/agents/{name}")
    assert (reply.status, reply.json["name"]) == (200, "Claude")


def test_agent_with_a_hard_name(served: World) -> None:
    """A name beyond ASCII is found by its percent-encoding."""
    assert served.get("/v1/agents/%C3%BC%20%E2%98%83").json["name"] == "ü ☃"


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/agents", "/v1/agents/nobody", "/v1/agents/", "/v1/health/x", "//"])
def test_not_found(served: World, path: str) -> None:
    """Unknown paths and agents are 404 in JSON, with an error."""
    reply = served.get(path)
    assert reply.status == 404
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.json["error"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/v1/health", "/v1/agents", "/v1/agents/claude"])
def test_read_only(served: World, method: str, path: str) -> None:
    """Other methods than GET and HEAD are 405, with what is allowed."""
    reply = served.get(path, method)
    assert reply.status == 405
    assert {word.strip() for word in reply.headers["Allow"].split(",")} == {"GET", "HEAD"}
    assert reply.json["error"]


def test_head(served: World) -> None:
    """HEAD is GET without the body."""
    reply = served.get("/v1/agents", "HEAD")
    assert (reply.status, reply.body) == (200, b"")
    assert int(reply.headers["Content-Length"]) == len(served.get("/v1/agents").body)


def test_keep_alive(served: World) -> None:
    """One connection serves many requests."""
    with closing(Connection(served.api_socket)) as connection:
        for _ in range(50):
            connection.request("GET", "/v1/health")
            assert json.loads(connection.getresponse().read())["state"] == "running"


def test_connection_close(served: World) -> None:
    """A client that asks for it has its connection closed after the answer."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(served.api_socket))
        client.sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while data := client.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 200")


def test_nonsense(served: World) -> None:
    """Bytes that are no HTTP cost nobody anything."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(served.api_socket))
        client.sendall(b"\x00\xff nonsense\r\n\r\n")
        assert b" 400 " in client.recv(65536)
    assert served.get("/v1/health").status == 200


IDLE = b""
HALF = b"GET /v1/health HTTP/1.1\r\nHo"
UNREAD = b"GET /v1/agents HTTP/1.1\r\nHost: x\r\n\r\n" * 200


@pytest.mark.parametrize("said", [IDLE, HALF, UNREAD], ids=["idle", "half", "unread"])
def test_clients_cannot_delay_a_stop(world: World, said: bytes) -> None:
    """Neither an idle client, nor half a request, nor a client that never reads its answers, holds up a stop."""
    world.write_card(*(world.agent(f"a{number}", workdir="/nowhere/at/all") for number in range(30)))
    world.start()
    wait_for(lambda: len(world.agents()) == 30, "the agents")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(world.api_socket))
        client.setblocking(False)
        with suppress(BlockingIOError):
            client.sendall(said)
        assert world.get("/v1/health").status == 200
        began = time.monotonic()
        assert world.stop() == 0
        assert time.monotonic() - began < 8


def test_curl_like_client(served: World) -> None:
    """A plain HTTP/1.0 client is answered too."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(served.api_socket))
        client.sendall(b"GET /v1/agents HTTP/1.0\r\n\r\n")
        answer = b""
        while data := client.recv(65536):
            answer += data
    assert json.loads(answer.partition(b"\r\n\r\n")[2])[0]["name"] == "Claude"


def test_many_clients(served: World) -> None:
    """Fifty clients at once are all answered."""
    connections = [Connection(served.api_socket) for _ in range(50)]
    for connection in connections:
        connection.request("GET", "/v1/agents")
    for connection in connections:
        assert connection.getresponse().read()
        connection.close()


def test_stopped_reader_of_the_log() -> None:
    """A log that nobody reads stops neither the agents nor the API."""
    world = World()
    world.write_card(world.agent("a", restart="always", restart_delay_max="1ms", env={"AFTER": "0"}))
    command = world.command("-debug", "-agent-user", own_user())
    with subprocess.Popen(command, env=world.env, cwd="/", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        world.process = process
        assert process.stderr is not None
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        try:
            world.wait_api()
            wait_for(lambda: world.status("a")["restarts"] > 10, "restarts")
        finally:
            process.terminate()
            process.stderr.read()
    world.close()
