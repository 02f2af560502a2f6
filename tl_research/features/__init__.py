"""Features of images under a frozen network, computed once and kept on disk."""
