"""Build neural networks: backbones, heads, their weights, and the blocks of a backbone's graph."""
