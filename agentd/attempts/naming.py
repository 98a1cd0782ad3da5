"""What an attempt's directory and its cgroup are called: by that the next agentd knows whose they are."""

from collections.abc import Container, Iterable, Iterator


def name_of(instance: str, run: str, number: int) -> str:
    """The name of what belongs to an attempt of this agentd, or of another one of the same tmux socket."""
    return f"{instance}-{run}-{number}"


def others(
    names: Iterable[str], instance: str, attempts: Container[tuple[str, int]], runs: Container[str]
) -> Iterator[tuple[str, int]]:
    """The attempts, by run and number, that such names are about, but none of these attempts, nor of these runs."""
    for name in names:
        run, _, number = name.removeprefix(f"{instance}-").rpartition("-")
        if not name.startswith(f"{instance}-") or not (run.isalnum() and number.isdecimal()):
            continue
        if run not in runs and (run, int(number)) not in attempts:
            yield run, int(number)
