"""One run's directory: recording, status, checkpoints, identity, reading back."""
