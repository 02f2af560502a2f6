"""Measures of answers: classification metrics and probabilities."""

from tl_research.targets import old_names

__getattr__ = old_names(__name__)
