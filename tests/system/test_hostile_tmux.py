"""Agents that turn the tmux server, which is theirs, and agentd's own client of it, against agentd."""

import os
import pwd
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.processes.scan import read_stat, read_uid
from tests.e2e.outside import wait_for
from tests.system.hostile_ground import HELPERS, SECRET, SOCKETS, Ground, hostile, instance
from tests.system.service import TMUX, TMUX_SOCKET, UNIT, processes_of, run_as


@pytest.fixture(scope="module")
def ground(at_boot: object) -> Iterator[Ground]:
    with hostile() as ground:
        yield ground


@pytest.fixture(autouse=True)
def observed(ground: Ground) -> None:
    ground.observe()


def client(ground: Ground) -> int:
    """The pid of agentd's client."""

    def find() -> int:
        shown = ground.service.tmux("list-clients", "-F", "#{client_control_mode} #{client_pid}").stdout
        return next((int(line.split()[1]) for line in shown.splitlines() if line.startswith("1 ")), 0)

    return wait_for(find, "agentd's client")


def connections(ground: Ground) -> int:
    return sum("connected to tmux" in line for line in ground.service.log)


def test_fake_server(ground: Ground) -> None:
    """A server that turns agentd's client into programs of the agents costs its own connections, and root nothing."""
    service = ground.service
    count, root = connections(ground), ground.daemon("root")
    ground.observe()
    # The stolen client is in agentd's own unit, for which homes are read-only.
    met, program = SOCKETS / "met", ground.evil / "program"
    ways = ["garbage", "endless line", "endless reply", "exit", "errors", f"lies {root} {instance(service)}/feedbeef"]
    words = " ".join(f"'{way}'" for way in ways)
    program.write_text(f"#!/bin/sh\nexec python3 {HELPERS}/hostile_client.py {met} {words}\n")
    program.chmod(0o755)
    with ground.running("python3", str(HELPERS / "hostile_server.py"), str(TMUX_SOCKET), str(program)):
        ground.tmux("kill-server")
        wait_for(lambda: connections(ground) > count, "the connection to nothing", seconds=40)
        stolen = [int(line) for line in met.read_text().split()]
        assert len(stolen) >= len(ways)
        assert read_uid(stolen[-1]) == pwd.getpwnam("agent").pw_uid
        assert service.get("/v1/health").json["state"] == "running"
    count = connections(ground)
    for pid in processes_of("agent"):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: connections(ground) > count, "the connection to the real server")
    assert all(line.isprintable() for line in service.log)
    assert max(map(len, service.log)) < 2000
    # A launch in what is not there would be given up after half a minute; a stop of it ends nothing of root's.
    ground.write_card(version=2)
    ground.prove()
    ground.write_card()


@pytest.mark.parametrize("signals", [("STOP",), ("KILL",), ("STOP", "KILL")], ids="+".join)
def test_signalled_client(ground: Ground, signals: tuple[str, ...]) -> None:
    """An agent that stops agentd's client, kills it, or both, so that not even sudo can tell, is found out soon."""
    victim, count = client(ground), connections(ground)
    stat = read_stat(victim)
    assert stat is not None
    for name in signals:
        assert run_as("agent", "kill", f"-{name}", str(victim)).returncode == 0
        if name == "STOP":
            wait_for(lambda: (found := read_stat(stat.ppid)) and found.state == "T", "the stop that sudo passes on")
    if "KILL" in signals:
        wait_for(lambda: connections(ground) > count, "the next connection")
    ground.prove()


def test_control_session(ground: Ground) -> None:
    """An agent may rename, fill and end agentd's own session, and hook the server: a new server has agentd again."""
    count = connections(ground)
    for words in (
        ("rename-session", "-t", "_agentd", "mine"),
        ("respawn-pane", "-k", "-t", "mine:", "yes"),
        ("split-window", "-t", "mine:", "yes"),
        ("set-option", "-g", "default-command", "false"),
        ("set-option", "-g", "default-shell", "/bin/false"),
        ("set-option", "-s", "exit-empty", "on"),
        ("set-option", "-g", "remain-on-exit", "on"),
        ("set-hook", "-g", "after-new-session", "kill-session"),
        ("set-hook", "-g", "after-send-keys", "send-keys C-c"),
        ("set-environment", "-g", "AGENTD_ATTEMPT", "x"),
        ("set-environment", "-g", "LD_PRELOAD", "/home/agent/evil.so"),
        ("kill-session", "-t", "mine"),
    ):
        ground.tmux(*words)
    assert ground.service.status("bystander")["running"] is True
    ground.tmux("kill-server")
    wait_for(lambda: connections(ground) > count, "the next connection")
    ground.prove()


def test_killed_server(ground: Ground) -> None:
    """A server that an agent kills, and one of its own that it puts in its place, cost the others a restart."""
    count = connections(ground)
    ground.as_agent(
        f"tmux -S {SOCKETS}/tmux.sock kill-server; rm -f {SOCKETS}/tmux.sock;"
        f" tmux -S {SOCKETS}/tmux.sock -f /dev/null new-session -d -s mine sleep 7300"
    )
    wait_for(lambda: connections(ground) > count, "the next connection")
    ground.service.wait_status("bystander", state="running")
    ground.prove()
    ground.tmux("kill-server")
    wait_for(lambda: connections(ground) > count + 1, "the next connection")
    ground.prove()


def test_odd_names(ground: Ground) -> None:
    """Sessions, windows and titles with whatever names, and many, neither reach the log raw nor hinder anybody."""
    ground.as_agent(
        r"""
        t="tmux -S /run/agentd/tmux.sock"
        for number in $(seq 60); do
            echo "new-session -d -s 'evil$number' 'printf \"\\033]2;a\\nb\\007\\033[2J\"; sleep 7300'"
            echo "rename-window -t 'evil$number' '#(touch /root/x) %exit'"
        done >/home/agent/evil/many
        $t source-file /home/agent/evil/many
        $t rename-session -t evil1 "$(printf 'a\033[2J\nb')"
        """
    )
    assert all(line.isprintable() for line in ground.service.log)
    ground.prove()
    for number in range(61):
        ground.service.tmux("kill-session", "-t", f"evil{number}")
    ground.service.tmux("kill-session", "-t", "a*")


def test_cgroups(ground: Ground) -> None:
    """Agents can move nothing out of agentd's cgroup, nor kill or freeze it; from their own they end nobody else."""
    slices = Path("/sys/fs/cgroup/system.slice")
    inside = slices / TMUX
    for attempt in (
        f"echo {ground.service.pid} >{inside}/cgroup.procs",
        f"echo {client(ground)} >{inside}/cgroup.procs",
        f"echo 1 >{slices}/{UNIT}/cgroup.kill",
        f"echo 1 >{slices}/{UNIT}/cgroup.freeze",
        f"echo $$ >{slices}/{UNIT}/cgroup.procs",
        f"echo 0 >{inside}/pids.max",
        f"echo 1 >{slices}/cgroup.kill",
    ):
        assert run_as("agent", "sh", "-c", attempt).returncode != 0, attempt
    ground.as_agent(f"mkdir {inside}/evil; echo 1 >{inside}/evil/cgroup.freeze; echo 1 >{inside}/evil/cgroup.kill")
    ground.prove()
    ground.as_agent(f"rmdir {inside}/evil")


def test_agentd_itself(ground: Ground) -> None:
    """Agents can neither signal, trace, limit nor read agentd, nor reach its API, its files or its notifications."""
    pid = ground.service.pid
    for attempt in (
        f"kill -9 {pid}",
        f"cat /proc/{pid}/environ",
        f"cat /proc/{pid}/mem",
        f"ls /proc/{pid}/fd",
        f"prlimit --pid {pid} --nofile=3:3",
        f"renice 19 {pid}",
        "ls /run/agentd-run",
        "cat /run/agentd-run/*.json",
        "touch /run/agentd-run/x",
        "ls /run/stereos",
        "curl --unix-socket /run/stereos/agentd.sock http://localhost/v1/health",
        f"cat {SECRET}",
    ):
        assert run_as("agent", "sh", "-c", attempt).returncode != 0, attempt
    run_as("agent", "systemd-notify", "STOPPING=1", "MAINPID=1")
    ground.prove()
