"""Folded batch norm is the same function, with the same gradients, as convolution and batch norm."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

from tl_research.backend.bn_folding import fold_batch_norm

CONVOLUTIONS = {
    "plain": lambda: keras.layers.Conv2D(6, 3, use_bias=False),
    "with a bias": lambda: keras.layers.Conv2D(6, 3, strides=2, padding="same", bias_initializer="random_normal"),
    "dilated": lambda: keras.layers.Conv2D(6, 3, dilation_rate=2),
    "grouped": lambda: keras.layers.Conv2D(6, 1, groups=2),
    "depthwise": lambda: keras.layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2),
    "depthwise without a bias": lambda: keras.layers.DepthwiseConv2D(3, use_bias=False),
}
NORMS = {
    "whole": lambda: keras.layers.BatchNormalization(),
    "without gamma": lambda: keras.layers.BatchNormalization(scale=False, epsilon=1e-2),
    "without beta": lambda: keras.layers.BatchNormalization(center=False, axis=3),
}
MAPS = np.random.default_rng(0).normal(size=(3, 9, 9, 4)).astype(np.float32)


def network(*layers: keras.layers.Layer) -> keras.Model:
    """Build a network of these layers, with frozen batch norm of random statistics."""
    keras.utils.set_random_seed(0)
    pixels = keras.Input((9, 9, 4))
    maps = pixels
    for layer in layers:
        maps = layer(maps)
    model = keras.Model(pixels, maps)
    rng = np.random.default_rng(1)
    for layer in layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
            layer.set_weights([rng.uniform(0.3, 2, weight.shape) for weight in layer.weights])
    return model


def folds(model: keras.Model) -> int:
    return sum(operation.name.endswith("_folded") for operation in model.operations)


def gradients(model: keras.Model, variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    values = [variable.value for variable in variables]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(MAPS, training=True) ** 2)
    return [gradient.numpy() for gradient in tape.gradient(loss, values)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_folding_keeps_maps_and_gradients(convolution: str, norm: str) -> None:
    model = network(CONVOLUTIONS[convolution](), NORMS[norm](), keras.layers.ReLU())
    learning = model.layers[1].trainable_variables
    folded = fold_batch_norm(model, learning)
    assert folds(folded) == 1
    np.testing.assert_allclose(folded(MAPS, training=True), model(MAPS, training=True), rtol=1e-4, atol=1e-5)
    for gradient, expected in zip(gradients(folded, learning), gradients(model, learning), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))


def test_batch_norm_that_trains_is_not_folded() -> None:
    norm = keras.layers.BatchNormalization()
    model = network(keras.layers.Conv2D(6, 3), norm)
    assert folds(fold_batch_norm(model, [norm.beta])) == 0
    norm.trainable = True
    assert folds(fold_batch_norm(model)) == 0


@pytest.mark.parametrize(
    "between", [keras.layers.ReLU(), keras.layers.Conv2D(6, 1, activation="relu")], ids=["relu", "its own relu"]
)
def test_batch_norm_above_an_activation_is_not_folded(between: keras.layers.Layer) -> None:
    model = network(keras.layers.Conv2D(6, 3), between, keras.layers.BatchNormalization())
    assert folds(fold_batch_norm(model)) == 0


def test_a_map_with_other_uses_is_kept() -> None:
    pixels = keras.Input((9, 9, 4))
    maps = keras.layers.Conv2D(6, 3)(pixels)
    norm = keras.layers.BatchNormalization()
    model = keras.Model(pixels, keras.layers.Add()([norm(maps), maps]))
    norm.trainable = False
    np.testing.assert_allclose(fold_batch_norm(model)(MAPS), model(MAPS), rtol=1e-4, atol=1e-5)
