"""The door: python train.py [GROUP=OPTION ...] [KEY=VALUE ...], with -m and commas for a sweep.

`conf/` holds every key. `tl_research.config` composes and validates them into an `Experiment`, which runs:

    python train.py backbone=resnet50
    python train.py -m backbone=resnet50,mobilenet_v2 transfer=frozen,finetune
"""

from tl_research.config.entry import main
from tl_research.system.process import exit_now

if __name__ == "__main__":
    exit_now(main())
