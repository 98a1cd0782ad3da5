#!/bin/sh
# Has, for ever and without the tag itself, young processes that carry the tag of an attempt that nobody knows.
#
#   hostile_spawner.sh TAG
for _ in 1 2 3 4 5 6 7 8 9 10; do
    while :; do AGENTD_ATTEMPT=$1 sleep 0.1; done &
done
wait
