"""Build networks of our own, with the call signature of `keras.applications`."""
