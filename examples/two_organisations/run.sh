#!/usr/bin/env bash
# Plays every party of README.md on this machine: run.sh RESULTS_DIR IMAGES
set -euo pipefail
results=$1 images=$2
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT

step() {
  printf '\n$ python -m flower_app %s\n' "$*" | sed "s#$work/##g"
  python -m flower_app "$@" 2>&1 | sed "s#$work/##g"
}
worker() { # name, options: until it listens
  python -m flower_app worker "$1" "$work/$1" >"$work/$1.log" 2>&1 &
  until grep -q listens "$work/$1.log"; do sleep 0.2; done
  cat "$work/$1.log"
}

step share plan "$results" "$work/shared.plan"
step provider begin "$work/shared.plan" "$work/provider"
for party in model-owner alice bob data-owner; do mv "$work/provider/$party" "$work"; done
step share model "$results" "$work/model-owner"
for name in alice bob; do mv "$work/model-owner/$name.model" "$work/$name/model"; done
step provider deal "$work/provider" --questions 100
for party in alice bob data-owner; do mv "$work/provider/$party/material" "$work/$party"; done
worker bob
bob=$!
worker alice
ask=(ask localhost:7441,localhost:7442 "$images" --shared "$work/data-owner")
step "${ask[@]}"
kill -9 "$bob"
step "${ask[@]}" || true
worker bob
step "${ask[@]}"
