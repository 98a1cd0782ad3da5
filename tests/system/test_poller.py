"""A client as strict as stereosd's poller."""

import json
import time
from contextlib import closing
from typing import Any

from tests.e2e.outside import Connection, wait_for
from tests.system.service import API_SOCKET, Service

HEALTH = {"state": str, "uptime_seconds": int}
AGENT = {"name": str, "running": bool, "session": str, "restarts": int}


def decode(text: bytes, shape: dict[str, type]) -> Any:
    """Read one object or a list of them; each has all documented fields, once, first, in order, of their types."""

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        assert len(value) == len(pairs), "a key is there twice"
        return value

    found = json.loads(text.decode("utf-8", "strict"), object_pairs_hook=check)
    for one in found if isinstance(found, list) else [found]:
        assert list(one)[: len(shape)] == list(shape)
        assert {name: type(one[name]) for name in shape} == shape
        assert type(one.get("error", "")) is str
    return found


def poll(connection: Connection) -> tuple[Any, Any]:
    answers = []
    for path, shape in (("/v1/health", HEALTH), ("/v1/agents", AGENT)):
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
        assert int(response.headers["Content-Length"]) == len(body)
        answers.append(decode(body, shape))
    return answers[0], answers[1]


def test_poller(service: Service) -> None:
    """One connection and ever new ones are answered in the documented shapes, while agents come, fail and go."""
    service.write_card(service.agent("a"), service.agent("b", restart="always", env={"FAIL": "1000"}))
    service.start()
    with closing(Connection(API_SOCKET)) as lasting:

        def polled(restarts: int) -> bool:
            for connection in (lasting, Connection(API_SOCKET)):
                health, agents = poll(connection)
                assert health["state"] == "running"
                assert [agent["name"] for agent in agents] == ["a", "b"]
                if connection is not lasting:
                    connection.close()
            return bool(agents[0]["running"]) and agents[1]["restarts"] >= restarts

        wait_for(lambda: polled(3), "three restarts")


def test_poller_from_the_start(service: Service) -> None:
    """Who polls from the moment of the start on is answered, or there is nobody yet; never anything else."""
    service.write_card(service.agent("a"))
    service.systemctl("start", "--no-block", "agentd.service")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        connection = Connection(API_SOCKET)
        try:
            health, agents = poll(connection)
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.01)
            continue
        finally:
            connection.close()
        assert health["state"] == "running"
        assert [agent["name"] for agent in agents] == ["a"]
        break
    else:
        raise AssertionError(service.log)
    service.wait_ready("a")
