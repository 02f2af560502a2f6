"""Hydra's room: composes a configuration, validates it, and starts what it asks for. No `cfg` travels further."""
