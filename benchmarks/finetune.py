"""Fine-tuning, update by update: Keras' `fit` as its guide writes it, torch with timm, ours.

    python -m benchmarks finetune [--networks mobilenet_v2,resnet50] [--images 96] [--rounds 2] [--torch PYTHON]

Everybody updates the same network on the same JPEGs, 32 at a time at 224 pixels, batch norm frozen, with Adam: all
layers, the last block, or the head. Each has a process of its own, one after the other, so look at the ratios. The
clock of `first` starts when the network stands and ends after the first update; what is computed once, such as what
frozen blocks make of the images, is part of it. `images/s` is of the updates after that, the median of the rounds.
torch takes part where it is installed (pip install torch timm), or in the environment of `--torch`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.frozen import draw
from tl_research.system.hardware import cores

WHATS = ("all", "last block", "head")
KERAS = {"mobilenet_v2": "MobileNetV2", "resnet50": "ResNet50"}
FROZEN = {"mobilenet_v2": "block_13_expand", "resnet50": "conv5_block1_1_conv"}
"""The first layer of each network's last block: all before it stay as they are."""
TIMM = {"mobilenet_v2": "mobilenetv2_100", "resnet50": "resnet50"}
TAIL = {"mobilenet_v2": ("blocks.5", "blocks.6", "conv_head", "bn2"), "resnet50": ("layer4",)}
"""timm's names for the layers of the last block."""

# keras.io/guides/transfer_learning, its fine-tuning part, without its augmentation.
GUIDE = """
import json, time
import keras, tensorflow as tf
data = keras.utils.image_dataset_from_directory("{root}/train", image_size=(224, 224), batch_size=32)
data = data.unbatch().cache().repeat().batch(32).prefetch(tf.data.AUTOTUNE)
for _ in data.take({batches}): pass
network = keras.applications.{keras}(include_top=False, weights=None, input_shape=(224, 224, 3))
inputs = keras.Input((224, 224, 3))
x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
x = keras.layers.GlobalAveragePooling2D()(network(x, training=False))
model = keras.Model(inputs, keras.layers.Dense(2)(x))
for layer in network.layers:
    if isinstance(layer, keras.layers.BatchNormalization): layer.trainable = False
if "{what}" == "head": network.trainable = False
if "{what}" == "last block":
    for layer in network.layers[:network.layers.index(network.get_layer("{frozen}"))]: layer.trainable = False
ends = []
class Clock(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None): ends.append(time.perf_counter())
began = time.perf_counter()
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(1e-5), loss, metrics=["accuracy"])
model.fit(data, steps_per_epoch={steps} + 1, epochs=1, verbose=0, callbacks=[Clock()])
print(json.dumps([ends[0] - began, 32 * {steps} / (ends[-1] - ends[0])]))
"""

TORCH = """
import json, time
from pathlib import Path
import numpy as np, timm, torch
from PIL import Image
torch.set_num_threads({cores})
paths = sorted(Path("{root}/train").rglob("*.jpg"))
def load(path):
    return np.array(Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
pixels = torch.from_numpy(np.stack([load(path) for path in paths])).permute(0, 3, 1, 2)
names = sorted({{path.parent.name for path in paths}})
labels = torch.tensor([names.index(path.parent.name) for path in paths])
network = timm.create_model("{timm}", pretrained=False, num_classes=2).to(memory_format=torch.channels_last).train()
for layer in network.modules():
    if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
        layer.eval().requires_grad_(False)
tail = {tail}
def learns(name):
    return "{what}" == "all" or name.startswith(("classifier", "fc", *(tail if "{what}" == "last block" else ())))
for name, weight in network.named_parameters():
    weight.requires_grad_(weight.requires_grad and learns(name))
optimizer = torch.optim.Adam([w for w in network.parameters() if w.requires_grad], 1e-5)
def step(i):
    chosen = torch.arange(32 * i, 32 * i + 32) % len(pixels)
    x = (pixels[chosen].float() / 127.5 - 1).to(memory_format=torch.channels_last)
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(network(x), labels[chosen])  # no graph is kept where nothing learns
    loss.backward()
    optimizer.step()
    return loss.item()
began = time.perf_counter()
step(0)
first = time.perf_counter()
for i in range({steps}): step(i + 1)
print(json.dumps([first - began, 32 * {steps} / (time.perf_counter() - first)]))
"""


def ours(name: str, what: str, root: str, steps: int, *, deterministic: bool = False) -> None:
    """Prints seconds to the first update, and images a second after it, by the parts that a run is made of."""
    import itertools
    import time
    from dataclasses import replace

    import numpy as np

    from tl_research import compose
    from tl_research.backend.start import start_backend
    from tl_research.backend.train_step import Learning, TrainStep
    from tl_research.features.table import Features, FeatureTable
    from tl_research.models.classifier import build_classifier
    from tl_research.models.head import Linear
    from tl_research.models.trainable_plan import resolve_plan
    from tl_research.training import inputs

    experiment = compose([f"backbone={name}", "backbone.weights=null", "data=folder", f"data.root={root}"])
    threads = start_backend(deterministic=deterministic)
    import keras  # not earlier: TensorFlow reads its switches when it is imported

    data, backbone = experiment.data.load(), experiment.backbone.build()
    head = Linear().build(backbone.output_shape[-1], 2)
    classifier, indices = build_classifier(backbone, head), data.indices("train")
    began = time.perf_counter()
    plan = resolve_plan(classifier, {"all": "all", "last block": 1, "head": 0}[what])
    learning = [Learning(v, part.rate) for part in plan.parts for v in part.learning]
    table = FeatureTable(backbone, data, Features(), "auto", threads)
    if what == "head":
        rows = table.get(indices), data.labels[indices]
        feed = inputs.feature_inputs(head, rows, rows, 2, 32, 0)
    elif what == "last block":
        # In 32 bits: what random weights make of an image is too small for 16.
        maps = replace(table.maps(plan.prefix), row_type="<f4")
        maps.load(indices)
        feed = inputs.map_inputs(plan, maps, data, 32, 0)
    else:
        feed = inputs.image_inputs(plan, data, 32, 0, threads)
    step = TrainStep(feed.forward, learning, [], keras.optimizers.Adam())
    batches = itertools.chain.from_iterable(feed.train(epoch, 0) for epoch in itertools.count())
    whole = (batch for batch in batches if len(batch[1]) == 32)
    float(step([next(whole)], 1e-5)[0])
    first = time.perf_counter()
    for _ in range(steps):
        float(step([next(whole)], 1e-5)[0])
    print(json.dumps([first - began, 32 * steps / (time.perf_counter() - first)]))
    assert np.isfinite(head.get_weights()[0]).all()


def measured(command: list[str]) -> list[float]:
    """What a contestant prints, in an environment that nothing of ours has touched."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TF_", "KERAS_"))}
    environment |= {"PYTHONPATH": str(Path.cwd()), "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def race(name: str, what: str, root: Path, rounds: int, torch: str | None) -> None:
    """Runs the contestants in turn and prints their rows."""
    steps = {"all": 6, "last block": 12, "head": 12}[what]
    words = {"root": root, "what": what, "steps": steps, "batches": 8, "cores": cores()}
    own = f"from benchmarks.finetune import ours; ours({name!r}, {what!r}, {str(root)!r}, {steps}, deterministic=%s)"
    commands = {
        "Keras' fit": [sys.executable, "-c", GUIDE.format(keras=KERAS[name], frozen=FROZEN[name], **words)],
        "torch, timm": [str(torch), "-c", TORCH.format(timm=TIMM[name], tail=TAIL[name], **words)],
        "ours": [sys.executable, "-c", own % False],
        "ours, deterministic": [sys.executable, "-c", own % True],
    }
    if torch is None:
        commands.pop("torch, timm")
    found = [{way: measured(command) for way, command in commands.items()} for _ in range(rounds)]
    for way in commands:
        first, rate = (statistics.median(turn[way][i] for turn in found) for i in range(2))
        sooner = statistics.median(turn["ours"][0] / turn[way][0] for turn in found)
        faster = statistics.median(turn["ours"][1] / turn[way][1] for turn in found)
        print(f"| {name} | {what} | {way} | {first:.1f} | {sooner:.2f} | {rate:.1f} | {faster:.2f} |", flush=True)


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks finetune", description=__doc__)
    parser.add_argument("--networks", default=",".join(KERAS))
    parser.add_argument("--what", default=",".join(WHATS), help="what learns")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--torch", help="the Python of another environment, which has torch and timm")
    options = parser.parse_args(arguments)
    torch = options.torch or (sys.executable if importlib.util.find_spec("timm") else None)
    with tempfile.TemporaryDirectory() as folder:
        root = draw(Path(folder), options.images * 3 // 2, 224).absolute()
        print(f"python -m benchmarks finetune {' '.join(arguments)}     ({cores()} cores)\n")
        columns = ("network", "learns", "way", "first, s", "ours / this", "images/s", "ours / this")
        print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        for name in options.networks.split(","):
            for what in options.what.split(","):
                race(name, what, root, options.rounds, torch)
