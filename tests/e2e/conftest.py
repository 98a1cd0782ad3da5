import os
from collections.abc import Iterator

import pytest

from agentd.processes.cgroup import own_cgroup
from tests.e2e.outside import World

_CGROUP = own_cgroup()
_ROOTS = ["test_agent_user.py", "test_short_as_root.py", "test_short_of_disk.py"]
_OTHERS = ["test_short_of_processes.py"]  # of which root may start as many as it likes
collect_ignore = _OTHERS if os.geteuid() == 0 else _ROOTS
if os.geteuid() != 0 or _CGROUP is None or not os.access(_CGROUP, os.W_OK):
    collect_ignore.append("test_cgroups.py")
if os.geteuid() == 0 and "AGENTD_CRASHES" not in os.environ:
    # They take long, and nothing in them depends on who runs them: an ordinary user does.
    collect_ignore += ["test_swept_crashes.py", "test_a_minute_without_tmux.py"]
collect_ignore += ["standin.py", "killed.py"]


@pytest.fixture
def world() -> Iterator[World]:
    """A world in which nothing runs yet; after the test nothing of it may be left."""
    world = World()
    yield world
    world.close()
