#!/bin/sh
# How full the disks of this host are. Called with a number, it fails where one is fuller than so many percent.
echo "$EVENKEEL_WORKER, task $EVENKEEL_TASK, attempt $EVENKEEL_ATTEMPT"
df -h
full=$(df -P | awk -v most="${1:-100}" 'NR > 1 && $5 + 0 > most { print $6 " is at " $5 }')
[ -z "$full" ] && exit 0
echo "$full" >&2
exit 1
