"""Measures of answers: classification metrics and probabilities."""
