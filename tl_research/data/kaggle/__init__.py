"""Download data sets from Kaggle and unpack archives safely."""

from tl_research.targets import old_names

__getattr__ = old_names(__name__)
