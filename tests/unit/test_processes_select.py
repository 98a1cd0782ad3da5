"""Which processes are an attempt's: decided on a snapshot alone."""

import attrs
import pytest

from agentd.processes.ending import Footprint, remember, select
from agentd.processes.scan import Process, Snapshot, find_tag, parse_stat

UID = 1000
ROOT = 0
TAG = "d1/run/3"
PTS = 34816

DAEMON, TMUX, SHELL, LAUNCHER, HARNESS = 50, 100, 200, 210, 220


def proc(pid: int, ppid: int, sid: int, tag: str | None = None, **changes: object) -> Process:
    """Build a process that started at ten times its pid, on the shell's terminal if in its session."""
    process = Process(
        pid=pid,
        ppid=ppid,
        pgrp=pid,
        sid=sid,
        tty_nr=PTS if sid == SHELL else 0,
        tpgid=-1,
        state="S",
        start_ticks=pid * 10,
        threads=1,
        uid=UID,
        tag=tag,
    )
    return attrs.evolve(process, **changes)  # type: ignore[arg-type]


BASE = (
    proc(1, 0, 1, uid=ROOT),
    proc(40, 1, 40, uid=ROOT),
    proc(DAEMON, 40, 40, uid=ROOT),
    proc(TMUX, 1, TMUX),
    proc(SHELL, TMUX, SHELL),
)
AGENT = (proc(LAUNCHER, SHELL, SHELL, TAG), proc(HARNESS, LAUNCHER, SHELL, TAG))


def look(*processes: Process, us: int = DAEMON) -> Snapshot:
    """Build the snapshot that found these."""
    return Snapshot(UID, us, {process.pid: process for process in processes})


def footprint(**changes: object) -> Footprint:
    """Build the footprint of an attempt whose shell is kept."""
    values = {
        "tag": TAG,
        "launcher": LAUNCHER,
        "launcher_ticks": LAUNCHER * 10,
        "shell": SHELL,
        "shell_ticks": SHELL * 10,
        "sid": SHELL,
        "keep_shell": True,
    }
    return Footprint(**{**values, **changes})  # type: ignore[arg-type]


def victims(snapshot: Snapshot, of: Footprint, members: frozenset[int] = frozenset()) -> set[int]:
    """Return the pids that are to end."""
    return {process.pid for process in select(snapshot, of, members)}


ADMIN = (proc(300, SHELL, SHELL), proc(301, 300, SHELL))


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        pytest.param(AGENT, {LAUNCHER, HARNESS}, id="the launcher and its harness"),
        pytest.param((proc(300, 1, 300, TAG),), {300}, id="a daemon with the tag"),
        pytest.param((proc(300, 1, 300, "d1/run/2"),), set(), id="another attempt's tag"),
        pytest.param((proc(300, 1, 300, TAG + "0"),), set(), id="a tag that only begins with ours"),
        pytest.param((*AGENT, proc(300, HARNESS, 300), proc(301, 300, 301)), {210, 220, 300, 301}, id="descendants"),
        pytest.param((proc(300, 1, 300, TAG), proc(301, 300, 301)), {300, 301}, id="descendants of a tagged one"),
        pytest.param((proc(300, 1, 300, TAG), proc(301, 1, 300)), {300, 301}, id="the session that a tagged one leads"),
        pytest.param((proc(300, 1, 40, TAG), proc(301, 1, 40)), {300}, id="not the session that another one leads"),
        pytest.param((proc(LAUNCHER, SHELL, SHELL, start_ticks=9999),), set(), id="the launcher's pid reused"),
        pytest.param(ADMIN, set(), id="an admin's commands"),
        pytest.param((*AGENT, *ADMIN), {LAUNCHER, HARNESS}, id="an admin's commands beside the agent"),
        pytest.param((proc(300, 1, SHELL),), {300}, id="an orphan in the shell's session"),
        pytest.param((proc(300, 1, 300, tty_nr=PTS),), set(), id="on a container's terminal of the same number"),
        pytest.param((proc(300, 1, SHELL), proc(301, 300, 301)), {300, 301}, id="an orphan's child elsewhere"),
        pytest.param((proc(300, 1, 300, TAG, state="T"),), {300}, id="a stopped one"),
        pytest.param((proc(300, 1, 300, TAG, uid=ROOT),), set(), id="another user's, with the tag"),
        pytest.param((*AGENT, proc(300, HARNESS, SHELL, uid=ROOT)), {LAUNCHER, HARNESS}, id="another user's, below us"),
        pytest.param(
            (*AGENT, proc(300, HARNESS, SHELL, uid=ROOT), proc(301, 300, 301)),
            {LAUNCHER, HARNESS, 301},
            id="below another user's",
        ),
    ],
)
def test_victims_of_an_attempt_whose_shell_stays(left: tuple[Process, ...], expected: set[int]) -> None:
    """With the shell kept, exactly what belongs to the attempt ends, and nothing else that runs in that shell."""
    assert victims(look(*BASE, *left), footprint()) == expected


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        pytest.param((), {SHELL}, id="the shell alone"),
        pytest.param(AGENT, {SHELL, LAUNCHER, HARNESS}, id="shell, launcher and harness"),
        pytest.param(ADMIN, {SHELL, 300, 301}, id="an admin's commands on the terminal"),
        pytest.param((proc(300, SHELL, 300),), {SHELL}, id="not what an admin put into a session of its own"),
    ],
)
def test_victims_when_the_shell_goes(left: tuple[Process, ...], expected: set[int]) -> None:
    """When the shell goes, everything in its session goes with it."""
    assert victims(look(*BASE, *left), footprint(keep_shell=False)) == expected


@pytest.mark.parametrize(
    ("keep_shell", "expected"), [(True, {310, 311, 312}), (False, {SHELL, 300, 301, 310, 311, 312})]
)
def test_members_of_the_cgroup(*, keep_shell: bool, expected: set[int]) -> None:
    """What is in the attempt's cgroup ends, whoever's it is, but nothing that an admin has started in a kept shell."""
    hidden = (proc(310, 1, 310), proc(311, 1, 311, uid=ROOT), proc(312, 1, 311))
    snapshot = look(*BASE, *AGENT, *ADMIN, *hidden)
    members = frozenset({SHELL, LAUNCHER, HARNESS, 300, 301, 310, 311, 312, 999})
    assert victims(snapshot, footprint(keep_shell=keep_shell), members) == {LAUNCHER, HARNESS, *expected}


def test_members_when_the_shell_is_gone() -> None:
    """Without a shell that could be kept, all members end, what an admin started in it included."""
    assert victims(look(*BASE[:-1], *ADMIN), footprint(), frozenset({300, 301})) == {300, 301}


@pytest.mark.parametrize("keep_shell", [True, False])
def test_tmux_server_is_never_a_victim(*, keep_shell: bool) -> None:
    """What the shell comes from is spared, even if the launcher's pid is a lie that names it."""
    of = footprint(launcher=TMUX, launcher_ticks=None, keep_shell=keep_shell)
    assert TMUX not in victims(look(*BASE, *AGENT), of)


def test_launcher_that_names_the_shell_costs_nobody() -> None:
    """A launcher's pid that is the kept shell's makes neither the shell nor an admin's commands a victim."""
    assert victims(look(*BASE, *ADMIN), footprint(launcher=SHELL, launcher_ticks=None)) == set()


def test_we_are_never_a_victim() -> None:
    """We, what we come from, what we started, and pid 1 are spared as the same user and with the tag too."""
    us = 301
    ours = (proc(1, 0, 1, TAG), proc(300, LAUNCHER, 300, TAG), proc(us, 300, 300, TAG), proc(302, us, 300))
    beside = proc(303, 300, 300, TAG)
    assert victims(look(*ours, *BASE[1:], AGENT[0], beside, us=us), footprint()) == {303}


def test_spared_leader_takes_nobody_with_it() -> None:
    """In a container pid 1 can be everybody's parent and leader: named as the launcher, it makes nobody a victim."""
    snapshot = look(proc(1, 0, 1), proc(2, 1, 1), proc(3, 1, 1, TAG), us=2)
    assert victims(snapshot, footprint(launcher=1, launcher_ticks=None, shell=None, sid=None)) == {3}


def test_launcher_that_is_another_users_costs_nobody() -> None:
    """A launcher's pid that names another user's process makes nothing below that a victim."""
    snapshot = look(*BASE, proc(300, 1, 300, uid=ROOT), proc(301, 300, 301))
    assert victims(snapshot, footprint(launcher=300, launcher_ticks=None)) == set()


def test_session_outlives_the_shell() -> None:
    """With the shell gone, its session as told at launch still says what is the attempt's."""
    assert victims(look(*BASE[:-1], proc(300, 1, SHELL)), footprint()) == {300}


def test_session_of_a_shell_never_vouched_for_is_nobodys() -> None:
    """With the shell gone and no session told at launch, its pid alone ends nothing."""
    assert victims(look(*BASE[:-1], proc(300, 1, SHELL)), footprint(sid=None)) == set()


@pytest.mark.parametrize(
    "shell",
    [
        pytest.param(proc(SHELL, TMUX, SHELL, start_ticks=9999), id="its pid reused"),
        pytest.param(proc(SHELL, TMUX, SHELL, uid=ROOT), id="another user's"),
        pytest.param(proc(SHELL, TMUX, 40), id="no leader of a session"),
    ],
)
def test_shell_that_is_none_ends_nothing(shell: Process) -> None:
    """A shell that is not the pane's shell lends its session to nobody."""
    others = (proc(300, 1, shell.sid),)
    assert victims(look(*BASE[:-1], shell, *others), footprint(keep_shell=False)) == set()


def test_what_was_found_once_is_known_without_parents_and_tag() -> None:
    """A member found below the launcher is still found when it is an orphan, and so are its later children."""
    of = remember(look(*BASE, *AGENT, proc(300, HARNESS, 300)), footprint())
    assert of.tree == {(LAUNCHER, 2100), (HARNESS, 2200), (300, 3000)}
    assert victims(look(*BASE, proc(300, 1, 300), proc(301, 300, 301)), of) == {300, 301}


def test_session_of_a_gone_member_is_known() -> None:
    """Who is in a session that a member led is found when that member is gone."""
    of = footprint(tree=frozenset({(300, 3000)}))
    assert victims(look(*BASE, proc(301, 1, 300)), of) == {301}


def test_reused_pid_of_a_member_is_nobodys() -> None:
    """The next owner of a member's pid, and the session it leads, are not the attempt's."""
    of = footprint(tree=frozenset({(300, 3000)}))
    assert victims(look(*BASE, proc(300, 1, 300, start_ticks=9999), proc(301, 1, 300)), of) == set()


def test_shell_is_not_remembered() -> None:
    """A shell that goes is no member: what an admin started in it and took out of its session stays."""
    snapshot = look(*BASE, proc(300, SHELL, 300))
    assert victims(snapshot, remember(snapshot, footprint(keep_shell=False))) == {SHELL}


@pytest.mark.parametrize("name", [b"sh", b"a b", b"a) S 1 (b", b"((", b")", b"x\ny", b""])
def test_parse_stat_whatever_the_name(name: bytes) -> None:
    """A program's name may hold blanks, parentheses and newlines, and moves no field."""
    line = b"77 (" + name + b") R 5 6 7 34816 8 4194304 1 2 3 4 5 6 7 8 20 0 9 0 12345 99 100\n"
    stat = parse_stat(line)
    assert attrs.astuple(stat) == (77, 5, 6, 7, 34816, 8, "R", 12345, 9)


@pytest.mark.parametrize(
    ("state", "threads", "dead"),
    [
        ("R", 1, False),
        ("S", 4, False),
        ("D", 1, False),
        ("T", 1, False),
        ("Z", 1, True),
        ("X", 0, True),
        ("Z", 2, False),
    ],
)
def test_dead(state: str, threads: int, *, dead: bool) -> None:
    """A zombie is dead, unless other threads of it live on; a stopped process is not."""
    assert proc(300, 1, 300, state=state, threads=threads).dead is dead


@pytest.mark.parametrize(
    ("environ", "tag"),
    [
        (b"", None),
        (b"AGENTD_ATTEMPT=a\0", "a"),
        (b"A=1\0AGENTD_ATTEMPT=a/b\0C=2\0", "a/b"),
        (b"A=1\0AGENTD_ATTEMPT=a", "a"),
        (b"XAGENTD_ATTEMPT=a\0", None),
        (b"A=AGENTD_ATTEMPT=a\0", None),
        (b"AGENTD_ATTEMPTS=a\0", None),
        (b"AGENTD_ATTEMPT=\0", ""),
    ],
)
def test_find_tag(environ: bytes, tag: str | None) -> None:
    """The tag is the value of its variable, wherever that stands, and of no other."""
    assert find_tag(environ) == tag
