"""Jobs of a sweep: processes, live table, search."""
