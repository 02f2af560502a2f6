"""Match every weight of a network to a tensor of a file, by name or by order, and report what does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tl_research.errors import InputError
from tl_research.models.weights.keras_file import reading
from tl_research.models.weights.keras_layout import Tensor, finish, kind, layers_of, snake, store_paths

if TYPE_CHECKING:
    import keras

KINDS = {"kernel", "bias", "gamma", "moving_mean", "moving_variance"}
# Layers that heads rarely contain. Used only for files that do not record the order.
NOT_A_HEAD = re.compile(r"conv|depthwise|separable|normalization")

Split = tuple[list[Tensor], list[Tensor]]


class Target(NamedTuple):
    """A weight of the network to be set."""

    layer: Any
    variable: Any

    @property
    def name(self) -> str:
        """Return layer and weight name, for messages."""
        return f"{self.layer.name}/{self.variable.name}"


class _MisfitError(Exception):
    """One way of matching failed, after `matched` weights had found their tensor."""

    def __init__(self, reason: str, matched: int):
        super().__init__(reason)
        self.matched = matched


def match(model: keras.Model, tensors: Sequence[Tensor], path: Path, *, named: bool = True) -> Split:
    """Return the tensors for the weights of `model`, in `assign`'s order, and the unused tensors that follow them.

    `tensors` is a whole file's, in the network's order. Layers are matched by name if all names occur, else by order.
    Raises InputError if a shape or kind differs, or if unused tensors precede or interrupt the used ones.
    """
    targets, misfit, matched = list(_targets(model)), None, None
    try:
        matched = _by_name_somewhere(model, targets, tensors) if named else None
    except _MisfitError as error:
        misfit = error
    try:
        return _split(tensors, matched or _pair(targets, range(len(tensors)), tensors, 0))
    except _MisfitError as error:
        raise _refusal(model, path, misfit or error) from None


def match_unordered(model: keras.Model, tensors: Sequence[Tensor], path: Path) -> Split:
    """Match as `match` does for a file that identifies layers by class and rank only (`.weights.h5`), at any depth."""
    paths = {id(layer): layer_path for layer_path, layer in store_paths(model.layers)}
    targets = list(_targets(model))
    layer_paths = [paths[id(target.layer)] for target in targets]
    file_paths = [tensor.layer for tensor in tensors]
    misfits = [_MisfitError("it holds no weights", 0)]
    for root in _roots(file_paths):
        names = [root + layer_path for layer_path in layer_paths]
        try:
            matched = _by_name(targets, names, tensors, file_paths)
        except _MisfitError as error:
            misfits.append(error)
            continue
        unused = [tensor for i, tensor in enumerate(tensors) if i not in set(matched)]
        # A later rank of one of the network's classes follows the network; for other classes the order is unknown.
        classes = {_class(name) for name in names}
        strange = [
            t for t in unused if _class(t.layer) not in classes and NOT_A_HEAD.match(_class(t.layer).split("/")[-1])
        ]
        if not strange:
            return [tensors[i] for i in matched], unused
        misfits.append(_MisfitError(f"left over are {_some(strange)}, and they are no head", len(targets)))
    raise _refusal(model, path, max(misfits, key=lambda error: error.matched))


def _roots(layer_paths: Sequence[str]) -> list[str]:
    """List the prefixes before `layers/` in the file: that of the model and those of nested models."""
    return sorted({path[: at.start()] for path in layer_paths for at in re.finditer(r"\blayers/", path)}, key=len)


def _class(layer_path: str) -> str:
    return re.sub(r"_\d+$", "", layer_path)


def assign(model: keras.Model, matched: Sequence[Tensor], path: Path) -> None:
    """Set all weights of `model`; raise InputError before any is set if one cannot be read or is not finite."""
    values = []
    for tensor in matched:
        with reading(path):
            values.append(np.asarray(tensor.data[()]))
        if not np.isfinite(values[-1]).all():
            raise InputError(f"{path} is damaged: {tensor.name} holds NaN or infinity. Download or save it again")
    for target, value in zip(_targets(model), values, strict=True):
        target.variable.assign(value)
    finish(model)


def _targets(model: keras.Model) -> Iterator[Target]:
    for layer in layers_of(model):
        for variable in layer.weights:
            yield Target(layer, variable)


def _is_automatic(name: str, stem: str) -> bool:
    return re.fullmatch(rf"{stem}(_\d+)?", name) is not None


def _stable(names: Sequence[str], stems: set[str]) -> list[str]:
    """Number automatic names by rank: conv2d_17, conv2d_18 depend on models built before, conv2d#0, conv2d#1 do not."""
    ranks: dict[str, dict[str, str]] = {stem: {} for stem in stems}
    stable = []
    for name in names:
        stem = re.sub(r"_\d+$", "", name)
        rank = ranks.get(stem)
        stable.append(name if rank is None else rank.setdefault(name, f"{stem}#{len(rank)}"))
    return stable


def _by_name_somewhere(model: keras.Model, targets: Sequence[Target], tensors: Sequence[Tensor]) -> list[int] | None:
    """Match by name within the file's model, or nested model, that has all of our names; return None if none has.

    Models are tried one at a time, because ranks of automatic names mean nothing across models.
    """
    stems = {stem for layer in layers_of(model) if _is_automatic(layer.name, stem := snake(type(layer).__name__))}
    model_names = _stable([target.layer.name for target in targets], stems)
    misfit = None
    for scope in dict.fromkeys(tensor.scope for tensor in tensors):
        indices = [i for i, tensor in enumerate(tensors) if tensor.scope == scope]
        inside = [tensors[i] for i in indices]
        file_names = _stable([tensor.layer for tensor in inside], stems)
        if set(model_names) <= set(file_names):
            try:
                return [indices[i] for i in _by_name(targets, model_names, inside, file_names)]
            except _MisfitError as error:
                misfit = misfit or error
    if misfit:
        raise misfit
    return None


def _by_name(
    targets: Sequence[Target], model_names: Sequence[str], tensors: Sequence[Tensor], file_names: Sequence[str]
) -> list[int]:
    """Find the index of each target's tensor, by the layer names of the network and of the file."""
    by_layer: dict[str, list[int]] = {}
    for i, name in enumerate(file_names):
        by_layer.setdefault(name, []).append(i)
    matched: list[int] = []
    for name in dict.fromkeys(model_names):
        wanted = [target for target, own in zip(targets, model_names, strict=True) if own == name]
        indices = by_layer.get(name, [])
        kinds = [kind(target.variable.name) for target in wanted]
        # Within a layer, match by kind if the file names kinds, else by order.
        if len(set(kinds)) == len(kinds) and {tensors[i].kind for i in indices} == set(kinds):
            indices = sorted(indices, key=lambda i: kinds.index(tensors[i].kind))
        matched += _pair(wanted, indices, tensors, len(matched))
        if len(indices) > len(wanted):
            extra = _some([tensors[i] for i in indices[len(wanted) :]])
            raise _MisfitError(
                f"its layer {wanted[0].layer.name} has more weights than the network's: {extra}", len(matched)
            )
    return matched


def _pair(targets: Sequence[Target], indices: Sequence[int], tensors: Sequence[Tensor], before: int) -> list[int]:
    """Return one tensor's index per target, or raise with the reason for the first target without one."""
    for n, target in enumerate(targets):
        want, shape = kind(target.variable.name), tuple(target.variable.shape)
        if n == len(indices):
            raise _MisfitError(f"it holds nothing for {target.name} {shape}", before + n)
        tensor = tensors[indices[n]]
        if tensor.shape != shape or (want != tensor.kind and {want, tensor.kind} <= KINDS):
            remaining = len(tensors) - before - n
            reason = (
                f"its {tensor.name} {tensor.shape} stands where {target.name} {shape} belongs, {remaining} left over"
            )
            raise _MisfitError(reason, before + n)
    return list(indices[: len(targets)])


def _split(tensors: Sequence[Tensor], matched: list[int]) -> Split:
    """Return matched and unused tensors; raise if an unused one does not come last."""
    used, last = set(matched), max(matched, default=-1)
    unused = [tensor for i, tensor in enumerate(tensors) if i not in used]
    early = [tensor for i, tensor in enumerate(tensors) if i not in used and i < last]
    if early:
        raise _MisfitError(f"left over are {_some(early)}, which come before its end and are no head", len(matched))
    return [tensors[i] for i in matched], unused


def _some(tensors: Sequence[Tensor]) -> str:
    names = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in tensors[:4])
    return f"{names} and {len(tensors) - 4} more" if len(tensors) > 4 else names


def _refusal(model: keras.Model, path: Path, misfit: _MisfitError) -> InputError:
    return InputError(f"{path} does not fit {model.name}: {misfit}. Give weights of this very network")
