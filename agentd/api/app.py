"""The read-only API: what the status store holds, as JSON.

The first keys of each object, and their order, are documented and decoded strictly by others: more may follow them,
none of them may go, move or change its type.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import trio
from quart import Response
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter

from agentd.lifecycle import Exit
from agentd.status import AgentStatus, DaemonStatus, StatusStore

_METHODS = ("GET", "HEAD")

_ERRORS = {
    404: "there is nothing at this path; GET /v1/health, /v1/agents or /v1/agents/NAME",
    405: "the API is read-only: use GET or HEAD",
    500: "agentd failed to answer, which is a bug; its log has the traceback",
}


def create_app(store: StatusStore, *, version: str, clock: Callable[[], float] = trio.current_time) -> QuartTrio:
    """Build the ASGI application over this store; `clock` is the one that `DaemonStatus.started` was read from."""
    # Quart's logger has the app's name, and so stands below agentd's own.
    app = QuartTrio("agentd.api.app", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.converters["name"] = _NameConverter
    app.url_map.merge_slashes = False  # It would answer with a redirect in HTML, and a name may hold slashes.
    agents_json = _AgentsJson(store)

    async def health() -> Response:
        uptime = clock() - store.daemon.started
        return _json_response(
            _to_json(
                health_to_dict(
                    store.daemon, uptime=uptime, version=version, agents=len(store.agents), revision=store.revision
                )
            )
        )

    async def agents() -> Response:
        return _json_response(agents_json.current())

    async def agent(name: str) -> Response:
        status = store.get(name)
        if status is None:
            return _error_response(404, f"there is no agent {name!r}; GET /v1/agents lists them all")
        return _json_response(_to_json(agent_to_dict(status)))

    app.add_url_rule("/v1/health", view_func=health, methods=_METHODS)
    app.add_url_rule("/v1/agents", view_func=agents, methods=_METHODS)
    app.add_url_rule("/v1/agents/<name:name>", view_func=agent, methods=_METHODS)
    app.register_error_handler(HTTPException, _http_error)
    return app


def health_to_dict(
    daemon: DaemonStatus, *, uptime: float, version: str, agents: int, revision: int
) -> dict[str, object]:
    """Return what `GET /v1/health` answers; a card error is there only while there is one."""
    health: dict[str, object] = {
        "state": daemon.state,
        "uptime_seconds": int(uptime),
        "version": version,
        "card": daemon.card,
    }
    if daemon.card_error is not None:
        health["card_error"] = daemon.card_error
    return health | {"warnings": list(daemon.warnings), "agents": agents, "revision": revision}


def agent_to_dict(status: AgentStatus) -> dict[str, object]:
    """Return what `GET /v1/agents/NAME` answers; keys that say nothing about this agent now are left out."""
    agent: dict[str, object | None] = {
        "name": status.name,
        "running": status.running,
        "session": status.session,
        "restarts": status.restarts,
        "type": status.type,
        "error": status.error,
        "harness": status.harness,
        "wanted": status.wanted,
        "state": status.state.value,
        "reason": status.reason,
        "message": status.message,
        "since": time_to_text(status.since),
        "pid": status.pid,
        "attempt": status.attempt,
        "started_at": _optional_time(status.started_at),
        "next_restart_at": _optional_time(status.next_restart_at),
        "deadline_at": _optional_time(status.deadline_at),
        "exit": None if status.exit is None else exit_to_dict(status.exit),
        "digest": status.digest,
    }
    return {key: value for key, value in agent.items() if value is not None or key == "reason"}


def exit_to_dict(ended: Exit) -> dict[str, object]:
    """Return the end of an attempt; all keys are always there, null where they do not apply."""
    return {
        "how": ended.how.value,
        "code": ended.code,
        "signal": ended.signal,
        "at": time_to_text(ended.at),
        "duration_seconds": round(ended.duration, 3),
        "wish": ended.wish,
    }


def time_to_text(seconds: float) -> str:
    """Write Unix seconds as RFC 3339 in UTC, with milliseconds: `2026-01-31T12:00:00.250Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


class _AgentsJson:
    """The list of all agents as bytes, made once per revision: pollers ask far more often than anything changes."""

    def __init__(self, store: StatusStore) -> None:
        self._store = store
        self._revision: int | None = None
        self._json = b""

    def current(self) -> bytes:
        """Return the list as of the store's revision."""
        if self._revision != self._store.revision:
            self._json = _to_json([agent_to_dict(status) for status in self._store.agents])
            self._revision = self._store.revision
        return self._json


class _NameConverter(BaseConverter):
    """The rest of the path, whatever it holds: a name may have slashes anywhere."""

    regex = ".+"
    part_isolating = False


async def _http_error(error: HTTPException) -> Response:
    """Answer every error that Quart answers with: unknown paths, other methods, bad requests and bugs in a view."""
    code = error.code or 500
    return _error_response(code, _ERRORS.get(code) or error.description or error.name)


def _error_response(code: int, text: str) -> Response:
    response = _json_response(_to_json({"error": text}), code)
    if code == 405:  # noqa: PLR2004 - the number is the clearest name of a status
        response.headers["Allow"] = ", ".join(_METHODS)
    return response


def _json_response(body: bytes, code: int = 200) -> Response:
    return Response(body, status=code, content_type="application/json")


def _to_json(value: Any) -> bytes:
    # A path may hold bytes that are no UTF-8, which Python keeps as lone surrogates: they become question marks.
    return (json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n").encode(errors="replace")


def _optional_time(seconds: float | None) -> str | None:
    return None if seconds is None else time_to_text(seconds)
