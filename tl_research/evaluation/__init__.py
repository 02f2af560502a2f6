"""Metrics and predictions of a trained classifier."""
