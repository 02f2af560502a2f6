"""Build vision transformers from built-in Keras layers.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020 (arXiv 2010.11929); DeiT: Touvron et al. 2020 (arXiv
2012.12877); DINOv2: Oquab et al. 2023 (arXiv 2304.07193), with LayerScale (Touvron et al. 2021, arXiv 2103.17239) and
registers (Darcet et al. 2023, arXiv 2309.16588).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import keras

EPSILON = 1e-6  # the published weights were trained with it, or with one that gives equal tokens


class Architecture(NamedTuple):
    """The sizes of a vision transformer.

    Images of `patch * grid` pixels a side become `grid ** 2` patch tokens of `width` numbers, behind one class token
    and `registers` more, which `depth` encoder blocks of `heads` attention heads transform.
    """

    patch: int
    width: int
    depth: int
    heads: int
    registers: int
    layer_scale: bool
    grid: int

    @property
    def prefix(self) -> int:
        """Return the number of tokens before those of the patches."""
        return 1 + self.registers


def vision_transformer(architecture: Architecture, pooling: Literal["avg", "max"], name: str) -> keras.Model:
    """Build the network with random weights: `(patch * grid, patch * grid, 3)` floats -> `(2 * width,)`, the class
    token and the mean ("avg") or maximum of the patch tokens side by side. Its layer `tokens` gives all of them,
    normalized: `(1 + registers + grid ** 2, width)`.

    The layer `embed` multiplies each patch, or zeros for the other tokens, by one kernel and adds a bias of its own to
    each token. So the bias holds class token, registers and positions, for which Keras has no layer.
    """
    import keras

    layers, sizes = keras.layers, architecture
    side, length = sizes.grid, sizes.prefix + sizes.grid**2
    image = keras.Input((side * sizes.patch, side * sizes.patch, 3), name="image")
    x = layers.Reshape((side, sizes.patch, side, sizes.patch * 3), name="patch_rows")(image)
    x = layers.Permute((1, 3, 2, 4), name="patch_columns")(x)
    x = layers.Reshape((side**2, sizes.patch**2 * 3), name="patches")(x)
    x = layers.ZeroPadding1D((sizes.prefix, 0), name="prefix_tokens")(x)
    positions = keras.initializers.TruncatedNormal(stddev=0.02)
    x = layers.EinsumDense(
        "bti,io->bto", (length, sizes.width), bias_axes="to", bias_initializer=positions, name="embed"
    )(x)
    for number in range(1, sizes.depth + 1):
        x = _block(x, sizes, f"block{number}")
    x = layers.LayerNormalization(epsilon=EPSILON, name="tokens")(x)
    return keras.Model(image, pool_tokens(x, sizes, pooling), name=name)


def pool_tokens(tokens: keras.KerasTensor, sizes: Architecture, pooling: Literal["avg", "max"]) -> keras.KerasTensor:
    """Put the class token and the mean or maximum of the patch tokens side by side."""
    from keras import layers

    class_token = layers.Cropping1D((0, tokens.shape[1] - 1), name="class_token")(tokens)
    patches = layers.Cropping1D((sizes.prefix, 0), name="patch_tokens")(tokens)
    pool = layers.GlobalAveragePooling1D if pooling == "avg" else layers.GlobalMaxPooling1D
    parts = [layers.Flatten(name="class_vector")(class_token), pool(name="pooled_patches")(patches)]
    return layers.Concatenate(name="features", dtype="float32")(parts)


def _block(x: keras.KerasTensor, sizes: Architecture, name: str) -> keras.KerasTensor:
    """Add an encoder block: attention and two dense layers, each normalized before and added to its input."""
    import keras

    layers = keras.layers

    def scaled(branch: keras.KerasTensor, part: str) -> keras.KerasTensor:
        # A depthwise convolution of one position multiplies each channel by a number: LayerScale.
        start = keras.initializers.Constant(1e-5)
        scale = layers.DepthwiseConv1D(1, use_bias=False, depthwise_initializer=start, name=f"{name}_{part}_scale")
        return scale(branch) if sizes.layer_scale else branch

    normal = layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_attention_norm")(x)
    attention = layers.MultiHeadAttention(sizes.heads, sizes.width // sizes.heads, name=f"{name}_attention")
    x = layers.Add(name=f"{name}_attention_add")([x, scaled(attention(normal, normal), "attention")])
    y = layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_dense_norm")(x)
    y = layers.Dense(4 * sizes.width, name=f"{name}_dense1")(y)
    y = layers.Activation(keras.activations.gelu, name=f"{name}_gelu")(y)
    y = layers.Dense(sizes.width, name=f"{name}_dense2")(y)
    return layers.Add(name=name)([x, scaled(y, "dense")])
