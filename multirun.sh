#!/usr/bin/env bash
# The published sweep: four backbones, frozen against fine-tuned, three seeds; it ends in the leaderboard and the report.
#   ./multirun.sh                                         on the demo, as in README
#   ./multirun.sh data=folder data.root=PHOTOS            arguments are passed on: on your photographs
#   ./multirun.sh backbone=efficientnet_lite0,tiny        another list of backbones
#   ./multirun.sh --random                                networks whose weights are not there run with random ones
# ImageNet weights of the first three come from the internet once, and are kept. Offline they are rows `skipped: no
# weights`, or, with --random, rows ranked apart. The same command again goes on where it was stopped.
set -euo pipefail
cd "$(dirname "$0")"
arguments=()
for argument in "$@"; do
    if [[ $argument == --random ]]; then argument=missing_weights=random; fi
    arguments+=("$argument")
done
exec python train.py -m \
    backbone=resnet50,mobilenet_v2,inception_v3,efficientnet_lite0 \
    transfer=frozen,finetune \
    'seed=range(3)' \
    "${arguments[@]}"
