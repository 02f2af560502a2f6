"""The TensorBoard callback. Event files are written by TensorBoard's own record writer, without TensorFlow."""

from __future__ import annotations

import io
import itertools
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from tl_research.recipe import Count, recipe
from tl_research.runs.reader import RunReader
from tl_research.system.console import only_warning, printable
from tl_research.training.callbacks import Callback, Results

if TYPE_CHECKING:
    import keras

FOLDER = "tensorboard"

_numbers = itertools.count()


@recipe
class TensorBoard(Callback):
    """Write scalars of each epoch over one continuous axis, and at the end a confusion matrix, a reliability diagram,
    a page of `samples` test images (0: no page) and the HParams view, to `tensorboard/` of the run directory."""

    samples: Count = 16

    @override
    def build(self, directory: Path) -> keras.callbacks.Callback:
        import keras

        events = EventFile(directory / FOLDER)

        class Scalars(keras.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
                with only_warning("callback TensorBoard"):
                    events.append(epoch, *(scalar(_tag(name), value) for name, value in (logs or {}).items()))

        return Scalars()

    @override
    def see(
        self, directory: Path, epoch: int, pixels: np.ndarray, targets: np.ndarray, class_names: Sequence[str]
    ) -> None:
        from tl_research.reports import figures

        page = figures.batch(pixels, targets, class_names)
        EventFile(directory / FOLDER).append(epoch, image("train/batch", page))

    @override
    def finish(self, directory: Path, results: Results) -> None:
        """Add what is known only at the end."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        from tl_research.reports import figures

        summaries = []
        if len(results.labels):
            matrix = figures.confusion_matrix(results.labels, results.logits.argmax(axis=1), results.class_names)
            summaries.append(image("test/confusion_matrix", matrix))
        calibration = RunReader(directory).calibration
        if bins := calibration.get("reliability"):
            summaries.append(image("test/reliability", figures.reliability_diagram(bins, calibration["temperature"])))
        if self.samples and results.samples:
            page = figures.predictions(results.samples[: self.samples], results.class_names)
            summaries.append(image("test/predictions", page))
        names = list(map(printable, results.class_names))
        drawn = figures.drawable_names(names)
        if legend := [f"    {a}  {b}" for a, b in zip(drawn, names, strict=True) if a != b]:
            summaries.append(text("test/classes", "\n".join(legend)))  # indented, so that Markdown leaves it alone
        # No hparams_config: of all runs TensorBoard believes one, which lacks the others' keys. Without any it puts
        # all runs together, what differs first.
        summaries.append(hparams_pb(dict(results.hyperparameters), trial_id="/".join(directory.parts[-2:])))
        final = {k: v for k, v in results.metrics.items() if k.startswith(("val_", "test_", "cv_"))}
        summaries += [scalar(f"final/{name}", value) for name, value in final.items() if isinstance(value, float)]
        EventFile(directory / FOLDER).append(0, *summaries)


class EventFile:
    """A new event file in a folder, open only while something is appended: a killed run keeps all its epochs."""

    def __init__(self, folder: Path) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}.v2"
        self.path = folder / name

    def append(self, step: int, *summaries: Any) -> None:
        """Append summaries, protocol buffers, at one step."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.path.parent.mkdir(parents=True, exist_ok=True)
        now = time.time()
        with self.path.open("ab") as file:
            writer = RecordWriter(file)
            if file.tell() == 0:
                writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
            for summary in summaries:
                writer.write(Event(wall_time=now, step=step, summary=summary).SerializeToString())


def scalar(tag: str, value: float) -> Any:
    """Make the summary of a number."""
    from tensorboard.plugins.scalar.metadata import create_summary_metadata

    return _summary(tag, np.float32(value), create_summary_metadata(display_name=None, description=None))


def text(tag: str, content: str) -> Any:
    """Make the summary of a text in Markdown."""
    from tensorboard.plugins.text.metadata import create_summary_metadata

    return _summary(tag, [content.encode()], create_summary_metadata(display_name=None, description=None))


def image(tag: str, pixels: np.ndarray) -> Any:
    """Make the summary of a picture, uint8 `(h, w, 3)`."""
    from PIL import Image
    from tensorboard.plugins.image.metadata import create_summary_metadata

    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "png", compress_level=3)
    height, width = pixels.shape[:2]
    content = [str(width).encode(), str(height).encode(), png.getvalue()]
    return _summary(tag, content, create_summary_metadata(display_name=None, description=None))


def _summary(tag: str, content: Any, metadata: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.util.tensor_util import make_tensor_proto

    return Summary(value=[Summary.Value(tag=tag, tensor=make_tensor_proto(content), metadata=metadata)])


def _tag(name: str) -> str:
    """`val_loss` -> `loss/val`: TensorBoard groups by what stands before the slash."""
    if name in ("learning_rate", "seconds", "data_wait"):
        return f"stage/{name}"
    return f"{name.removeprefix('val_')}/{'val' if name.startswith('val_') else 'train'}"
