"""Launcher and sweeper of tl_research, where Hydra looks for such."""
