"""Data sets fetched from Kaggle, and archives unpacked safely."""

from tl_research.targets import old_names

__getattr__ = old_names(__name__)
