"""Launchers and sweepers of tl_research, in the package that Hydra scans for plugins."""
