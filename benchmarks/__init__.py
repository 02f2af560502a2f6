"""Measurements: python -m benchmarks NAME. They print the tables of docs/benchmarks.md."""
