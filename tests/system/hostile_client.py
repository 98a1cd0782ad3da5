"""In the place of agentd's tmux client, into which an agent can turn it: answers as it likes on agentd's own pipes.

python3 hostile_client.py FILE WAY...      writes a line with its pid into the file; the next one has the next way
"""

import os
import sys

met, *ways = sys.argv[1:]
with open(met, "a+") as file:
    file.seek(0)
    way = ways[min(len(file.readlines()), len(ways) - 1)]
    print(os.getpid(), file=file)


def say(data: bytes) -> None:
    """Say it, whole."""
    while data:
        data = data[os.write(1, data) :]


if way == "garbage":
    say(os.urandom(100_000))
elif way == "endless line":
    while True:
        say(b"x" * 65536)
elif way == "endless reply":
    say(b"%begin 1 1 1\n")
    while True:
        say(b"\n" * 65536)
elif way == "exit":
    say(b"%exit \x1b[2J because\n")
elif way == "errors":
    for _ in range(1000):
        os.write(2, b"sudo: \x1b[2J" * 400)
else:  # answers that are well-formed, and lies: "lies PID MARK", where all is in the process of that pid
    pid, mark = os.fsencode(way).split(b" ")[1:]
    pane = b"%s $0 %%0 %s" % (pid, pid)
    answers = {
        b"display-message": pid,
        b"list-panes": pane,
        b"new-session": pane,
        b"list-sessions": b"_agentd",
        b"show-environment": b"AGENTD_SESSION=" + mark,
    }
    say(b"%begin 1 1 0\n%end 1 1 0\n")
    number, rest = 1, b""
    while data := os.read(0, 1 << 20):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            number += 1
            answer = answers.get(line.split(b" ")[0], b"\x1b]0;title\x07\x1b[2J")
            say(b"%%begin 1 %d 1\n%s\n%%end 1 %d 1\n" % (number, answer, number))
