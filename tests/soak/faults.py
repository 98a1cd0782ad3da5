"""What the soak does to agentd, to tmux and to harnesses: kills, stops, standstills, lost sockets."""

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from tests.e2e.outside import World, processes_with, wait_for, wait_for_none
from tests.soak.fleet import Fleet
from tests.soak.ledger import Ledger, Touch
from tests.soak.records import read_records

_STOP_LIMIT = 90.0
"""Seconds for a clean stop: a grace period of 4 s, and much for a busy machine."""
_KEEPS, _STOPS, _LEAVES = 0.4, 0.1, 0.5
"""How often agentd is one that keeps agents, is stopped and not killed, and if it keeps agents, leaves them."""
_GIVES_UP = 15.0
"""Seconds after which agentd has given up at the latest where it finds a tmux that stands still."""
_PAUSES = (0.0, 0.0, 0.0, 0.5, 2.0)
"""Seconds until the next agentd."""


class Faults:
    """Does one thing after the other, and notes what that explains."""

    def __init__(self, world: World, ledger: Ledger, fleet: Fleet, flags: list[str]) -> None:
        self._world = world
        self._ledger = ledger
        self._fleet = fleet
        self._flags = flags
        self._told_to_end = False
        self._keeps = False
        """Whether this agentd leaves its agents when it ends."""
        self._halted: int | None = None
        self._resumed = 0.0

    # agentd.

    @property
    def agentd(self) -> subprocess.Popen[bytes] | None:
        """agentd, if it lives."""
        process = self._world.process
        return process if process is not None and process.poll() is None else None

    def ensure_agentd(self) -> None:
        """Start agentd if it does not run, as a service manager would."""
        if self.agentd is not None:
            return
        process = self._world.process
        if process is not None and not self._told_to_end:
            # Told that no tmux answers, an ordinary user's agentd may give up: that is not an end by itself.
            if self._halted is None and time.monotonic() - self._resumed > _GIVES_UP:
                self._ledger.wrong(
                    "lost: agentd ended by itself", f"with {process.returncode}: {self._world.log[-500:]}"
                )
            self._ledger.count("agentd gave up, since tmux stood still")
        self._told_to_end = False
        self._keeps = random.random() < _KEEPS
        self._ledger.count("agentd started")
        self._world.spawn(*self._flags, *(["-keep-agents"] if self._keeps else []))

    def end_agentd(self) -> None:
        """Mostly kill it; now and then stop it cleanly, with its agents or without them, and have another one."""
        if random.random() < _STOPS:
            self.restart_agentd()
        elif self._keeps and random.random() < _LEAVES:
            self.leave_agents()
        else:
            self.kill_agentd()

    def leave_agents(self) -> None:
        """Have agentd end, and leave its agents to the next one."""
        if self.agentd is None or not self._has_taken_over():
            return
        self._end("agentd stopped with -keep-agents, and started again")
        self._ledger.later(random.choice(_PAUSES), self.ensure_agentd)

    def kill_agentd(self) -> None:
        """Kill agentd; the next one comes at once, or a little later."""
        process = self.agentd
        if process is None:
            return
        self._told_to_end = True
        process.kill()
        process.wait()
        self._ledger.count("agentd killed (SIGKILL)")
        self._ledger.later(random.choice(_PAUSES), self.ensure_agentd)

    def stop_agentd(self) -> None:
        """Stop agentd cleanly, and see that nothing is left of its agents."""
        self.resume_tmux()
        if self.agentd is None or self._keeps or not self._has_taken_over():
            return
        begin = time.time()
        self._end("agentd stopped (SIGTERM)")
        self._ledger.touches.append(Touch("stop", "", begin, time.time()))
        self._ledger.most("longest stop of all agents (ms)", 1000 * (time.time() - begin))
        self._check_all_gone()

    def stop_for_good(self) -> None:
        """Stop agentd at the end of the soak, whichever it is."""
        wait_for(self._has_taken_over, "the agents at the end", seconds=_STOP_LIMIT)
        while self._keeps:
            self._end("agentd stopped with -keep-agents, and started again")
            self.ensure_agentd()
            wait_for(self._has_taken_over, "the agents at the end", seconds=_STOP_LIMIT)
        self.stop_agentd()

    def _end(self, how: str) -> None:
        self._told_to_end = True
        try:
            code = self._world.stop(seconds=_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._ledger.wrong("lost: agentd ended by itself", f"it did not end within {_STOP_LIMIT:g} s: {how}")
            self.kill_agentd()
            return
        self._ledger.count(how)
        if code != 0:
            self._ledger.wrong("lost: agentd ended by itself", f"it ended with {code}: {how}")

    def restart_agentd(self) -> None:
        """Stop agentd cleanly, and start it again."""
        self.stop_agentd()
        self.ensure_agentd()

    def _has_taken_over(self) -> bool:
        """Whether agentd has had a valid card: without one it knows of no agent, and a stop stops none."""
        with suppress(OSError, HTTPException):
            agents = self._world.agents()
            return bool(agents) and all(status["reason"] != "recovering" for status in agents.values())
        return False

    def _check_all_gone(self) -> None:
        """See that no process, session or file is there after a clean stop."""
        left = wait_for_none(lambda: processes_with(str(self._world.top)))
        records = read_records(self._world.records)
        living = [f"{start}" for start in records.all_starts if start.lives]
        for what in [*left.values(), *living]:
            self._ledger.wrong("leaked: processes", f"after a stop: {what}")
        if self._world.tmux("list-sessions", check=False).returncode == 0:
            self._ledger.wrong("leaked: tmux sessions", f"after a stop: {self._world.sessions()} or its server")
        run_dir = self._world.run_dir
        files = sorted(path.name for path in run_dir.iterdir()) if run_dir.exists() else []
        files += [str(path) for path in (self._world.tmux_socket, self._world.api_socket) if path.exists()]
        for name in files:
            self._ledger.wrong("leaked: files", f"after a stop: {name}")

    # tmux and harnesses.

    def disturb(self) -> None:
        """Do one random thing to tmux or to a harness."""
        kinds = {
            self._kill_harness: 5,
            self._kill_session: 4,
            self._kill_client: 2,
            self._halt_server: 1.5,
            self._delete_socket: 1,
            self._kill_server: 1,
            self._hup: 2,
        }
        (what,) = random.choices(list(kinds), weights=list(kinds.values()))
        what()

    def resume_tmux(self) -> None:
        """Let a server that was stopped go on."""
        if self._halted is not None:
            with suppress(ProcessLookupError):
                os.kill(self._halted, signal.SIGCONT)
            self._resumed = time.monotonic()
        self._halted = None

    def _hup(self) -> None:
        with suppress(OSError, HTTPException):  # before it answers it may not listen to signals yet, and die of one
            self._world.get("/v1/health")
            self._world.look()
            self._ledger.count("SIGHUP to agentd")

    def _kill_harness(self) -> None:
        records = read_records(self._world.records)
        living = [start for start in records.all_starts if start.lives]
        if living:
            start = random.choice(living)
            number = random.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGKILL))
            self._ledger.touch("killed", start.name)
            with suppress(ProcessLookupError):
                os.kill(start.pid, number)
            self._ledger.count("harness killed")

    def _kill_session(self) -> None:
        name = random.choice([*self._fleet.wanted()])
        if self._halted is None and self._world.tmux("kill-session", "-t", f"={name}", check=False).returncode == 0:
            self._ledger.touch("hangup", name)
            self._ledger.count("session killed")

    def _kill_client(self) -> None:
        found = processes_with(str(self._world.tmux_socket))
        # A server has the command line of the client that started it.
        clients = [pid for pid, line in found.items() if " -C new-session" in line and not _is_server(pid)]
        for pid in clients:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if clients:
            self._ledger.touch("tmux", lasting=2)
            self._ledger.count("control client of tmux killed")

    def _halt_server(self) -> None:
        server = self._server()
        if server is not None and self._halted is None:
            seconds = random.uniform(1, 6)
            os.kill(server, signal.SIGSTOP)
            self._halted = server
            self._ledger.touch("tmux", lasting=seconds + 2)
            self._ledger.count("tmux server stopped for seconds (SIGSTOP)")
            self._ledger.later(seconds, self.resume_tmux)

    def _delete_socket(self) -> None:
        if self._halted is None:
            self._world.tmux_socket.unlink(missing_ok=True)
            self._ledger.touch("tmux", lasting=8)
            self._ledger.count("tmux socket deleted")

    def _kill_server(self) -> None:
        server = self._server()
        if server is not None and self._halted is None:
            os.kill(server, random.choice((signal.SIGKILL, signal.SIGTERM)))
            self._ledger.touch("hangup")
            self._ledger.touch("tmux", lasting=3)
            self._ledger.count("tmux server killed")

    def servers(self) -> list[int]:
        """All servers of the socket, also those that nobody reaches any more."""
        return [pid for pid in processes_with(str(self._world.tmux_socket)) if _is_server(pid)]

    def _server(self) -> int | None:
        if self._halted is not None:
            return None
        answer = self._world.tmux("display-message", "-p", "#{pid}", check=False).stdout.strip()
        return int(answer) if answer.isdecimal() else None


def _is_server(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "tmux: server\n"
    except OSError:
        return False
