"""Frozen transfer learning, whole processes: the tutorial's way, Keras' guide, ours with an empty store, ours again.

    python -m benchmarks frozen [--images 528] [--side 512] [--epochs 5] [--networks resnet50,...] [--photos DIR]

All contestants read the same files, train on train/ and validate on test/ after each epoch, with random weights, in the
same environment, one after the other; so look at the ratios, not at the seconds. Peers that need torch take part where
it is installed (pip install torch timm).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from tl_research.system import hardware

NETWORKS = {
    "resnet50": "keras.applications.ResNet50",
    "mobilenet_v2": "keras.applications.MobileNetV2",
    "inception_v3": "keras.applications.InceptionV3",
    "efficientnet_lite0": "tl_research.models.networks.efficientnet_lite.EfficientNetLite0",
}
TIMM = {"resnet50": "resnet50", "mobilenet_v2": "mobilenetv2_100", "inception_v3": "inception_v3"}
TIMM["efficientnet_lite0"] = "tf_efficientnet_lite0"

# What a person writes who follows the tutorial (with ResNet's preprocessing, which it forgets, left out as it does).
TUTORIAL = """
import keras, tensorflow as tf
{imports}
network = {network}(include_top=False, weights=None, input_shape=({size}, {size}, 3))
network.trainable = False
model = keras.Sequential([network, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, activation="softmax")])
model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
images = tf.keras.preprocessing.image.ImageDataGenerator()
flow = dict(target_size=({size}, {size}), batch_size=32, class_mode="categorical")
train = images.flow_from_directory("{root}/train", **flow)
val = images.flow_from_directory("{root}/test", shuffle=False, **flow)
model.fit(train, epochs={epochs}, validation_data=val, verbose=0)
"""

# keras.io/guides/transfer_learning, without its augmentation.
GUIDE = """
import keras, tensorflow as tf
{imports}
load = dict(image_size=({size}, {size}), batch_size=32)
train = keras.utils.image_dataset_from_directory("{root}/train", **load).prefetch(tf.data.AUTOTUNE)
val = keras.utils.image_dataset_from_directory("{root}/test", **load).prefetch(tf.data.AUTOTUNE)
network = {network}(include_top=False, weights=None, input_shape=({size}, {size}, 3))
network.trainable = False
inputs = keras.Input(({size}, {size}, 3))
x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
x = keras.layers.GlobalAveragePooling2D()(network(x, training=False))
outputs = keras.layers.Dense(2)(keras.layers.Dropout(0.2)(x))
model = keras.Model(inputs, outputs)
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
model.fit(train, epochs={epochs}, validation_data=val, verbose=0)
"""

# Features once, then a logistic regression: what people do with timm by hand.
PEER = """
import numpy as np, timm, torch
from pathlib import Path
from PIL import Image
from sklearn.linear_model import LogisticRegression
network = timm.create_model("{timm}", pretrained=False, num_classes=0).eval().to(memory_format=torch.channels_last)
class Photos(torch.utils.data.Dataset):
    def __init__(self, root):
        self.paths = sorted(Path(root).rglob("*.jpg"))
        self.names = sorted({{path.parent.name for path in self.paths}})
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, i):
        image = Image.open(self.paths[i]).convert("RGB").resize(({size}, {size}), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), self.names.index(self.paths[i].parent.name)
def features(root):
    rows, labels = [], []
    with torch.inference_mode():
        for x, y in torch.utils.data.DataLoader(Photos(root), 32):
            rows.append(network((x.float() / 127.5 - 1).to(memory_format=torch.channels_last)).numpy())
            labels.append(y.numpy())
    return np.concatenate(rows), np.concatenate(labels)
train, test = features("{root}/train"), features("{root}/test")
LogisticRegression(max_iter=1000).fit(*train).score(*test)
"""


def draw(folder: Path, images: int, side: int) -> Path:
    """JPEGs of the demo's pictures, `side` pixels wide and high: two thirds in train/, the rest in test/."""
    from PIL import Image

    from tl_research.data.synthetic import demo

    sizes = {"train": images * 2 // 3, "val": 2, "test": images - images * 2 // 3}
    drawn = demo.draw(folder / "drawn", sizes, seed=0)
    for path in sorted(drawn.rglob("*.jpg")):
        place = folder / "photos" / path.relative_to(drawn)
        if place.parts[-3] != "val":
            place.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                image.resize((side, side), Image.Resampling.BICUBIC).save(place, quality=90)
    return folder / "photos"


def contestants(name: str, root: Path, scratch: Path, epochs: int) -> Iterator[tuple[str, list[str]]]:
    """The name and command of each way to do the same job, in the order in which they run."""
    size = 299 if name == "inception_v3" else 224
    network = NETWORKS[name]
    imports = f"import {network.rpartition('.')[0]}" if not network.startswith("keras") else ""
    words = {"network": network, "imports": imports, "size": size, "root": root, "epochs": epochs}
    yield "the tutorial's way", [sys.executable, "-c", TUTORIAL.format(**words)]
    yield "Keras' guide", [sys.executable, "-c", GUIDE.format(**words)]
    if importlib.util.find_spec("timm"):
        yield "timm + scikit-learn", [sys.executable, "-c", PEER.format(timm=TIMM[name], **words)]
    for run in ("cold", "warm"):
        yield (
            f"ours, {run}",
            [
                *(sys.executable, "train.py", f"backbone={name}", "backbone.weights=null", "data=folder"),
                *(
                    f"data.root={root}",
                    "optimizer=adam",
                    f"transfer.head.epochs={epochs}",
                    "callbacks.early_stopping=null",
                ),
                *(f"features.store={scratch / name}", f"hydra.run.dir={scratch / f'{name}-{run}'}"),
            ],
        )


def seconds(command: list[str]) -> float:
    """Wall-clock seconds of a whole process, in an environment that nothing of ours has touched."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TF_", "KERAS_"))}
    environment |= {"PYTHONPATH": str(Path.cwd()), "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - began


def race(name: str, root: Path, epochs: int, scratch: Path) -> None:
    """Runs the contestants of one network and prints its rows."""
    images = len(list(root.rglob("*.jpg")))
    first = None
    for way, command in contestants(name, root, scratch, epochs):
        spent = seconds(command)
        first = first or spent
        rate = images * epochs / spent
        print(f"| {name} | {way} | {spent:.1f} | {first / spent:.1f} | {rate:.0f} |", flush=True)


def limit(name: str, root: Path) -> None:
    """How near the cold pass (decoding, resizing, inference, storing) comes to what the cores could do at best."""
    from tl_research import compose
    from tl_research.features.engines import BATCH, build_engine
    from tl_research.features.table import Features, FeatureTable

    cores = hardware.cores()
    experiment = compose([f"backbone={name}", "backbone.weights=null", "data=folder", f"data.root={root}"])
    data, network = experiment.data.load(), experiment.backbone.build()
    size = network.input_shape[1]
    pixels = np.stack([data.pixels(i, size) for i in range(BATCH)])
    single, engine = build_engine("auto", network, 1), build_engine("auto", network, cores)
    per_image: dict[str, list[float]] = {"decoding": [], "inference": [], "raw": [], "pass": []}
    for turn in range(5):
        with tempfile.TemporaryDirectory() as store:
            table = FeatureTable(network, data, Features(store=store), "auto", cores)
            table.source = replace(table.source, engine=engine)
            some = np.arange(turn, len(data), 5) if len(data) > 1000 else np.arange(len(data))
            began = time.perf_counter()
            table.ensure([(some, -1)])
            per_image["pass"].append((time.perf_counter() - began) / len(some))
        began = time.process_time()
        for index in some[:64]:
            data.pixels(int(index), size)
        per_image["decoding"].append((time.process_time() - began) / len(some[:64]))
        began = time.process_time()
        for _ in range(6):
            single(pixels)
        per_image["inference"].append((time.process_time() - began) / (6 * BATCH))
        per_image["raw"].append(raw_seconds(engine, pixels, cores))
    middle = {key: float(np.median(values)) for key, values in per_image.items()}
    best = cores / (middle["decoding"] + middle["inference"])
    rate = 1 / middle["pass"]
    print(
        f"| {name} | {1e3 * middle['decoding']:.1f} | {1e3 * middle['inference']:.1f} | {best:.1f} | {rate:.1f} | "
        f"{rate / best:.2f} | {rate * middle['raw']:.2f} |",
        flush=True,
    )


def raw_seconds(engine: object, pixels: np.ndarray, cores: int) -> float:
    """Seconds per image of the engine alone, on arrays that are there, all cores busy."""
    from concurrent.futures import ThreadPoolExecutor

    calls = 8 * cores
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(engine, [pixels] * cores))  # type: ignore[arg-type]
        began = time.perf_counter()
        list(pool.map(engine, [pixels] * calls))  # type: ignore[arg-type]
        return (time.perf_counter() - began) / (calls * len(pixels))


def main(arguments: list[str]) -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks frozen", description=__doc__)
    parser.add_argument("--images", type=int, default=528)
    parser.add_argument("--side", type=int, default=512, help="pixels of the drawn photographs")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--photos", type=Path, help="a folder with train/CLASS and test/CLASS of JPEGs, two classes")
    parser.add_argument("--only", choices=("race", "limit"), help="one of the two tables")
    options = parser.parse_args(arguments)
    names = options.networks.split(",")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        root = options.photos or draw(scratch, options.images, options.side)
        print(f"python -m benchmarks frozen {' '.join(arguments)}\n")
        if options.only != "limit":
            print("| network | way | seconds | the tutorial's / this | images/s |\n|---|---|---|---|---|")
            for name in names:
                race(name, root.absolute(), options.epochs, scratch)
            print()
        if options.only != "race":
            print(
                "| network | decoding, core ms/image | inference, core ms/image | limit, images/s | pass, images/s | "
                "pass / limit | pass / raw engine |\n|---|---|---|---|---|---|---|"
            )
            from tl_research.backend.start import start_backend

            start_backend()
            for name in names:
                limit(name, root.absolute())
