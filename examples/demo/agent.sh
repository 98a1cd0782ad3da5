#!/bin/sh
# A harmless stand-in for a coding agent: it works a while, fails the first time, and finishes the second time.
echo "I was asked to: $1"
step=0
while [ "$step" -lt "${STEPS:-10}" ]; do
    step=$((step + 1))
    echo "step $step of ${STEPS:-10}"
    sleep 1
done
if [ ! -e "$DEMO_STATE/failed" ]; then
    : >"$DEMO_STATE/failed"
    echo "Something went wrong. agentd knows by the exit code, 3, and starts me again."
    exit 3
fi
echo "Done. agentd knows by the exit code, 0, and leaves me in peace; this shell stays."
