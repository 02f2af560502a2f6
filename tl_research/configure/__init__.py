"""The only package that knows Hydra. Arguments come in, a validated `Experiment` goes out; no `cfg` travels further."""

from tl_research.configure.composition import build, compose
from tl_research.configure.door import main

__all__ = ["build", "compose", "main"]
