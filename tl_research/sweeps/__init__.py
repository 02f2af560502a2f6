"""Run the jobs of a sweep: process pool, live table, search."""
