"""Stacked denoising auto-encoders, fine-tuned as a classifier."""
