"""Suggest valid names for a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near(name: str, candidates: Iterable[str], group: str | None = None) -> str:
    """Name the candidates nearest to `name`, and all of them if they are few or the options of a group."""
    candidates = sorted(set(candidates))
    leaf = name.rpartition(".")[2]
    same_leaf = [c for c in candidates if c.rpartition(".")[2] == leaf]
    by_leaf = {c.rpartition(".")[2]: c for c in candidates}
    close = difflib.get_close_matches(name, candidates, 3, 0.7)
    close_leaf = [by_leaf[match] for match in difflib.get_close_matches(leaf, list(by_leaf), 2, 0.7)]
    best = list(dict.fromkeys([*same_leaf, *close, *close_leaf]))[:3]
    shown = [f"{group}={c}" for c in best] if group else best
    everything = ", ".join(candidates) if group or len(candidates) <= 20 else ""
    nearest = f"nearest: {', '.join(shown)}" if shown else ""
    return "; ".join(part for part in (nearest, everything and f"there are {everything}") if part) or "nothing is near"
