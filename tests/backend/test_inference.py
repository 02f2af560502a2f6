"""Traced functions give the numbers of the network itself."""

from __future__ import annotations

import keras
import numpy as np

from tl_research.backend.devices import has_gpu, kernel_facts
from tl_research.backend.inference import compile_forward, compile_network, export_graph

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)


def network() -> keras.Model:
    layers = [keras.layers.Conv2D(3, 3), keras.layers.Dropout(0.5), keras.layers.GlobalMaxPooling2D()]
    return keras.Sequential([keras.Input((8, 8, 3)), *layers])


def test_a_compiled_forward_pass_takes_any_batch_size() -> None:
    model, traces = network(), []
    forward = compile_forward(lambda pixels: (traces.append(1), model(keras.ops.cast(pixels, "float32")))[1])
    for count in (4, 1, 3):
        np.testing.assert_allclose(forward(PIXELS[:count]), model(PIXELS[:count].astype("float32")), rtol=1e-5)
    assert len(traces) == 1


def test_a_compiled_network_runs_in_inference_mode() -> None:
    model = network()
    expected = model(PIXELS.astype("float32"), training=False)
    np.testing.assert_allclose(compile_network(model, 4)(PIXELS), expected, rtol=1e-5)


def test_an_exported_graph_takes_its_weights_as_inputs() -> None:
    model = network()
    graph = export_graph(model, 4)
    assert [id(variable) for variable in graph.variables.values()][:2] == [id(v) for v in model.trainable_variables]
    assert graph.definition


def test_facts_name_each_gpu() -> None:
    assert has_gpu() == bool(kernel_facts()["gpus"])
