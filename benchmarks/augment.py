"""Augmented images a second, from JPEG files to batches of 32 at 224 pixels: ours against Keras' layers in `tf.data`.

    python -m benchmarks augment [--images 256] [--side 400] [--rounds 3] [--photos DIR]

All read the same files in one process, in turn, an epoch each time; the first, which traces a graph, is not counted; so
look at the ratios. Keras' layers are given what comes nearest to ours and mapped over batches, or over single images.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.frozen import draw
from tl_research import compose
from tl_research.backend.start import start_backend
from tl_research.data.datamodule import DataModule
from tl_research.system.hardware import cores

SIZE, BATCH = 224, 32
WORKS = ("none", "light", "strong")
"""Options of `data/augment`."""

Epoch = Callable[[int], Iterable[Any]]


def ours(root: Path, work: str) -> tuple[DataModule, Epoch]:
    """Our epochs, nothing of which is kept from one to the next."""
    data = compose(["data=folder", f"data.root={root}", f"data/augment={work}", "optimizer=adam"]).data.load()
    data._pixel_cache.room = 0
    return data, lambda epoch: data.epoch(data.indices("train"), SIZE, BATCH, epoch=epoch, seed=0)


def layers(work: str) -> tuple[list[Any], list[Any]]:
    """Keras' layers that do the same to images, and to batches with their targets."""
    from keras.layers import CutMix, MixUp, RandAugment, RandomColorJitter, RandomErasing, RandomFlip, RandomZoom

    flip = RandomFlip("horizontal")
    if work == "none":
        return [], []
    if work == "light":
        jitter = RandomColorJitter(brightness_factor=0.2, contrast_factor=0.2, saturation_factor=(0.4, 0.6))
        return [flip, RandomZoom((-0.23, 0.0), (-0.23, 0.0)), jitter], []
    images = [flip, RandomZoom((-0.4, 0.0), (-0.4, 0.0)), RandAugment(num_ops=2, factor=0.3), RandomErasing(0.25)]
    return images, [MixUp(0.2), CutMix(1.0)]


def keras_epochs(data: DataModule, work: str, *, per_image: bool) -> Epoch:
    """Epochs as Keras' guides have them: decoded, resized (by our filter), batched, mapped over layers, prefetched."""
    import tensorflow as tf

    on_images, on_batches = layers(work)
    chosen = data.indices("train")
    paths, labels = [str(data.paths[i]) for i in chosen], np.eye(len(data.class_names), dtype="float32")
    examples = tf.data.Dataset.from_tensor_slices((paths, labels[data.labels[chosen]]))

    def decode(path: Any, target: Any) -> tuple[Any, Any]:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.image.resize(image, (SIZE, SIZE), "bicubic", antialias=True), target

    def change(images: Any, targets: Any) -> tuple[Any, Any]:
        for layer in on_images:
            images = layer(images, training=True)
        return images, targets

    def mixed(images: Any, targets: Any) -> tuple[Any, Any]:
        together = {"images": images, "labels": targets}
        for layer in on_batches:
            together = layer(together, training=True)
        return together["images"], together["labels"]

    stream = examples.shuffle(len(chosen)).map(decode, tf.data.AUTOTUNE)
    if per_image:
        stream = stream.map(change, tf.data.AUTOTUNE).batch(BATCH)
    else:
        stream = stream.batch(BATCH).map(change, tf.data.AUTOTUNE)
    stream = stream.map(mixed, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    return lambda _: stream


def rate(epoch: Epoch, number: int) -> float:
    """Images a second of one epoch."""
    began = time.perf_counter()
    images = sum(len(targets) for _, targets in epoch(number))
    return images / (time.perf_counter() - began)


def race(root: Path, work: str, rounds: int) -> None:
    """Runs the contestants in turn and prints their rows."""
    data, own = ours(root, work)
    contestants = {"ours": own}
    for name, per_image in (("Keras' layers on batches", False), ("Keras' layers on images", True)):
        contestants[name] = keras_epochs(data, work, per_image=per_image)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, epoch in contestants.items():
            found = rate(epoch, number)
            if number:
                rates[name].append(found)
    for name, values in rates.items():
        ratio = statistics.median(mine / other for mine, other in zip(rates["ours"], values, strict=True))
        print(f"| {work} | {name} | {statistics.median(values):.0f} | {ratio:.2f} |", flush=True)


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks augment", description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--side", type=int, default=400, help="pixels of the drawn photographs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos", type=Path, help="a folder with train/CLASS and test/CLASS of JPEGs")
    options = parser.parse_args(arguments)
    start_backend()
    with tempfile.TemporaryDirectory() as folder:
        root = options.photos or draw(Path(folder), options.images, options.side)
        print(f"python -m benchmarks augment {' '.join(arguments)}     ({cores()} cores)\n")
        print("| data/augment | way | images/s | ours / this |\n|---|---|---|---|")
        for work in WORKS:
            race(root.absolute(), work, options.rounds)
