"""The API's answers, asked through Quart's test client on the virtual clock."""

import json
import logging
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from quart.typing import TestClientProtocol as Client

from agentd.api.app import agent_to_dict, create_app, exit_to_dict, health_to_dict, time_to_text
from agentd.lifecycle import Exit, How, State
from agentd.status import AgentStatus, DaemonStatus, StatusStore

NOON = 1_769_860_800.0  # 2026-01-31T12:00:00Z


def agent(name: str = "claude-code", **changes: Any) -> AgentStatus:
    plain = AgentStatus(
        name=name,
        session=name,
        type="native",
        harness="claude-code",
        wanted="running",
        state=State.RUNNING,
        running=True,
        since=NOON,
        digest="d1",
    )
    return attrs.evolve(plain, **changes)


def store_of(*agents: AgentStatus, started: float = 0.0, **daemon: Any) -> StatusStore:
    store = StatusStore(attrs.evolve(DaemonStatus(started=started, card="/etc/stereos/jcard.toml"), **daemon))
    for status in agents:
        store.put(status)
    return store


def client_of(store: StatusStore, clock: Callable[[], float] = lambda: 0.0) -> Client:
    return create_app(store, version="1.2.3", clock=clock).test_client()


async def get(store: StatusStore, path: str) -> Any:
    answer = await client_of(store).get(path)
    assert answer.status_code == 200
    return json.loads(await answer.get_data())


async def test_health_begins_with_the_documented_keys_in_their_order() -> None:
    """Health is one JSON object whose first keys are `state` and `uptime_seconds`, the latter a whole number."""
    answer = await client_of(store_of(agent(), started=10.0), lambda: 133.9).get("/v1/health")
    assert (await answer.get_data()) == (
        b'{"state":"running","uptime_seconds":123,"version":"1.2.3","card":"/etc/stereos/jcard.toml",'
        b'"warnings":[],"agents":1,"revision":1}\n'
    )
    assert answer.headers["Content-Type"] == "application/json"


async def test_uptime_follows_trios_clock(autojump_clock: trio.testing.MockClock) -> None:
    """By default the uptime is the time since `started` on trio's clock."""
    client = create_app(store_of(started=trio.current_time()), version="1").test_client()
    await trio.sleep(3_600.5)
    health = json.loads(await (await client.get("/v1/health")).get_data())
    assert health["uptime_seconds"] == 3_600


async def test_health_tells_of_the_cards_error_only_while_there_is_one() -> None:
    """`card_error` and the warnings are there as long as they are true, and `state` says when agentd is stopping."""
    store = store_of(state="stopping", card_error="line 3: no", warnings=("unknown key `promt`",))
    health = await get(store, "/v1/health")
    assert (health["state"], health["card_error"], health["warnings"]) == (
        "stopping",
        "line 3: no",
        ["unknown key `promt`"],
    )


async def test_no_agents_is_an_empty_list() -> None:
    """Without agents the list is `[]`."""
    assert await (await client_of(store_of()).get("/v1/agents")).get_data() == b"[]\n"


async def test_an_agent_begins_with_the_documented_keys_in_their_order() -> None:
    """An agent begins with `name`, `running`, `session` and `restarts`, and has nothing that does not apply."""
    body = await (await client_of(store_of(agent())).get("/v1/agents")).get_data()
    assert body == (
        b'[{"name":"claude-code","running":true,"session":"claude-code","restarts":0,"type":"native",'
        b'"harness":"claude-code","wanted":"running","state":"running","reason":null,"message":"",'
        b'"since":"2026-01-31T12:00:00.000Z","attempt":0,"digest":"d1"}]\n'
    )


def test_an_agent_shows_all_that_applies_to_it() -> None:
    """Whatever is known of an agent is in its object, times in RFC 3339 and durations in seconds."""
    ended = Exit(how=How.CODE, code=3, at=NOON + 1.5, duration=2.25004)
    shown = agent_to_dict(
        agent(
            running=False,
            state=State.BACKOFF,
            reason="exited",
            message="it exited with 3",
            error="it exited with 3",
            pid=42,
            attempt=2,
            restarts=1,
            started_at=NOON,
            next_restart_at=NOON + 4.5,
            deadline_at=NOON + 60,
            exit=ended,
        )
    )
    assert list(shown.items()) == [
        ("name", "claude-code"),
        ("running", False),
        ("session", "claude-code"),
        ("restarts", 1),
        ("type", "native"),
        ("error", "it exited with 3"),
        ("harness", "claude-code"),
        ("wanted", "running"),
        ("state", "backoff"),
        ("reason", "exited"),
        ("message", "it exited with 3"),
        ("since", "2026-01-31T12:00:00.000Z"),
        ("pid", 42),
        ("attempt", 2),
        ("started_at", "2026-01-31T12:00:00.000Z"),
        ("next_restart_at", "2026-01-31T12:00:04.500Z"),
        ("deadline_at", "2026-01-31T12:01:00.000Z"),
        (
            "exit",
            {
                "how": "code",
                "code": 3,
                "signal": None,
                "at": "2026-01-31T12:00:01.500Z",
                "duration_seconds": 2.25,
                "wish": None,
            },
        ),
        ("digest", "d1"),
    ]


def test_an_exit_keeps_all_its_keys() -> None:
    """An exit by signal on somebody's wish has the same keys, with null for the code."""
    assert exit_to_dict(Exit(how=How.SIGNAL, signal="SIGINT", at=0.0, duration=1.0, wish="shutdown")) == {
        "how": "signal",
        "code": None,
        "signal": "SIGINT",
        "at": "1970-01-01T00:00:00.000Z",
        "duration_seconds": 1.0,
        "wish": "shutdown",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (NOON + 0.25, "2026-01-31T12:00:00.250Z"),
        (4_102_444_799.999, "2099-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_rfc_3339_in_utc_with_milliseconds(seconds: float, text: str) -> None:
    """A time is written in UTC, with three digits after the second and a `Z`, in whatever zone agentd runs."""
    assert time_to_text(seconds) == text


async def test_a_client_with_typed_fields_can_decode_everything() -> None:
    """A decoder with typed fields (Go's) finds numbers where it expects whole numbers and booleans as booleans."""
    store = store_of(agent("a"), agent("b", running=False, error="broken", state=State.FAILED))
    health = health_to_dict(store.daemon, uptime=7.9, version="1", agents=2, revision=2)
    assert {key: type(health[key]) for key in ("state", "uptime_seconds", "agents", "revision", "warnings")} == {
        "state": str,
        "uptime_seconds": int,
        "agents": int,
        "revision": int,
        "warnings": list,
    }
    for shown in await get(store, "/v1/agents"):
        types = {key: type(shown[key]) for key in ("name", "running", "session", "restarts", "type")}
        assert types == {"name": str, "running": bool, "session": str, "restarts": int, "type": str}
        assert type(shown.get("error", "")) is str


async def test_the_list_is_in_the_stores_order() -> None:
    """Agents are listed in the store's order, which is the card's."""
    store = store_of(agent("b"), agent("a"), agent("c"))
    store.order(["c", "b", "a"])
    assert [shown["name"] for shown in await get(store, "/v1/agents")] == ["c", "b", "a"]


async def test_the_list_follows_every_change() -> None:
    """The list, though it is kept as bytes, is never older than the store's last change."""
    store = store_of(agent())
    client = client_of(store)
    first = await (await client.get("/v1/agents")).get_data()
    assert await (await client.get("/v1/agents")).get_data() == first
    store.put(agent(restarts=1))
    assert json.loads(await (await client.get("/v1/agents")).get_data())[0]["restarts"] == 1
    store.drop("claude-code")
    assert await (await client.get("/v1/agents")).get_data() == b"[]\n"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("claude-code", "/v1/agents/claude-code"),
        ("claude-code", "/v1/agents/CLAUDE-Code"),
        ("Straße", "/v1/agents/STRASSE"),
        ("my agent", "/v1/agents/my%20agent"),
        ("é☃🤖", "/v1/agents/%C3%A9%E2%98%83%F0%9F%A4%96"),
        ("50%", "/v1/agents/50%25"),
        ("%41", "/v1/agents/%2541"),
        ("a/b", "/v1/agents/a%2Fb"),
        ("/a//b/", "/v1/agents/%2Fa%2F%2Fb%2F"),
        ("who?", "/v1/agents/who%3F"),
        ("#1 <&>", "/v1/agents/%231%20%3C&%3E"),
    ],
)
async def test_an_agent_is_found_by_its_name(name: str, path: str) -> None:
    """One agent is found by its name in any case, whatever characters it holds, percent-encoded."""
    assert (await get(store_of(agent("other"), agent(name)), path))["name"] == name


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/v1/nothing", "/v2/agents", "/v1/health/", "/v1/agents/", "/v1//agents"],
)
async def test_an_unknown_path_is_404_in_json(path: str) -> None:
    """A path that names nothing is answered by 404 with a JSON object that has `error`, never by a redirect."""
    answer = await client_of(store_of(agent())).get(path)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/json"
    assert "nothing at this path" in json.loads(await answer.get_data())["error"]


async def test_an_unknown_agent_is_404_in_json() -> None:
    """A name that no agent has is answered by 404 and an `error` that repeats the name."""
    answer = await client_of(store_of(agent())).get("/v1/agents/n%C3%B6")
    assert answer.status_code == 404
    assert json.loads(await answer.get_data())["error"] == "there is no agent 'nö'; GET /v1/agents lists them all"


@pytest.mark.parametrize("path", ["/v1/health", "/v1/agents", "/v1/agents/claude-code", "/v1/agents/nobody"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
async def test_other_methods_are_405(path: str, method: str) -> None:
    """Everything but GET and HEAD, OPTIONS too, is answered by 405 with JSON and `Allow: GET, HEAD`."""
    answer = await client_of(store_of(agent())).open(path, method=method)  # type: ignore[call-arg]  # its protocol has no defaults
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert json.loads(await answer.get_data()) == {"error": "the API is read-only: use GET or HEAD"}


@pytest.mark.parametrize("path", ["/v1/health", "/v1/agents", "/v1/agents/claude-code"])
async def test_head_is_allowed(path: str) -> None:
    """HEAD has the status, type and length of the GET."""
    client = client_of(store_of(agent()))
    by_get, by_head = await client.get(path), await client.head(path)
    assert by_head.status_code == 200
    assert dict(by_head.headers) == dict(by_get.headers)


async def test_a_bug_is_500_in_json_and_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A view that fails is answered by 500 with JSON, and its traceback goes to the log."""

    def broken() -> float:
        message = "the clock stopped"
        raise ArithmeticError(message)

    with caplog.at_level(logging.ERROR):
        answer = await client_of(store_of(), broken).get("/v1/health")
    assert answer.status_code == 500
    assert answer.headers["Content-Type"] == "application/json"
    assert "its log has the traceback" in json.loads(await answer.get_data())["error"]
    assert "ArithmeticError: the clock stopped" in caplog.text
    assert {record.name for record in caplog.records} == {"agentd.api.app"}


async def test_text_that_is_no_utf_8_does_not_break_an_answer() -> None:
    """A path with bytes that are no UTF-8 is shown with question marks, in valid JSON."""
    store = StatusStore(DaemonStatus(started=0, card="/etc/\udcff.toml"))
    assert (await get(store, "/v1/health"))["card"] == "/etc/?.toml"
