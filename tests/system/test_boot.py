import pytest

from tests.system.service import TMUX, UNIT, run, show


def test_boot(at_boot: dict[str, dict[str, str]]) -> None:
    """Enabled, agentd is started at boot, has its tmux server started, and the boot waits until it is ready."""
    agentd, tmux, target = (at_boot[unit] for unit in (UNIT, TMUX, "multi-user.target"))
    assert [unit["ActiveState"] for unit in (agentd, tmux, target)] == ["active"] * 3
    assert int(tmux["ActiveEnterTimestampMonotonic"]) <= int(agentd["ActiveEnterTimestampMonotonic"])
    assert int(agentd["ActiveEnterTimestampMonotonic"]) <= int(target["ActiveEnterTimestampMonotonic"])


def test_directory() -> None:
    """The tmux server's directory is made at boot, for the agents and the admins."""
    assert run("systemd-tmpfiles", "--cat-config").stdout.count("d /run/agentd 0750 agent admin -") == 1
    assert run("stat", "-c", "%a %U %G", "/run/agentd").stdout == "750 agent admin\n"


@pytest.mark.parametrize("unit", [UNIT, TMUX])
@pytest.mark.parametrize("manager", ["system", "user"])
def test_verified(manager: str, unit: str) -> None:
    """systemd finds nothing wrong with the units, unknown directives included."""
    verify = ("systemd-analyze", f"--{manager}", "verify", "--recursive-errors=no", f"/etc/systemd/{manager}/{unit}")
    run("env", "XDG_RUNTIME_DIR=/run", *verify)


def test_exposure() -> None:
    """agentd's own process is hardened: systemd's measure of its exposure is at most 4.5 of 10."""
    run("systemd-analyze", "security", "--offline=yes", "--threshold=45", f"/etc/systemd/system/{UNIT}")


def test_agents_are_not_hardened() -> None:
    """What the agents inherit takes nothing from them: sudo, sandboxes, compilers and limits are the system's."""
    names = ("NoNewPrivileges", "PrivateTmp", "ProtectSystem", "RestrictNamespaces", "TasksMax")
    assert show(TMUX, *names, "Delegate", "OOMPolicy") == {
        "NoNewPrivileges": "no",
        "PrivateTmp": "no",
        "ProtectSystem": "no",
        "RestrictNamespaces": "no",
        "TasksMax": "infinity",
        "Delegate": "yes",
        "OOMPolicy": "continue",
    }


@pytest.mark.parametrize("unit", [UNIT, TMUX])
def test_no_start_limit(unit: str) -> None:
    """However often agentd or its tmux server has ended, it is started again: nothing strands the agents."""
    assert show(unit, "StartLimitIntervalUSec") == {"StartLimitIntervalUSec": "0"}
