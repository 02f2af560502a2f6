"""One experiment from configuration to metrics."""

from tl_research.targets import old_names

__getattr__ = old_names(__name__)
