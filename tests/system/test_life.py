"""The service's life: start, ready, watchdog, reload, stop, restart, kill -9."""

import os
import signal
import time

from tests.e2e.outside import lives, wait_for
from tests.system.service import STAMP, TMUX, UNIT, Service, run_as

SOON = "RestartSec=100ms"


def test_ready(service: Service) -> None:
    """When `systemctl start` returns, the API answers, and knows the agents of the card."""
    service.write_card(service.agent("a"), service.agent("b", workdir="/nowhere/at/all"))
    service.start()
    assert service.get("/v1/health").json["state"] == "running"
    assert [agent["name"] for agent in service.get("/v1/agents").json] == ["a", "b"]
    service.wait_ready("a")


def test_status_text(service: Service) -> None:
    """`systemctl status` tells how many agents are in which state."""
    slow = service.agent("b", restart="always", restart_delay_max="1h", env={"FAIL": "1000"})
    service.write_card(service.agent("a"), slow)
    service.start()

    def tells() -> bool:
        text = service.show("StatusText")["StatusText"]
        return "1 running" in text and "1 backoff" in text

    wait_for(tells, "a status text with 1 running and 1 backoff")


def test_watchdog(service: Service) -> None:
    """An agentd that hangs is killed and started again; its agents live on."""
    service.change("WatchdogSec=2", SOON)
    service.write_card(service.agent("a"))
    service.start()
    start = service.wait_ready("a")
    hung = service.pid
    os.kill(hung, signal.SIGSTOP)
    service.wait_restarted()
    assert service.pid != hung
    service.wait_status("a", pid=start.pid, state="running")
    assert (service.starts("a"), start.events) == (1, [])


def test_watchdog_fed(service: Service) -> None:
    """An agentd that works is left alone, much longer than its watchdog waits."""
    service.change("WatchdogSec=1")
    service.start()
    began = service.pid
    time.sleep(3)
    assert service.pid == began


def test_reload(service: Service) -> None:
    """`systemctl reload` has agentd look again, and take over what has changed, without a restart."""
    service.write_card(service.agent("a"))
    service.start()
    pid, start = service.pid, service.wait_ready("a")
    service.write_card(service.agent("a"), service.agent("b"))
    service.systemctl("reload", UNIT)
    service.wait_ready("b")
    assert any("SIGHUP" in line for line in service.log)
    assert service.pid == pid
    assert lives(start.pid)


def test_stop(service: Service) -> None:
    """A stop gives every agent its C-c and its grace; then nothing is left: processes, sessions, sockets, units."""
    service.write_card(service.agent("a", env={"LINGER": "1"}), service.agent("b"))
    service.start()
    starts = [service.wait_ready(name) for name in "ab"]
    service.systemctl("stop", UNIT)
    assert [start.events for start in starts] == [["INT", "gone"]] * 2
    assert service.show("ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert service.processes() == {}
    assert service.tmux("list-sessions").returncode != 0
    assert not service.api_socket.exists()
    wait_for(lambda: service.show("ActiveState", unit=TMUX)["ActiveState"] == "inactive", f"the end of {TMUX}")
    assert service.show("Result", unit=TMUX)["Result"] == "success"


def test_stop_of_full_screen(service: Service) -> None:
    """A full-screen agent, which wants C-c twice, gets it: agentd sees its terminal, hardened as it is."""
    service.write_card(service.agent("a", env={"RAW": "1"}))
    service.start()
    start = service.wait_ready("a")
    service.systemctl("stop", UNIT)
    assert start.events == ["C-c", "C-c"]


def test_stop_finds_all(service: Service) -> None:
    """A stop ends what an agent left in sessions of its own, too: agentd may look into it, hardened as it is."""
    service.write_card(service.agent("a", env={"LEAVE": "1"}))
    service.start()
    service.wait_ready("a")
    assert "sleep 7200 " in service.processes().values()
    service.systemctl("stop", UNIT)
    assert service.processes() == {}


def test_long_stop(service: Service) -> None:
    """A stop whose grace periods are longer than TimeoutStopSec is not cut short."""
    service.change("TimeoutStopSec=2s")
    service.write_card(service.agent("a", grace_period="30s", env={"LINGER": "5"}))
    service.start()
    start = service.wait_ready("a")
    service.systemctl("stop", UNIT)
    assert start.events == ["INT", "gone"]
    assert service.show("Result")["Result"] == "success"


def test_restart(service: Service) -> None:
    """A restart ends all agents gracefully, and has them back."""
    service.write_card(service.agent("a"), service.agent("b"))
    service.start()
    before = {name: service.wait_ready(name) for name in "ab"}
    service.systemctl("restart", UNIT)
    for name, start in before.items():
        assert service.wait_ready(name, 2).pid != start.pid
        assert start.events == ["INT", "gone"]
    assert service.show("NRestarts")["NRestarts"] == "0"


def test_killed(service: Service) -> None:
    """After kill -9 of agentd the agents live on, and the next one takes them over: same pid, same restarts."""
    service.change(SOON)
    service.write_card(service.agent("a"), service.agent("b", restart="always", env={"FAIL": "1"}))
    service.start()
    starts = {"a": service.wait_ready("a"), "b": service.wait_ready("b", 2)}
    before = {name: service.status(name) for name in starts}
    os.kill(service.pid, signal.SIGKILL)
    service.wait_restarted()
    for name, start in starts.items():
        status = service.wait_status(name, pid=start.pid, state="running", restarts=before[name]["restarts"])
        assert status["session"] == before[name]["session"]
        assert (lives(start.pid), start.events) == (True, [])
    assert (service.starts("a"), service.starts("b")) == (1, 2)
    service.systemctl("stop", UNIT)
    assert [start.events for start in starts.values()] == [["INT", "gone"]] * 2


def test_agent_ends_while_agentd_is_dead(service: Service) -> None:
    """An agent that ended while there was no agentd is restarted by the next one as its policy says."""
    service.change("RestartSec=1s")
    service.write_card(service.agent("a", restart="always"), service.agent("b"))
    service.start()
    start, other = service.wait_ready("a"), service.wait_ready("b")
    os.kill(service.pid, signal.SIGKILL)
    os.kill(start.pid, signal.SIGKILL)
    service.wait_restarted()
    service.wait_ready("a", 2)
    service.wait_status("a", restarts=1)
    service.wait_status("b", pid=other.pid)


def test_kill_server(service: Service) -> None:
    """When an agent kills the tmux server, agentd has systemd start it again, and all agents are back in its unit."""
    service.write_card(*(service.agent(name, restart="always") for name in "ab"))
    service.start()
    before = [service.wait_ready(name) for name in "ab"]
    pid = service.pid
    assert run_as("agent", "tmux", "-S", str(service.tmux_socket), "kill-server").returncode == 0
    again = [service.wait_ready(name, 2) for name in "ab"]
    assert not any(lives(start.pid) for start in before)
    for start in again:
        assert f"/system.slice/{TMUX}/agentd-" in start.read("cgroup").split("\n")[-1]
    assert service.pid == pid
    assert service.show("ActiveState", unit=TMUX)["ActiveState"] == "active"


def test_journal(service: Service) -> None:
    """The journal has the priority of each message, and nothing twice: neither times nor levels are in the text."""
    service.write_card(service.agent("a"))
    service.start()
    service.wait_ready("a")
    service.write_card(more="[[agents]]\nharness = 1\n")

    def priorities(text: str) -> set[str]:
        return {entry["PRIORITY"] for entry in service.entries if text in str(entry["MESSAGE"])}

    wait_for(lambda: priorities("jcard.toml"), "the card's mistake in the journal")
    assert priorities("jcard.toml") <= {"3", "4"}
    assert priorities("started") == {"6"}
    for entry in service.entries:
        text = str(entry["MESSAGE"])
        assert not STAMP.match(text), text
        assert not text.startswith(("<", "INFO", "WARN", "ERROR")), text


def test_wrong_flags(service: Service) -> None:
    """Wrong flags are no reason to start it again and again."""
    service.change("ExecStart=", "ExecStart=/usr/local/bin/agentd -no-such-flag")
    service.systemctl("start", UNIT, check=False)
    wait_for(lambda: service.show("ActiveState")["ActiveState"] == "failed", "the failure")
    assert service.show("NRestarts", "ExecMainStatus") == {"NRestarts": "0", "ExecMainStatus": "2"}
    service.systemctl("reset-failed", UNIT)
