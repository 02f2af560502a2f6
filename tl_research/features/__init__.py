"""Features of images under a frozen network, computed once and kept on disk."""

from tl_research.targets import old_names

__getattr__ = old_names(__name__)
