import os
from collections.abc import Iterator

import pytest

from tests.system.service import TMUX, UNIT, Service, show

# They start, stop and kill the services of the machine that they run on: `make test-system` makes one for them.
collect_ignore_glob = [] if os.environ.get("AGENTD_MACHINE") else ["test_*.py"]

_TIMES = ("ActiveState", "ActiveEnterTimestampMonotonic", "ExecMainStartTimestampMonotonic")


@pytest.fixture(scope="session", autouse=True)
def at_boot() -> dict[str, dict[str, str]]:
    """What systemd tells of units before any test has touched them."""
    return {unit: show(unit, *_TIMES) for unit in (UNIT, TMUX, "multi-user.target")}


@pytest.fixture
def service(at_boot: dict[str, dict[str, str]]) -> Iterator[Service]:
    """agentd's service, stopped; after the test nothing of it may be left."""
    service = Service()
    service.prepare()
    yield service
    service.close()
