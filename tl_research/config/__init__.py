"""The only package that knows Hydra. Arguments come in, a validated `Experiment` goes out; no `cfg` travels further."""

from tl_research.config.entry import compose, main

__all__ = ["compose", "main"]
