"""From image files to checked, split, streamed examples."""
