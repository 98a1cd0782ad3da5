"""Soak agentd: real agents that misbehave, real tmux, agentd killed every few seconds; nothing may be lost or left.

It takes minutes, uses one machine's own tmux in a directory of its own, and ends with tables of what was done and of
what must be zero. The exit code is 0 only if all of that is zero.
"""

import argparse
import contextlib
import os
import pwd
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_REPOSITORY))

from agentd.processes.cgroup import own_cgroup  # noqa: E402 - found by the line above
from tests.e2e.outside import World, own_user, processes_with  # noqa: E402 - found by the line above
from tests.soak.faults import Faults  # noqa: E402
from tests.soak.fleet import Fleet  # noqa: E402
from tests.soak.ledger import Ledger  # noqa: E402
from tests.soak.report import describe, report, write_into  # noqa: E402
from tests.soak.stretches import Soak  # noqa: E402

_PYTHONS = (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3")


def main() -> int:
    """Soak, print the tables, and return the exit code."""
    options = _options()
    random.seed(options.seed)
    user = options.agent_user or _agent_user()
    began = time.monotonic()
    lasts = f"{options.minutes:g} min, and quiet phases"
    print(f"soak: {lasts}, SEED={options.seed}, agents run as {user}", flush=True)

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    ledger = Ledger(say)
    world = World()
    try:
        _prepare(world, user)
        fleet = Fleet(world, ledger, options.agents, cleared=_has_cgroups())
        Soak(world, ledger, fleet, Faults(world, ledger, fleet, ["-agent-user", user]), options.minutes * 60).run()
    except KeyboardInterrupt:
        print("soak: interrupted", flush=True)
        return 130
    finally:
        if options.keep_log:
            shutil.copy(world.log_file, options.keep_log)
            Path(f"{options.keep_log}.history").write_text("\n".join(ledger.history))
            shutil.copytree(world.records, f"{options.keep_log}.records", dirs_exist_ok=True)
        _clean_up(world, ledger)
    minutes = (time.monotonic() - began) / 60
    what = f"{describe(world, user)}: {options.agents} agents, {minutes:.1f} minutes, SEED={options.seed}."
    text = report(ledger, what)
    print(f"\n{text}")
    if options.write is not None:
        write_into(options.write, text)
    return 0 if ledger.clean else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long, quiet phases excepted (5)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of what is drawn")
    parser.add_argument("--agents", type=int, default=30, help="how many agents (30)")
    parser.add_argument("--agent-user", help="as root: whom agents run as (agent, if there is one)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into this page, between its marks")
    parser.add_argument("--keep-log", metavar="FILE", help="keep agentd's log, and beside it what was done")
    return parser.parse_args()


def _agent_user() -> str:
    """The user `agent`, for root and if there is one, else oneself."""
    with contextlib.suppress(KeyError):
        if os.geteuid() == 0:
            return pwd.getpwnam("agent").pw_name
    return own_user()


def _has_cgroups() -> bool:
    """Whether attempts have cgroups, which daemons cannot leave that have cleared their environment."""
    cgroup = own_cgroup()
    return os.geteuid() == 0 and cgroup is not None and os.access(cgroup, os.W_OK)


def _prepare(world: World, user: str) -> None:
    """Put the harness into its place, and give the agents' user what is the agents'."""
    world.tmux_socket = world.top / "tmux" / "tmux.sock"
    world.tmux_socket.parent.mkdir(mode=0o700)
    owner = pwd.getpwnam(user) if user != own_user() else None
    if owner is not None:
        world.top.chmod(0o711)
        for path in (world.records, world.work, world.bin, world.home, world.tmux_socket.parent):
            path.chmod(0o755)
            os.chown(path, owner.pw_uid, owner.pw_gid)
    python = next((python for python in _PYTHONS if _can_run(python, owner)), None)
    if python is None:
        sys.exit(f"{user} can run no Python of {', '.join(_PYTHONS)}, which the harnesses need")
    harness = world.bin / "agent"
    source = (_REPOSITORY / "tests" / "soak" / "harness.py").read_text()
    harness.write_text(f"#!{python} -IS\n{source}")
    harness.chmod(0o755)


def _can_run(python: str, owner: pwd.struct_passwd | None) -> bool:
    user, group = (None, None) if owner is None else (owner.pw_uid, owner.pw_gid)
    try:
        done = subprocess.run([python, "-IS", "-c", ""], cwd="/", check=False, user=user, group=group)
    except OSError:
        return False
    return done.returncode == 0


def _clean_up(world: World, ledger: Ledger) -> None:
    """End whatever is left of this soak, also where it was interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if world.process is not None and world.process.poll() is None:
        ledger.say("stops agentd")
        with contextlib.suppress(subprocess.TimeoutExpired):
            world.stop(seconds=30)
        if world.process.poll() is None:
            world.process.kill()
            world.process.wait()
    for pid in processes_with(str(world.top)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(world.top, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
