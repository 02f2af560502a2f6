"""Mixed precision: layers compute in 16 bits during training; their weights, and the saved model, stay float32
(Micikevicius et al. 2018, arXiv 1710.03740)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from tl_research.backend.devices import gpu_details

if TYPE_CHECKING:
    import keras

Precision = Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]


def choose_policy(name: Precision) -> str:
    """Return the Keras policy of a precision. `auto` is bfloat16 if every GPU gains from it (compute capability 8.0 and
    more), else float32: on a CPU 16 bits are slower, and on older GPUs float16 has turned losses into NaN."""
    if name != "auto":
        return name
    capabilities = [details.get("compute_capability", (0, 0)) for details in gpu_details()]
    return "mixed_bfloat16" if capabilities and min(capabilities) >= (8, 0) else "float32"


@contextmanager
def compute_in(policy: str, backbone: keras.Model) -> Iterator[None]:
    """Let a backbone's layers compute in `policy` inside; functions traced then stay so. Preprocessing stays float32,
    for 16 bits would blur pixels before the network sees them; heads give float32 in any case."""
    import keras

    plain = (keras.layers.InputLayer, keras.layers.Rescaling, keras.layers.Normalization)
    layers = [part for layer in backbone.layers if not isinstance(layer, plain) for part in layer._flatten_layers()]
    policies = [layer.dtype_policy for layer in layers]
    try:
        if policy != "float32":
            for layer in layers:
                layer.dtype_policy = policy
        yield
    finally:
        for layer, original in zip(layers, policies, strict=True):
            layer.dtype_policy = original
