"""Has many processes with a vast environment, all of which carry one tag; says when they are there by making a file.

python3 hostile_herd.py COUNT SIZE FILE     with the beginning of the tag in HERD_TAG
"""

import os
import signal
import sys

count, size, ready = sys.argv[1:]
if "AGENTD_ATTEMPT" not in os.environ:
    env = {"AGENTD_ATTEMPT": os.environ["HERD_TAG"] + "x" * int(size), **os.environ}
    os.execve(sys.executable, [sys.executable, __file__, count, size, ready], env)
for _ in range(int(count)):
    if not os.fork():
        signal.pause()
with open(ready, "w"):
    signal.pause()
