"""Inference: a trained model used on pictures from elsewhere, and handed to other programs."""
