"""One experiment from configuration to metrics."""
