"""Agents that lie on lifelines: before a start, from a shell's rc file, and after it, on their own and on others'."""

import os
import time
from collections.abc import Iterator

import pytest

from tests.e2e.outside import lives, wait_for
from tests.system.hostile_ground import Ground, hostile

# A shell that agentd has just made takes the keys away, says what it likes, and runs nothing.
_LIAR = r"""
if [ -n "$LIE" ] && IFS= read -r line; then
    launch=${line#* /bin/sh }
    printf "$LIE" >"${launch%launch}lifeline"
    exec sleep 7300
fi
"""
# A harness that does something to the lifeline of which its launcher's command line tells.
_HARNESS = r"""
launch=$(tr '\0' ' ' </proc/$PPID/cmdline)
lifeline=${launch#* }
lifeline=${lifeline%launch }lifeline
sleep 0.2
"""
_LAST_WORD = r"\nblocked workdir denied\n"


@pytest.fixture(scope="module")
def ground(at_boot: object) -> Iterator[Ground]:
    with hostile(rc_file=_LIAR) as ground:
        yield ground


def test_lies_before_the_start(ground: Ground) -> None:
    """Whatever agents say in place of their launch scripts, no pid in it is believed or touched, and it is no bug."""
    service = ground.service
    root, other = ground.daemon("root"), ground.daemon("mallory")
    ground.observe()
    threads = (int(tid) for tid in os.listdir(f"/proc/{service.pid}/task"))
    thread = next((tid for tid in threads if tid != service.pid), service.pid)
    foreign = {1, root, other, service.pid, thread}
    lies = [
        *(f"start {pid} {pid}" for pid in foreign),
        *(f"start 999999 {pid}" for pid in foreign),
        *(f"start {launcher} 1" for launcher in ("0", "-1", "2147483647", "4294967297", "9" * 20, "\u0661")),
        *(
            "start",
            "start 1",
            "start 1 1 1",
            "exit 0",
            "blocked workdir",
            "blocked binary",
            "blocked workdir ../../root",
        ),
        *(r"blocked binary /root\0:/etc", r"blocked binary \033]0;title\007\r\033[2J", r"\377\376", r"\0\0\0"),
    ]
    names = {f"liar{number}": lie for number, lie in enumerate(lies)}
    ground.write_card(
        *(service.agent(name, binary="standin", env={"LIE": lie + _LAST_WORD}) for name, lie in names.items())
    )
    pids = set()
    for name, lie in names.items():

        def settled(name: str = name) -> bool:
            status = service.get(f"/v1/agents/{name}").json
            pids.add(status.get("pid"))
            return status.get("state") in {"waiting", "failed"} and status["attempt"] > 0

        wait_for(settled, f"the end of the launch of the liar that said {lie!r}")
    assert not pids & foreign
    ground.write_card()
    wait_for(lambda: len(service.get("/v1/agents").json) == 1, "the end of the liars")
    ground.prove()


def test_flood_before_the_start(ground: Ground) -> None:
    """A launch that babbles costs the log no more than a few lines."""
    service = ground.service
    before = len(service.entries)
    ground.write_card(service.agent("liar", env={"LIE": r"\n" * 3000 + _LAST_WORD}))
    service.wait_status("liar", state="waiting")
    ground.write_card()
    wait_for(lambda: service.get("/v1/agents/liar").status == 404, "the end of the liar")
    assert len(service.entries) - before < 30
    ground.prove()


def test_flood_after_the_start(ground: Ground) -> None:
    """An agent that never stops to speak on its lifeline costs agentd next to no time."""
    service = ground.service
    script = _HARNESS + 'yes >"$lifeline" & wait'
    ground.write_card(service.agent("shouter", binary="/bin/sh", args=["-c", script]))
    wait_for(lambda: any("said junk" in line for line in service.log), "the word of the flood")
    begun, before = time.monotonic(), ground.cpu_seconds()
    for _ in range(2):
        ground.prove()
    status = service.wait_status("shouter", running=True)
    used = ground.cpu_seconds() - before
    share = used / (time.monotonic() - begun)
    ground.write_card()
    wait_for(lambda: service.get("/v1/agents/shouter").status == 404, "the end of the shouter")
    assert not lives(status["pid"])
    assert share < 0.5, f"{share:.0%} of a processor"


def test_forged_exit(ground: Ground) -> None:
    """An end that another agent says on an agent's lifeline is its end: nothing of it lives beside a next attempt."""
    service = ground.service
    ground.write_card(service.agent("victim", restart="always"))
    start = service.wait_ready("victim")
    forge = r"""
    for place in /proc/[0-9]*; do
        if tr '\0' '\n' <$place/environ 2>/dev/null | grep -q "^RECORD=.*/victim$"; then
            parent=$(cut -d' ' -f4 $place/stat); line=$(tr '\0' ' ' </proc/$parent/cmdline)
            case $line in */launch\ ) line=${line#* }; echo exit 0 >"${line%launch }lifeline"; exit;; esac
        fi
    done
    """
    ground.as_agent(forge)
    again = service.wait_ready("victim", 2)
    assert not lives(start.pid)
    assert lives(again.pid)
    ground.write_card()
    ground.prove()
