"""MNIST's way in: download, safe reading, checks, six memory-mapped arrays."""
