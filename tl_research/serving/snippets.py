"""Write the lines of code that use an exported model without this package."""

from __future__ import annotations

from dataclasses import dataclass

from tl_research.data.decode import Resize
from tl_research.data.pixel_range import PixelRange


@dataclass(frozen=True)
class _Calls:
    """What differs between formats: import, loading to `model`, reading `names`, and computing `answer` `(k,)`."""

    imports: str
    model: str
    names: str
    answer: str


_QUIET = 'import os; os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"\n'
_CALLS = {
    "keras": _Calls(
        _QUIET + "import keras, numpy as np",
        'keras.models.load_model(here / "model.keras")',
        'json.loads((here / "model.json").read_text())["class_names"]',
        "np.asarray(model(pixels))[0]",
    ),
    "savedmodel": _Calls(
        _QUIET + "import numpy as np, tensorflow as tf",
        "tf.saved_model.load(here)",
        'json.loads((here / "assets" / "model.json").read_text())["class_names"]',
        'model.signatures["serving_default"](pixels=tf.constant(pixels))["probabilities"].numpy()[0]',
    ),
    "onnx": _Calls(
        "import numpy as np, onnxruntime",
        'onnxruntime.InferenceSession(here / "model.onnx")',
        'json.loads(model.get_modelmeta().custom_metadata_map["class_names"])',
        'model.run(["probabilities"], {"pixels": pixels})[0][0]',
    ),
    "openvino": _Calls(
        "import numpy as np, openvino",
        'openvino.Core().read_model(here / "model.xml")',
        'json.loads(model.get_rt_info(["model_info", "class_names"]).value)',
        'openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(pixels)["probabilities"][0]',
    ),
    "litert": _Calls(
        "import numpy as np, zipfile; from ai_edge_litert.interpreter import Interpreter",
        'Interpreter(str(here / "model.tflite"))',
        'json.loads(zipfile.ZipFile(here / "model.tflite").read("model.json"))["class_names"]',
        'model.get_signature_runner()(pixels=pixels)["probabilities"][0]',
    ),
}
FORMATS = tuple(_CALLS)

_RESIZE: dict[Resize, str] = {
    "squash": "image = image.resize(({size}, {size}), Image.Resampling.BICUBIC)",
    "crop": "image = ImageOps.fit(image, ({size}, {size}), Image.Resampling.BICUBIC)",
    # Half a pixel of padding goes to the right and below, as in training; Pillow would round half to even.
    "pad": "sides = [max(1, round(side * {size} / max(image.size))) for side in image.size]\n"
    'image = ImageOps.pad(image.resize(sides, 3), ({size}, {size}), color="white", centering=(0.4999, 0.4999))',
}

_UPRIGHT = 'image = ImageOps.exif_transpose(image).convert("RGBA")'
_UPRIGHT_DEEP = """image = ImageOps.exif_transpose(image)
if image.mode[0] in "IF":  # more than 8 bits a pixel, made 8 as in training
    deep = np.nan_to_num(np.asarray(image), posinf=0, neginf=0).astype("float32")
    low, high = {range}
    image = Image.fromarray((np.clip((deep - low) / (high - low), 0, 1) * 255 + 0.5).astype("uint8"))
image = image.convert("RGBA")"""

_SCRIPT = """# python use.py PHOTO: the probability of each class. The image is read and resized as in training.
import json, pathlib, sys
{imports}
from PIL import Image, ImageOps

here = pathlib.Path(__file__).parent
model = {model}
names = {names}
image = Image.open(sys.argv[1])
image.draft("RGB", ({double}, {double}))  # a large JPEG is decoded at reduced scale
{upright}
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
{resize}
pixels = np.asarray(image)[None]  # uint8 (1, {size}, {size}, 3), RGB
print(json.dumps(dict(zip(names, {answer}.tolist())), ensure_ascii=False))
"""


def usage_script(format_: str, size: int, resize: Resize, deep: PixelRange | None = None) -> str:
    """Write `use.py`: ten lines of code below the imports (one more with `resize=pad`) that print the probability of
    each class, as JSON, for the image file that is their argument. Six more scale greyscale images with more than 8
    bits to the range `deep`."""
    calls = _CALLS[format_]
    return _SCRIPT.format(
        imports=calls.imports,
        model=calls.model,
        names=calls.names,
        answer=calls.answer,
        resize=_RESIZE[resize].format(size=size),
        upright=_UPRIGHT_DEEP.format(range=_range(deep)) if deep else _UPRIGHT,
        size=size,
        double=2 * size,
    )


def _range(values: PixelRange) -> str:
    """Write the values that become black and white as `PixelRange.eight_bits` finds them."""
    if values.window:
        return "{}, {}".format(*values.window)
    integers = "max(deep.max(), 65535)" if values.bits == 16 else 2**values.bits - 1
    return f'0, {integers} if image.mode[0] == "I" else 1 if deep.max() <= 1 else max(deep.max(), 255)'
