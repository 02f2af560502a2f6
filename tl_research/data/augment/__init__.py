"""Random image changes, each a pure function of the image and the draw's key."""

from tl_research.targets import old_names

__getattr__ = old_names(__name__)
