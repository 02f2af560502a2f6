"""Measurements: python -m benchmarks NAME. What README claims, these print."""
