"""An attempt's cgroup on real tmux."""

import logging
import os
import signal
import subprocess
from pathlib import Path

import pytest
import trio

from agentd.attempts.cgroups import Cgroups
from agentd.processes.cgroup import Cgroup, cgroup_path, own_cgroup
from agentd.processes.ending import Footprint, Scanner, end_all
from agentd.settings import Settings
from tests.tmux.test_attempt import open_world

TMUX = None
"""Without a unit nobody asks the connection."""


def _cgroup(pid: int) -> Path | None:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    (name,) = (line.removeprefix("0::") for line in lines if line.startswith("0::/"))
    return cgroup_path(name)


@pytest.mark.parametrize("typed", [True, False])
async def test_all_that_an_attempt_starts_is_in_it(settings: Settings, tmp_path: Path, typed: bool) -> None:
    """Shell, launcher and harness are in it before the harness runs, whether the shell was typed into or not."""
    async with open_world(settings, tmp_path) as world:
        attempt = world.attempt("sh", "-c", f"cat /proc/self/cgroup >{tmp_path}/said; exec sleep 1000", typed=typed)
        pid = await attempt.launch()
        state = attempt.state
        assert state.cgroup is not None
        assert state.place is not None
        assert [_cgroup(one) for one in (pid, state.launcher or 0, state.place.shell)] == [state.cgroup.path] * 3
        assert state.to_json()["cgroup"] == str(state.cgroup.path)
        path = state.cgroup.path
        assert await attempt.sweep() == 0
        assert _cgroup(state.place.shell) == own_cgroup()
        await attempt.close()
        assert not path.exists()
        assert path.name in (tmp_path / "said").read_text()


async def test_without_one(settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where there can be none that is said once, and attempts go on without."""
    caplog.set_level(logging.WARNING)
    async with open_world(settings, tmp_path) as world:
        world.sessions.world.cgroups._own = tmp_path / "missing"
        for number in (1, 2):
            attempt = world.attempt("sleep", "1000", number=number, name=f"a{number}")
            await attempt.launch()
            assert attempt.state.cgroup is None
            assert await attempt.sweep() == 0
            await attempt.close()
    path = f"{tmp_path}/missing/agentd-{world.sessions.world.instance}-abc-1"
    words = (
        f"attempts have no cgroups of their own ([Errno 2] No such file or directory: '{path}'), so that a process "
        "which clears its environment and leaves its session and its parents outlives the stop of its agent"
    )
    assert [record.message for record in caplog.records if "cgroup" in record.message] == [words]


async def test_others_are_found(settings: Settings) -> None:
    """What a dead agentd has left is found by its name, and nothing else is."""
    cgroups = Cgroups(settings, TMUX, "0123456789ab")  # type: ignore[arg-type]
    top = own_cgroup()
    assert top is not None
    left = [Cgroup(top / name) for name in ("agentd-0123456789ab-old-1", "agentd-0123456789ab-old-2")]
    beside = [Cgroup(top / name) for name in ("agentd-0123456789ab-x", "agentd-0123456789ac-old-1")]
    for cgroup in (*left, *beside):
        cgroup.make(None)
    try:
        assert {one.path for one in cgroups.others(set(), set())} == {one.path for one in left}
        assert [one.path for one in cgroups.others({("old", 1)}, set())] == [left[1].path]
        assert list(cgroups.others(set(), {"old"})) == []
        found = cgroups.find("old", 2)
        assert found is not None
        assert found.path == left[1].path
        assert cgroups.find("old", 3) is None
        await trio.lowlevel.checkpoint()
    finally:
        assert all(cgroup.remove() for cgroup in (*left, *beside))


class _Missed(Cgroup):
    """One whose only member moves from part to part, and is never where a look is just then."""

    def members(self) -> frozenset[int]:
        return frozenset()


async def test_what_moves_about_in_it_ends() -> None:
    """A process that every look misses, since it moves about in its cgroup, ends with the cgroup as a whole."""
    top = own_cgroup()
    assert top is not None
    cgroup = _Missed(top / f"agentd-moving-{os.getpid()}-1")
    cgroup.make(None)
    with subprocess.Popen(  # noqa: ASYNC220 - it only sleeps
        ["/bin/sleep", "1000"], env={}, start_new_session=True
    ) as process:
        try:
            cgroup.admit(process.pid)
            footprint = Footprint(
                tag="moving/?", launcher=None, launcher_ticks=None, shell=None, keep_shell=True, cgroup=cgroup
            )
            ended = await end_all(Scanner(os.geteuid()), footprint, term_grace=0.1)
            assert (process.wait(0), ended.left, cgroup.remove()) == (-signal.SIGKILL, 0, True)
        finally:
            process.kill()
            process.wait()
            cgroup.remove()
