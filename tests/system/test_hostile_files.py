"""Agents that swap what root looks at: prompt files, workdirs, the programs of a PATH, rc files."""

from collections.abc import Iterator
from functools import partial

import pytest

from tests.e2e.outside import lives, wait_for
from tests.system.hostile_ground import SECRET, WORDS, Ground, hostile
from tests.system.service import API_SOCKET, Service

# Ways to be no prompt file, beside those of its path.
_PROMPTS = {
    "shadow": 'ln -sfn /etc/shadow "$1"',
    "secret": f'ln -sfn {SECRET} "$1"',
    "memory": 'ln -sfn /proc/AGENTD/environ "$1"',
    "descriptor": 'ln -sfn /proc/AGENTD/fd/0 "$1"',
    "fifo": 'rm -f "$1"; mkfifo "$1"',
    "endless": 'ln -sfn /dev/zero "$1"',
    "vast": 'rm -f "$1"; truncate -s 1T "$1"',
    "directory": 'rm -f "$1"; mkdir "$1"',
    "socket": f'ln -sfn {API_SOCKET} "$1"',
    "loop": 'rm -f "$1"; ln -s "$1" "$1"',
    "terminal": 'ln -sfn /dev/ptmx "$1"',
}


@pytest.fixture(scope="module")
def ground(at_boot: object) -> Iterator[Ground]:
    with hostile(rc_file='[ -z "$EVIL_RC" ] || PATH=$HOME/evil/bin:$PATH\n') as ground:
        yield ground


@pytest.fixture(autouse=True)
def observed(ground: Ground) -> None:
    ground.observe()


def gone(ground: Ground, name: str) -> None:
    ground.write_card()
    wait_for(lambda: ground.service.get(f"/v1/agents/{name}").status == 404, f"the end of {name}")


def test_swapped_prompt_files(ground: Ground) -> None:
    """A prompt file that becomes a link to what is root's alone, a FIFO, endless or no file, is read by nobody."""
    service = ground.service
    files = {name: ground.evil / f"prompt-{name}" for name in _PROMPTS}
    ground.as_agent('for path; do echo harmless >"$path"; done', *map(str, files.values()))
    agents = [service.agent(name, prompt_file=str(path), binary="/bin/echo") for name, path in files.items()]
    ground.write_card(*agents)
    for name in files:
        service.wait_status(name, state="completed")
    for name, path in files.items():
        ground.as_agent(_PROMPTS[name].replace("AGENTD", str(service.pid)), str(path))
    # Another key of each, so that each is resolved anew.
    ground.write_card(*({**agent, "env": {"AGAIN": "1"}} for agent in agents))
    for name in files:
        service.wait_status(name, state="waiting", reason="prompt_file")
        shown = service.tmux("capture-pane", "-p", "-S", "-", "-t", f"={name}:").stdout
        assert WORDS not in shown
        assert "root:" not in shown
    told = service.get("/v1/agents").body.decode() + "\n".join(service.log)
    assert WORDS not in told
    assert "root:" not in told
    ground.prove()
    gone(ground, "shadow")


def test_flickering_prompt_file(ground: Ground) -> None:
    """A prompt file that is a link to a root-only file every other moment never gives that file away."""
    service, path = ground.service, ground.evil / "flickering"
    flicker = f'while :; do echo harmless >"$1.a"; mv "$1.a" "$1"; ln -s {SECRET} "$1.b"; mv "$1.b" "$1"; done'
    with ground.running("sh", "-c", flicker, "sh", str(path)):
        for number in range(3):
            ground.write_card(
                service.agent("reader", prompt_file=str(path), binary="/bin/echo", env={"N": str(number)})
            )
            service.wait_status("reader", wanted="running")
            ground.prove_supervised()
    assert WORDS not in service.get("/v1/agents").body.decode() + "\n".join(service.log)
    assert WORDS not in service.tmux("capture-pane", "-p", "-S", "-", "-t", "=reader:").stdout
    ground.prove()
    gone(ground, "reader")


def test_winding_path(ground: Ground) -> None:
    """A prompt file at the end of the longest way that symlinks can make costs agentd next to no time."""
    service, path = ground.service, ground.evil / "winding"
    ground.as_agent(
        """
        cd /home/agent/evil; mkdir -p a; long=$(printf 'a/../%.0s' $(seq 800)); last=end; echo x >end
        for number in $(seq 38); do ln -s "$long$last" "w$number"; last=w$number; done; ln -s "$last" winding
        """
    )
    ground.write_card(*(service.agent(f"w{number}", prompt_file=f"{path}") for number in range(3)))
    service.wait_status("w2", wanted="running")
    before = ground.cpu_seconds()
    for _ in range(5):
        ground.as_agent('touch "$1"', str(ground.evil / "end"))
        ground.prove_supervised()
    assert ground.cpu_seconds() - before < 1.5
    ground.prove()
    gone(ground, "w2")


def _is_refused(service: Service, name: str) -> bool:
    """Whether an agent waits for another workdir."""
    return service.status(name).get("reason") in {"workdir_denied", "workdir_missing"}


def test_swapped_workdir(ground: Ground) -> None:
    """A workdir that becomes a link to root's home, or a FIFO, before the launch, is entered by nobody."""
    service = ground.service
    plants = {
        "root": "ln -s /root",
        "fifo": "mkfifo",
        "attempts": "ln -s /run/agentd-run",
        "stereos": "ln -s /run/stereos",
    }
    for name, command in plants.items():
        ground.as_agent(f"{command} /home/agent/evil/workdir-{name}")
    ground.write_card(*(service.agent(name, workdir=str(ground.evil / f"workdir-{name}")) for name in plants))
    for name in plants:
        if name != "attempts":
            wait_for(partial(_is_refused, service, name), f"the refusal of {name}")
    ground.prove()
    ground.write_card()
    wait_for(lambda: len(service.get("/v1/agents").json) == 1, "the end of the agents")


def test_own_programs(ground: Ground) -> None:
    """A tmux, sudo, sh and python of an agent's own, first on its PATH, are run by nobody else, and never by root."""
    service = ground.service
    ground.as_agent(
        """
        mkdir -p $HOME/evil/bin; cd $HOME/evil/bin
        for name in tmux sudo sh systemctl head python3 sleep; do
            printf '#!/bin/dash\\nid -u >>%s/ran\\nexec /usr/bin/%s "$@"\\n' "$HOME/evil" "$name" >"$name"
            chmod 755 "$name"
        done
        """
    )
    ground.write_card(service.agent("mine", env={"EVIL_RC": "1", "PATH": f"{ground.evil}/bin:/usr/bin:/bin"}))
    service.wait_ready("mine")
    ground.tmux("kill-server")
    service.wait_status("mine", running=False)
    ran = ground.evil / "ran"
    assert set(ran.read_text().split() if ran.exists() else []) <= {str(ran.stat().st_uid)}
    assert not ran.exists() or ran.stat().st_uid != 0
    ground.prove()
    gone(ground, "mine")


def test_fork_bomb(ground: Ground) -> None:
    """An agent that nests processes as deep as it can, and leaves them to its end, holds up nobody."""
    service = ground.service
    deep = 'n=$1; [ $n -gt 0 ] && { sh "$0" $((n - 1)); :; } || sleep 7300'
    ground.as_agent("printf '%s\\n' \"$1\" >$HOME/evil/deep", deep)
    ground.write_card(service.agent("deep", binary="/bin/sh", args=[str(ground.evil / "deep"), "600"]))
    pid = service.wait_status("deep", running=True)["pid"]
    wait_for(lambda: sum("deep" in line for line in service.processes().values()) >= 500, "the depth")
    before = ground.cpu_seconds()
    ground.prove()
    gone(ground, "deep")
    assert not lives(pid)
    assert ground.cpu_seconds() - before < 3
