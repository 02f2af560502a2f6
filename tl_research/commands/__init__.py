"""The commands of `python -m tl_research`, one file each."""
