"""Stages and the loop that trains them."""
