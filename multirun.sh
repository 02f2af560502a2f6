#!/usr/bin/env bash
# The published sweep: four backbones, frozen against fine-tuned, three seeds. Arguments are passed on:
#   ./multirun.sh                                         on the demo, as in README
#   ./multirun.sh data=folder data.root=PHOTOS            on your photographs
#   ./multirun.sh backbone=efficientnet_lite0,tiny        another list of backbones
# ImageNet weights of the first three come from the internet once, and are kept; offline, leave them out.
set -euo pipefail
cd "$(dirname "$0")"
exec python train.py -m \
    backbone=resnet50,mobilenet_v2,inception_v3,efficientnet_lite0 \
    transfer=frozen,finetune \
    'seed=range(3)' \
    "$@"
