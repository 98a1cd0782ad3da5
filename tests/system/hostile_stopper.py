"""Stops, for ever and at once, whatever program of ours root has just started in the name of our user.

python3 hostile_stopper.py SIGNAL
"""

import os
import signal
import sys
from contextlib import suppress

number = signal.Signals[sys.argv[1]]
seen = set(os.listdir("/proc"))
while True:
    now = set(os.listdir("/proc"))
    for name in now - seen:
        with suppress(OSError, ValueError):
            if os.stat(f"/proc/{name}").st_uid == os.getuid():
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    words = file.read(4096)
                if b"[ -" in words:  # the test of a directory, the reader of a prompt file
                    os.kill(int(name), number)
    seen = now
