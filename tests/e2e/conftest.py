import os
from collections.abc import Iterator

import pytest

from agentd.processes.cgroup import own_cgroup
from tests.e2e.outside import World

_CGROUP = own_cgroup()

collect_ignore = [] if os.geteuid() == 0 else ["test_agent_user.py"]
if os.geteuid() != 0 or _CGROUP is None or not os.access(_CGROUP, os.W_OK):
    collect_ignore.append("test_cgroups.py")
collect_ignore.append("standin.py")


@pytest.fixture
def world() -> Iterator[World]:
    """A world in which nothing runs yet; after the test nothing of it may be left."""
    world = World()
    yield world
    world.close()
