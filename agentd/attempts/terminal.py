"""A terminal as the kernel knows it: by device number, never by a path that somebody else names."""

import os
import stat
import termios

from agentd.processes.scan import Stat, descends

_PTY_MAJORS = range(136, 144)  # Linux's devpts: man 4 pts, Documentation/admin-guide/devices.txt


def is_raw(tty_nr: int) -> bool:
    """Whether C-c is only a byte on that terminal, as its device number, the kernel's word, leads to it."""
    major, minor = os.major(tty_nr), os.minor(tty_nr)
    if major not in _PTY_MAJORS:
        return False
    path = f"/dev/pts/{minor + (major - _PTY_MAJORS.start) * 256}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if not stat.S_ISCHR(os.fstat(descriptor).st_mode) or os.fstat(descriptor).st_rdev != tty_nr:
            return False
        return not termios.tcgetattr(descriptor)[3] & termios.ISIG
    except termios.error:
        return False
    finally:
        os.close(descriptor)


def in_front(launcher: Stat) -> bool:
    """Whether keys reach the launcher's harness: it, or what it started, is the terminal's foreground group."""
    return launcher.tpgid == launcher.pgrp or (launcher.tpgid > 1 and descends(launcher.tpgid, launcher.pid))
