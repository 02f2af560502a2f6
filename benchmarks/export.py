"""What an export costs: size, latency and largest difference of each format; of int8 also the images lost.

python -m benchmarks export [--networks resnet50,...] [--photos FOLDER] [--formats onnx,...]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tl_research import InputError, Run, compose
from tl_research.serving.export import INT8_FORMATS, Exported, export_run
from tl_research.serving.snippets import FORMATS
from tl_research.system.console import silenced

REAL = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
"""Networks whose weights come with the installation; int8 is measured for these alone."""
NETWORKS = (*REAL, "mobilenet_v2", "resnet50", "inception_v3")


def costs(exported: Exported) -> str:
    """Cells of size, latency and difference."""
    one, many = exported.milliseconds
    return f"{exported.num_bytes / 1e6:.1f} | {one:.1f} | {many:.1f} | {exported.difference:.0e}"


def lost(run: Run, exported: Exported) -> int:
    """Count the images that the run answers correctly and the exported model does not."""
    labels = {row["path"]: row["label"] for row in run.answers("predictions.csv")}
    return sum(labels.get(path) == before for path, before, _ in exported.changed)


def rows(name: str, data: list[str], formats: list[str], folder: Path) -> None:
    """Train a head on a frozen network, export it to each format, and print a row for each."""
    with silenced():
        experiment = compose([f"backbone={name}", *data, "missing_weights=random", "callbacks=none"])
        run = experiment.run(folder / name)
        images = experiment.data.load()
    weights = "random" if run.metrics["random_weights"] else "ImageNet"
    for format_ in formats:
        for int8 in (False, True) if name in REAL and format_ in INT8_FORMATS else (False,):
            label = f"{format_}, int8" if int8 else format_
            try:
                exported = export_run(run, format_, None, images if int8 else None, 1.0 if int8 else 0.01)
            except InputError as error:
                print(f"| {name} | {weights} | {label} | {error} | | | | |", flush=True)
                continue
            changed = f"{len(exported.changed)} of {exported.num_images}"
            print(
                f"| {name} | {weights} | {label} | {costs(exported)} | {changed} | {lost(run, exported)} |", flush=True
            )


def main(arguments: list[str]) -> None:
    """Prints the table. With int8 nothing is refused, and nothing goes back to float32: `--max-drop 1`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks export", description=__doc__)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--photos", type=Path, help="a folder of photographs, a folder a class; default: the demo")
    options = parser.parse_args(arguments)
    data = ["data=folder", f"data.root={options.photos.absolute()}"] if options.photos else ["data=hot_dog_demo"]
    print(f"python -m benchmarks export {' '.join(arguments)}\n")
    print("| network | weights | format | MB | ms for 1 | ms each for 16 | largest difference | other class | lost |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks.split(","):
            rows(name, data, options.formats.split(","), Path(folder))
