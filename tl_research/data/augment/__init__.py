"""Augment images at random, as a pure function of the image and a draw's key."""

from tl_research.targets import old_names

__getattr__ = old_names(__name__)
