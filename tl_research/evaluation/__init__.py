"""Metrics and predictions of a trained classifier."""

from tl_research.targets import old_names

__getattr__ = old_names(__name__)
