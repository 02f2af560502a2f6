"""Finds for every weight of a network its tensor in a file, by name or by order, and says what does not fit."""

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
# Layers that seldom stand behind a backbone. Only asked where the file does not record its order.
NOT_A_HEAD = re.compile(r"conv|depthwise|separable|normalization")

Split = tuple[list[Tensor], list[Tensor]]


class Target(NamedTuple):
    """A weight of the network that wants a value."""

    layer: Any
    variable: Any

    @property
    def name(self) -> str:
        """For messages: its layer and which of its weights it is."""
        return f"{self.layer.name}/{self.variable.name}"


class _MisfitError(Exception):
    """Why one way of matching failed; `matched` weights had found their tensor before."""

    def __init__(self, reason: str, matched: int):
        super().__init__(reason)
        self.matched = matched


def match(model: keras.Model, tensors: Sequence[Tensor], path: Path, *, named: bool = True) -> Split:
    """The tensors for the weights of `model`, in `assign`'s order, and those left over behind them.

    `tensors` is all of a file, in the network's order. Layers are matched by name where all names are there, else by
    order. Raises InputError where a shape or kind differs or where tensors are left over before or between.
    """
    targets, misfit, found = list(_targets(model)), None, None
    try:
        found = _by_name_somewhere(model, targets, tensors) if named else None
    except _MisfitError as error:
        misfit = error
    try:
        return _split(tensors, found or _pair(targets, range(len(tensors)), tensors, 0))
    except _MisfitError as error:
        raise _refusal(model, path, misfit or error) from None


def match_unordered(model: keras.Model, tensors: Sequence[Tensor], path: Path) -> Split:
    """As `match`, for a file that knows a layer by its class and rank only (`.weights.h5`), at any depth in it."""
    places = {id(layer): place for place, layer in store_paths(model.layers)}
    targets = list(_targets(model))
    ours = [places[id(target.layer)] for target in targets]
    theirs = [tensor.layer for tensor in tensors]
    misfits = [_MisfitError("it holds no weights", 0)]
    for root in _roots(theirs):
        names = [root + place for place in ours]
        try:
            found = _by_name(targets, names, tensors, theirs)
        except _MisfitError as error:
            misfits.append(error)
            continue
        left = [tensor for i, tensor in enumerate(tensors) if i not in set(found)]
        # A later rank of a class that the network has comes after it; of other classes the file does not say.
        classes = {_class(name) for name in names}
        strange = [
            t for t in left if _class(t.layer) not in classes and NOT_A_HEAD.match(_class(t.layer).split("/")[-1])
        ]
        if not strange:
            return [tensors[i] for i in found], left
        misfits.append(_MisfitError(f"left over are {_some(strange)}, and they are no head", len(targets)))
    raise _refusal(model, path, max(misfits, key=lambda error: error.matched))


def _roots(places: Sequence[str]) -> list[str]:
    """What stands before `layers/` in the file: the model itself, and every model inside one."""
    return sorted({place[: at.start()] for place in places for at in re.finditer(r"\blayers/", place)}, key=len)


def _class(place: str) -> str:
    return re.sub(r"_\d+$", "", place)


def assign(model: keras.Model, found: Sequence[Tensor], path: Path) -> None:
    """Sets all weights of `model`, once all are read and found to be numbers; raises InputError before it sets any."""
    values = []
    for tensor in found:
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
    """Automatic names by rank: conv2d_17, conv2d_18 depend on what was built before, conv2d#0, conv2d#1 do not."""
    ranks: dict[str, dict[str, str]] = {stem: {} for stem in stems}
    stable = []
    for name in names:
        stem = re.sub(r"_\d+$", "", name)
        rank = ranks.get(stem)
        stable.append(name if rank is None else rank.setdefault(name, f"{stem}#{len(rank)}"))
    return stable


def _by_name_somewhere(model: keras.Model, targets: Sequence[Target], tensors: Sequence[Tensor]) -> list[int] | None:
    """As `_by_name` in the model of the file, or the model inside it, that has all our names; None if none has.

    One model at a time: ranks of automatic names mean nothing across models.
    """
    stems = {stem for layer in layers_of(model) if _is_automatic(layer.name, stem := snake(type(layer).__name__))}
    ours = _stable([target.layer.name for target in targets], stems)
    misfit = None
    for scope in dict.fromkeys(tensor.scope for tensor in tensors):
        indices = [i for i, tensor in enumerate(tensors) if tensor.scope == scope]
        inside = [tensors[i] for i in indices]
        theirs = _stable([tensor.layer for tensor in inside], stems)
        if set(ours) <= set(theirs):
            try:
                return [indices[i] for i in _by_name(targets, ours, inside, theirs)]
            except _MisfitError as error:
                misfit = misfit or error
    if misfit:
        raise misfit
    return None


def _by_name(
    targets: Sequence[Target], ours: Sequence[str], tensors: Sequence[Tensor], theirs: Sequence[str]
) -> list[int]:
    """For each target the index of its tensor, by the layers' names `ours` and `theirs`."""
    places: dict[str, list[int]] = {}
    for i, name in enumerate(theirs):
        places.setdefault(name, []).append(i)
    found: list[int] = []
    for name in dict.fromkeys(ours):
        wanted = [target for target, own in zip(targets, ours, strict=True) if own == name]
        indices = places.get(name, [])
        kinds = [kind(target.variable.name) for target in wanted]
        # Within a layer by kind where the file names kinds, else in the layer's own order.
        if len(set(kinds)) == len(kinds) and {tensors[i].kind for i in indices} == set(kinds):
            indices = sorted(indices, key=lambda i: kinds.index(tensors[i].kind))
        found += _pair(wanted, indices, tensors, len(found))
        if len(indices) > len(wanted):
            extra = _some([tensors[i] for i in indices[len(wanted) :]])
            raise _MisfitError(
                f"its layer {wanted[0].layer.name} has more weights than the network's: {extra}", len(found)
            )
    return found


def _pair(targets: Sequence[Target], indices: Sequence[int], tensors: Sequence[Tensor], before: int) -> list[int]:
    """One tensor for each target, or the reason why the first that has none has none."""
    for n, target in enumerate(targets):
        want, shape = kind(target.variable.name), tuple(target.variable.shape)
        if n == len(indices):
            raise _MisfitError(f"it holds nothing for {target.name} {shape}", before + n)
        tensor = tensors[indices[n]]
        if tensor.shape != shape or (want != tensor.kind and {want, tensor.kind} <= KINDS):
            left = len(tensors) - before - n
            reason = f"its {tensor.name} {tensor.shape} stands where {target.name} {shape} belongs, {left} left over"
            raise _MisfitError(reason, before + n)
    return list(indices[: len(targets)])


def _split(tensors: Sequence[Tensor], found: list[int]) -> Split:
    """Found and left over, or a misfit where what is left over does not come last."""
    used, last = set(found), max(found, default=-1)
    left = [tensor for i, tensor in enumerate(tensors) if i not in used]
    early = [tensor for i, tensor in enumerate(tensors) if i not in used and i < last]
    if early:
        raise _MisfitError(f"left over are {_some(early)}, which come before its end and are no head", len(found))
    return [tensors[i] for i in found], left


def _some(tensors: Sequence[Tensor]) -> str:
    names = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in tensors[:4])
    return f"{names} and {len(tensors) - 4} more" if len(tensors) > 4 else names


def _refusal(model: keras.Model, path: Path, misfit: _MisfitError) -> InputError:
    return InputError(f"{path} does not fit {model.name}: {misfit}. Give weights of this very network")
