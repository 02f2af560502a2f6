"""Neural networks: backbones, heads, their weights, and the blocks found in a network's graph."""
