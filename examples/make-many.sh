#!/bin/sh
# Writes examples/many.yaml to stdout: 300 resources, two of three of the built-in kind noop, the others cheap processes.
#
#   sh examples/make-many.sh > examples/many.yaml
set -eu

cat <<'HEAD'
# 300 resources: 200 of the built-in kind noop, and 100 processes that sleep and now and then say a line.
# Made by make-many.sh; change that instead.
#
#   evenkeel apply -f examples/many.yaml
#   evenkeel apply -f examples/classic.yaml --prune -l set=many      # takes them away again

resources:
HEAD

n=1
while [ "$n" -le 300 ]; do
    name=$(printf 'many-%03d' "$n")
    weight=$((n % 3 + 1))
    if [ $((n % 3)) -eq 0 ]; then
        cat <<ENTRY
- name: $name
  kind: process
  weight: $weight
  labels: {set: many, work: sleeper}
  spec: {command: [sh, -c, 'while true; do echo "\$EVENKEEL_RESOURCE epoch=\$EVENKEEL_EPOCH"; sleep 60; done']}
ENTRY
    else
        cat <<ENTRY
- name: $name
  kind: noop
  weight: $weight
  labels: {set: many, work: nothing}
ENTRY
    fi
    n=$((n + 1))
done
