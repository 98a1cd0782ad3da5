import os
from collections.abc import Iterator

import pytest

from tests.e2e.outside import World

collect_ignore = [] if os.geteuid() == 0 else ["test_agent_user.py"]
collect_ignore.append("standin.py")


@pytest.fixture
def world() -> Iterator[World]:
    """A world in which nothing runs yet; after the test nothing of it may be left."""
    world = World()
    yield world
    world.close()
