import pytest

from agentd.attempts.obstacles import MOST_FOLDERS, binary_blocked
from tests.unit.world import effective_of


@pytest.mark.parametrize(
    ("path", "looked_at"),
    [
        ("/bin:/usr/bin", ("/bin/agent", "/usr/bin/agent")),
        (":relative", ("/srv/./agent", "/srv/relative/agent")),
        (":".join(["/a"] * MOST_FOLDERS), ("/a/agent",) * MOST_FOLDERS),
        (":".join(["/a"] * (MOST_FOLDERS + 1)), ()),
        ("/" + "a" * 3000, ()),
    ],
    ids=["two", "relative", "many", "vast", "cut"],
)
def test_where_a_missing_program_is_looked_for(path: str, looked_at: tuple[str, ...]) -> None:
    """Each look sees whether the program is in a folder of the PATH by now; where that is cut, or vast, it tries."""
    assert binary_blocked(effective_of(), path).paths == looked_at


def test_a_program_that_is_a_path() -> None:
    """A program with a slash in its name is looked for in its place alone, whatever the PATH."""
    assert binary_blocked(effective_of(binary="./x"), "/a:" * 100).paths == ("/srv/./x",)
