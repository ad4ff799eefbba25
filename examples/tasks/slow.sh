#!/bin/sh
# Takes a while, so that there is something to watch, pause and kill. Called with a number, it takes so many seconds.
trap 'echo "asked to stop after $done s"; exit 1' TERM
done=0
while [ "$done" -lt "${1:-30}" ]; do
    sleep 1
    done=$((done + 1))
    echo "$done of ${1:-30} s"
done
