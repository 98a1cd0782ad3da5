"""Asking agentd's API over its Unix socket, and saying in one sentence why it does not answer."""

import contextlib
import http.client
import json
import math
import os
import socket
import stat
import time
from typing import Any
from urllib.parse import quote

_TIMEOUT = 5.0
_MOST = 64 << 20
"""Bytes of one answer: a thousand agents make half a megabyte."""
_MAX_SOCKET_PATH = 107


class ApiError(Exception):
    """The API cannot be asked, or does not answer with what was asked for; agentctl exits with 1."""

    # Not an AgentdError: attrs, which errors.py needs, would take a third of the time that agentctl has.


class UnknownAgentError(ApiError):
    """There is no agent of that name."""


class Client:
    """agentd's API at one socket."""

    def __init__(self, path: str, *, timeout: float = _TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout

    def health(self) -> dict[str, Any]:
        """Ask for agentd's own status."""
        return self._object(self._get("/v1/health"))

    def agents(self) -> list[dict[str, Any]]:
        """Ask for all agents, in the card's order."""
        found = self._get("/v1/agents")
        if not isinstance(found, list):
            raise self.stranger()
        return [self._object(agent) for agent in found]

    def agent(self, name: str) -> dict[str, Any]:
        """Ask for one agent, by its name in any case. UnknownAgentError: there is none."""
        # As bytes, so that it is the same name in every locale.
        return self._object(self._get(f"/v1/agents/{quote(os.fsencode(name), safe='')}"))

    def stranger(self) -> ApiError:
        """Say that what answers is not agentd."""
        return ApiError(f"what listens on {self._path} does not answer as agentd does: give agentd's own --api-socket")

    def _get(self, target: str) -> Any:
        try:
            with contextlib.closing(_Connection(self._path, time.monotonic() + self._timeout)) as connection:
                connection.request("GET", target)
                response = connection.getresponse()
                body = response.read(_MOST + 1)
        except OSError as error:
            raise ApiError(self._reason(error)) from error
        except http.client.HTTPException as error:
            raise self.stranger() from error
        if len(body) > _MOST:
            msg = f"what listens on {self._path} answers with more than {_MOST} bytes: is it agentd?"
            raise ApiError(msg)
        try:
            value = json.loads(body, parse_constant=_finite, parse_float=_finite)
        except ValueError as error:
            raise self.stranger() from error
        if response.status == http.client.OK:
            return value
        text = value.get("error") if isinstance(value, dict) else None
        kind = UnknownAgentError if response.status == http.client.NOT_FOUND else ApiError
        msg = f"agentd answers with HTTP status {response.status}: {text or 'it does not say why'}"
        raise kind(msg)

    def _object(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.stranger()
        return value

    def _reason(self, error: OSError) -> str:
        path = self._path
        length = len(os.fsencode(path))
        if length > _MAX_SOCKET_PATH:
            return f"{path} has {length} bytes and a socket's path at most {_MAX_SOCKET_PATH}: give a shorter one"
        match error:
            case FileNotFoundError() | NotADirectoryError():
                text = f"there is no socket {path}: is agentd running? If it has another one, give --api-socket"
            case PermissionError():
                group = _group_of(path)
                way = f"become a member of the group {group} (and log in again), or use sudo" if group else "use sudo"
                text = f"permission denied for {path}: {way}"
            case ConnectionRefusedError() if not _is_socket(path):
                text = f"{path} is not a socket: give agentd's own --api-socket"
            case ConnectionRefusedError():
                text = f"nobody listens on {path}: is agentd running? If it has another socket, give --api-socket"
            # A queue of connections that is full is told at once.
            case TimeoutError() | BlockingIOError():
                text = f"agentd does not answer on {path} within {self._timeout:g} s: its log may say why"
            case ConnectionError():
                text = f"the connection to {path} was closed before the answer: agentd may be stopping; try again"
            case _:
                text = f"{path} cannot be used ({error.strerror or error}): give agentd's own --api-socket"
        return text


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, deadline: float) -> None:
        super().__init__("localhost")
        self._path = path
        self._deadline = deadline

    def connect(self) -> None:
        self.sock = _Socket(self._deadline)
        self.sock.connect(self._path)


class _Socket(socket.socket):
    """A Unix socket that waits until a deadline and no longer, also when a little comes time and again."""

    def __init__(self, deadline: float) -> None:
        super().__init__(socket.AF_UNIX)
        self._deadline = deadline

    def connect(self, address: Any) -> None:
        """Connect as every socket does."""
        self._wait_for_the_rest()
        super().connect(address)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive as every socket does; all that http.client reads comes from here."""
        self._wait_for_the_rest()
        return super().recv_into(buffer, nbytes, flags)

    def _wait_for_the_rest(self) -> None:
        # Left to the socket, 0 would mean not to wait, and the timeout would be that of each call.
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)


def _finite(text: str) -> float:
    """Read a number; ValueError: it is none of JSON's, though Python reads and writes it."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        # It has just gone.
        return True


def _group_of(path: str) -> str | None:
    """Name the group that may use the path; of what cannot be seen, the last directory above it that can."""
    import grp

    path = os.path.abspath(path)
    while True:
        try:
            found = os.stat(path)
        except PermissionError:
            path = os.path.dirname(path)
            continue
        except OSError:
            return None
        # Root's own group is for nobody to become a member of.
        needed = stat.S_IXGRP if stat.S_ISDIR(found.st_mode) else stat.S_IWGRP
        if not found.st_gid or not found.st_mode & needed:
            return None
        try:
            return grp.getgrgid(found.st_gid).gr_name
        except KeyError:
            return str(found.st_gid)
