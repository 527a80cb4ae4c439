#!/usr/bin/env bash
# Plays every party of README.md on this machine: run.sh RESULTS_DIR IMAGES
set -euo pipefail
results=$1 images=$2
bloomseal="python -m flower_app"
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT

step() { printf '\n$ %s\n' "$*" | sed "s#$work/##g; s#python -m flower_app#bloomseal#"; "$@" 2>&1 | sed "s#$work/##g"; }

step $bloomseal share plan "$results" "$work/shared.plan"
step $bloomseal provider begin "$work/shared.plan" "$work/provider"
mv "$work/provider/model-owner" "$work/provider/alice" "$work/provider/bob" "$work/provider/data-owner" "$work"
step $bloomseal share model "$results" "$work/model-owner"
mv "$work/model-owner/alice.model" "$work/alice/model"
mv "$work/model-owner/bob.model" "$work/bob/model"
step $bloomseal provider deal "$work/provider" --questions 100
for party in alice bob data-owner; do mv "$work/provider/$party/material" "$work/$party/material"; done
$bloomseal worker bob "$work/bob" >"$work/bob.log" 2>&1 &
bob=$!
$bloomseal worker alice "$work/alice" >"$work/alice.log" 2>&1 &
until grep -q listens "$work/alice.log" && grep -q listens "$work/bob.log"; do sleep 0.2; done
cat "$work/bob.log" "$work/alice.log"
step $bloomseal ask localhost:7441,localhost:7442 "$images" --shared "$work/data-owner"
kill -9 "$bob"
step $bloomseal ask localhost:7441,localhost:7442 "$images" --shared "$work/data-owner" || true
$bloomseal worker bob "$work/bob" >"$work/bob.log" 2>&1 &
until grep -q listens "$work/bob.log"; do sleep 0.2; done
cat "$work/bob.log"
step $bloomseal ask localhost:7441,localhost:7442 "$images" --shared "$work/data-owner"
