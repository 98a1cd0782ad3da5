#!/bin/sh
# A stand-in for a harness, for users who cannot read the tests' own Python: writes down what it was started with, and
# which signals it got.
#
#   RECORD   the directory for that: a directory 1, 2, … in it for each start
#   FAIL     so many starts fail at once
#   LINGER   seconds that it takes to exit after a SIGINT
#   RAW      its terminal is full-screen, and the second C-c ends it
#   LEAVE    it has an orphan in a session of its own, which ignores what it can
mkdir -p "$RECORD"
number=1
while ! mkdir "$RECORD/$number" 2>/dev/null; do number=$((number + 1)); done
mine=$RECORD/$number
note() {
    echo "$1" >>"$mine/events"
}
# end SIGNAL CODE
end() {
    note "$1"
    sleep "$2"
    note gone
    kill "$!"
    exit 0
}
trap 'end INT "${LINGER:-0}"' INT
trap 'end TERM 0' TERM
trap 'end HUP 0' HUP
for fact in environ limits status cgroup oom_score_adj; do cat "/proc/$$/$fact" >"$mine/$fact"; done
umask >"$mine/umask"
id -un >"$mine/user"
id -Gn >"$mine/groups"
pwd >"$mine/cwd"
if [ -n "${LEAVE:-}" ]; then
    setsid sh -c '(trap "" HUP INT TERM; exec sleep 7200) &'
fi
[ "$number" -gt "${FAIL:-0}" ] || exit 1
[ -z "${RAW:-}" ] || stty raw -echo
echo $$ >"$mine/new"
mv "$mine/new" "$mine/pid"
if [ -n "${RAW:-}" ]; then
    for _ in 1 2; do
        while [ "$(dd bs=1 count=1 2>/dev/null | od -An -tu1 | tr -d ' ')" != 3 ]; do :; done
        note C-c
    done
    exit 0
fi
while :; do
    sleep 3600 &
    wait $!
done
