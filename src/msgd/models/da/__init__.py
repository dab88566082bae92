"""Denoising auto-encoder: hidden units from which corrupted images are reconstructed."""
