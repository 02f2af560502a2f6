"""Random image changes, each a pure function of the image and the draw's key."""
