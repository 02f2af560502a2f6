"""Compute classification metrics and probabilities from logits."""

from tl_research.targets import old_names

__getattr__ = old_names(__name__)
