"""Turn image files into checked, split and streamed examples."""
