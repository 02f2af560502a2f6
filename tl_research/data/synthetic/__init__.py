"""Pictures drawn by this package, so that a first run needs no network."""
