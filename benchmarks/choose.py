"""The default, several networks side by side, the run's own choice, and fine-tuning, on the same images.

    python -m benchmarks choose [--data stamps=FOLDER,demo,sauce,demo5] [--seeds 5] [--ways default,auto] [--minutes 60]
        [--cache DIR]

`demo5` are the demo's images with 5 a class to learn from, and so on (`stamps5=FOLDER`, too). Each row has means over
seeds of cross-validated
log loss and test accuracy, their differences from the default with 95 % intervals paired over seeds (Student), and
the median of the seconds. One store serves all: the first way that needs a row computes it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tl_research import compose
from tl_research.metrics.intervals import half_width

LITE = "[efficientnet_lite0,efficientnet_lite1,efficientnet_lite2]"
WAYS = {
    "default": [],
    "combined": ["backbone=combined", f"backbone.parts={LITE}"],
    "heads": ["head=auto"],
    "prototype": ["head=auto", "head.among=[prototype]"],
    "knn": ["head=auto", "head.among=[knn]"],
    "auto": ["backbone=auto", f"backbone.among={LITE}"],
    "finetuned": ["transfer=finetune_all", "transfer.backbone.epochs=5"],
    "best": ["experiment=best", f"backbone.among={LITE}", "transfer.backbone.epochs=5"],
}


def images(name: str) -> list[str]:
    """Give the overrides of a data set: `demo`, `sauce`, `NAME=FOLDER`; `demoN` with N images a class."""
    name, _, folder = name.partition("=")
    source = ["data=folder", f"data.root={folder}"] if folder else [f"data=hot_dog_{name.rstrip('0123456789')}"]
    count = name.lstrip(name.rstrip("0123456789"))
    return [*source, *([f"data.per_class={count}"] if count else [])]


def measure_way(way: str, data: str, seed: int, minutes: float, folder: Path) -> dict[str, Any]:
    """Train once; return log loss, test accuracy and seconds."""
    store = f"features.store={folder / 'features'}"
    overrides = [*images(data), *WAYS[way], f"seed={seed}", store, "callbacks=none", "verbose=false"]
    overrides += [f"trainer.time_limit={minutes}"] if way == "best" else []
    run = compose(overrides).run(folder / "runs" / way / data.partition("=")[0] / str(seed), existing="resume")
    seconds = sum(value for key, value in run.metrics.items() if key.startswith("seconds_"))
    loss, accuracy = run.metrics.get("cv_loss", float("nan")), run.metrics["test_accuracy"]
    chosen = run.metrics.get("chosen", run.metrics.get("chosen_head", ""))
    return {"loss": loss, "accuracy": accuracy, "seconds": seconds, "chosen": chosen}


def against(values: np.ndarray, default: np.ndarray) -> str:
    """Format a mean and its difference from the default's."""
    difference = values - default
    mean = f"{values.mean():.3f}"
    if not np.isfinite(difference).all() or not difference.any():
        return mean
    half = half_width(difference.tolist()) if len(difference) > 1 else float("nan")
    return f"{mean} ({difference.mean():+.3f} ± {half:.3f})"


def main(arguments: list[str]) -> None:
    """Measure, and print a table a data set as soon as it is known."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks choose")
    parser.add_argument("--data", default="demo,sauce")
    parser.add_argument("--ways", default="default,combined,auto")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=60, help="for experiment=best")
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.cache or Path(temporary)
        for data in options.data.split(","):
            print(
                f"\n| {data.partition('=')[0]} | log loss | test accuracy | seconds | chosen |\n|---|---|---|---|---|"
            )
            rows: dict[str, list[dict[str, Any]]] = {}
            for way in options.ways.split(","):
                rows[way] = [measure_way(way, data, seed, options.minutes, folder) for seed in range(options.seeds)]
                both = [
                    {key: np.array([row[key] for row in rows[each]]) for key in rows[each][0]}
                    for each in (way, "default")
                ]
                cells = [against(*(each[key] for each in both)) for key in ("loss", "accuracy")]
                chosen = ", ".join(sorted({row["chosen"] for row in rows[way]}))
                print(f"| {way} | {' | '.join(cells)} | {np.median(both[0]['seconds']):.1f} | {chosen} |", flush=True)
