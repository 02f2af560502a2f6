"""Read the weights of vision transformers by timm's and Hugging Face's names, and arrange them for our layers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tl_research.errors import InputError
from tl_research.models.networks.vision_transformer import Architecture
from tl_research.models.resampling import resize_matrix
from tl_research.models.weights.safetensors_file import read_safetensors
from tl_research.models.weights.torch_file import read_torch

Tensors = Mapping[str, np.ndarray]

RENAMED = (
    (r"embeddings\.", ""),
    (r"patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"position_embeddings$", "pos_embed"),
    (r"(register_tokens|dist_token|distillation_token)$", "reg_token"),
    (r"(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"(blocks\.\d+\.)attention\.(attention\.)?([qkv])(uery|ey|alue|_proj)\.", r"\1attn.\3."),
    (r"(blocks\.\d+\.)attention\.(output\.dense|o_proj)\.", r"\1attn.proj."),
    (r"(blocks\.\d+\.)layernorm_before\.", r"\1norm1."),
    (r"(blocks\.\d+\.)layernorm_after\.", r"\1norm2."),
    (r"(blocks\.\d+\.)layer_scale(\d)\.lambda1$", r"\1ls\2.gamma"),
    (r"(blocks\.\d+\.)intermediate\.dense\.", r"\1mlp.fc1."),
    (r"(blocks\.\d+\.)output\.dense\.", r"\1mlp.fc2."),
    (r"layernorm\.", "norm."),
)
"""Hugging Face's names, in files and in models of transformers 5, and those of the authors' files, as timm has them."""
PARTS = ("q", "k", "v")
NOT_OURS = re.compile(r"(head|head_dist|classifier|cls_classifier|distillation_classifier|pooler|mask_token)\b")
"""Heads, and the token that stands for hidden patches in pretraining."""


def read_transformer(path: str | Path, sizes: Architecture) -> dict[str, np.ndarray]:
    """Read `.safetensors`, `.pth` or `.pt`; return the tensors by timm's names, query, key and value apart.

    Raises:
        InputError: the file is damaged, lacks a tensor, has one of another shape, or one that is no head's.
    """
    path = Path(path).expanduser()
    tensors = _split_attention(_rename(read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)))
    tensors = {name: value for name, value in tensors.items() if not NOT_OURS.match(name)}
    expected = _shapes(sizes)
    advice = "Give the file for this network"
    for name, shape in expected.items():
        if name not in tensors:
            raise InputError(f"{path} is another network's: it holds no {name} {shape}. {advice}")
        if name != "pos_embed" and tensors[name].shape != shape:
            raise InputError(f"{path} is another network's: its {name} is {tensors[name].shape}, not {shape}. {advice}")
    if left := [name for name in tensors if name not in expected]:
        more = f" and {len(left) - 4} more" if len(left) > 4 else ""
        raise InputError(f"{path} is another network's: left over are {', '.join(left[:4])}{more}. {advice}")
    if tensors["pos_embed"].ndim != 3 or not _own_positions(tensors["pos_embed"].shape, sizes):
        shape = tensors["pos_embed"].shape
        raise InputError(f"{path} is another network's: its pos_embed {shape} is no square grid of positions. {advice}")
    return {name: tensors[name] for name in expected}


def arrange(tensors: Tensors, sizes: Architecture) -> dict[str, list[np.ndarray]]:
    """Give the weights of each layer, by its name, from the tensors that `read_transformer` returns."""
    width = sizes.width

    def dense(name: str, *inner: int) -> list[np.ndarray]:
        kernel, bias = tensors[f"{name}.weight"].T, tensors[f"{name}.bias"]
        return [kernel.reshape(len(kernel), *inner) if inner else kernel, bias.reshape(inner) if inner else bias]

    def norm(name: str) -> list[np.ndarray]:
        return [tensors[f"{name}.weight"], tensors[f"{name}.bias"]]

    arranged = {"embed": _embedding(tensors, sizes), "tokens": norm("norm")}
    for i in range(sizes.depth):
        theirs, ours = f"blocks.{i}", f"block{i + 1}"
        per_head = (sizes.heads, width // sizes.heads)
        inward = [array for part in PARTS for array in dense(f"{theirs}.attn.{part}", *per_head)]
        kernel, bias = dense(f"{theirs}.attn.proj")
        arranged |= {
            f"{ours}_attention_norm": norm(f"{theirs}.norm1"),
            f"{ours}_attention": [*inward, kernel.reshape(*per_head, width), bias],
            f"{ours}_dense_norm": norm(f"{theirs}.norm2"),
            f"{ours}_dense1": dense(f"{theirs}.mlp.fc1"),
            f"{ours}_dense2": dense(f"{theirs}.mlp.fc2"),
        }
        if sizes.layer_scale:
            for number, part in ((1, "attention"), (2, "dense")):
                arranged[f"{ours}_{part}_scale"] = [tensors[f"{theirs}.ls{number}.gamma"].reshape(1, width, 1)]
    return arranged


def _rename(tensors: Tensors) -> dict[str, np.ndarray]:
    """Translate to timm's names, without the name of the model that holds the network (`vit.`, `backbone.`)."""
    roots = [name[: at.start()] for name in tensors if (at := re.search(r"(embeddings\.)?cls_token$", name))]
    root = min(roots, key=len, default="")
    renamed = {}
    for name, value in tensors.items():
        new = name.removeprefix(root)
        for old, replacement in RENAMED:
            new = re.sub(f"^{old}", replacement, new)
        renamed[new] = value
    return renamed


def _split_attention(tensors: Tensors) -> dict[str, np.ndarray]:
    """Divide timm's `qkv`, one matrix for query, key and value."""
    divided: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        before, found, after = name.partition(".attn.qkv.")
        if found and value.ndim and len(value) % 3 == 0:
            parts = zip(PARTS, np.split(value, 3), strict=True)
            divided |= {f"{before}.attn.{part}.{after}": each for part, each in parts}
        else:
            divided[name] = value
    return divided


def _shapes(sizes: Architecture) -> dict[str, tuple[int, ...]]:
    """Give the shape of each tensor that the network needs; that of `pos_embed` depends on the file's image size."""
    width, inner = sizes.width, 4 * sizes.width
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width)}
    if sizes.registers:
        shapes["reg_token"] = (1, sizes.registers, width)
    shapes |= {"pos_embed": (1, sizes.grid**2 + 1, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, sizes.patch, sizes.patch), "patch_embed.proj.bias": (width,)}
    for i in range(sizes.depth):
        matrices = {f"attn.{part}": (width, width) for part in (*PARTS, "proj")}
        matrices |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        for name, shape in matrices.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        for number in (1, 2):
            shapes |= {f"blocks.{i}.norm{number}.{part}": (width,) for part in ("weight", "bias")}
            shapes |= {f"blocks.{i}.ls{number}.gamma": (width,)} if sizes.layer_scale else {}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def _own_positions(shape: tuple[int, ...], sizes: Architecture) -> list[int]:
    """List how many tokens besides the patches may have positions in a file of this shape: the class token, none, or
    the class token and the registers. The rest must be a square."""
    count = shape[1] if shape[0] == 1 and shape[2] == sizes.width else 0
    return [own for own in (1, 0, sizes.prefix) if count > own and math.isqrt(count - own) ** 2 == count - own]


def _embedding(tensors: Tensors, sizes: Architecture) -> list[np.ndarray]:
    """Make kernel and bias of the layer `embed`: class token, registers and positions are in the bias."""
    positions = tensors["pos_embed"][0].astype(np.float32)
    own = _own_positions(tensors["pos_embed"].shape, sizes)[0]
    special = [tensors["cls_token"][0], *([tensors["reg_token"][0]] if sizes.registers else [])]
    prefix = np.concatenate(special).astype(np.float32)
    prefix[:own] += positions[:own]
    patches = interpolate_positions(positions[own:], sizes.grid) + tensors["patch_embed.proj.bias"]
    kernel = tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(-1, sizes.width)
    return [kernel, np.concatenate([prefix, patches])]


def interpolate_positions(positions: np.ndarray, grid: int) -> np.ndarray:
    """Resize position embeddings `(n * n, d)` to `(grid * grid, d)` as timm does: bicubic (a = -0.5), antialiased, the
    borders of the grids aligned, without the offset of 0.1 that DINOv2's own code adds for its networks without
    registers."""
    side = math.isqrt(len(positions))
    if side == grid:
        return positions
    weights = resize_matrix(side, grid)  # torch's antialiased one copies Pillow's
    return np.einsum("ai,bj,ijd->abd", weights, weights, positions.reshape(side, side, -1)).reshape(grid**2, -1)
