"""The service with -keep-agents: agentd may be replaced while its agents work."""

from tests.e2e.outside import lives, wait_for_none
from tests.system.service import TMUX, UNIT, Service

KEEP = ("ExecStart=", f"ExecStart=/usr/local/bin/agentd -tmux-unit {TMUX} -keep-agents")


def test_restart(service: Service) -> None:
    """A restart, as an upgrade makes it, keeps every agent with its pid, and the next agentd supervises them."""
    service.change(*KEEP)
    service.write_card(service.agent("a"), service.agent("b", restart="always", env={"FAIL": "1"}))
    service.start()
    starts = {"a": service.wait_ready("a"), "b": service.wait_ready("b", 2)}
    before, pid = {name: service.status(name) for name in starts}, service.pid
    service.systemctl("restart", UNIT)
    assert service.pid != pid
    assert {name: service.status(name) for name in starts} == before
    assert all(lives(start.pid) and not start.events for start in starts.values())
    service.systemctl("stop", UNIT)
    assert service.show("ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert all(lives(start.pid) and not start.events for start in starts.values())
    assert service.show("ActiveState", unit=TMUX)["ActiveState"] == "active"
    service.change()  # without the flag, the next one's end is theirs
    service.start()
    assert {name: service.status(name) for name in starts} == before
    service.systemctl("stop", UNIT)
    assert [start.events for start in starts.values()] == [["INT", "gone"]] * 2


def test_shutdown(service: Service) -> None:
    """Where systemd ends the tmux server's unit as well, as it does when the machine is shut down, nothing is kept."""
    service.change(*KEEP)
    service.write_card(service.agent("a", grace_period="30s", env={"LINGER": "6"}))
    service.start()
    start = service.wait_ready("a")
    service.systemctl("stop", UNIT, TMUX)
    # Longer than TimeoutStopSec of the server's unit.
    assert start.events == ["INT", "gone"]
    assert wait_for_none(service.processes) == {}
