"""Contractive auto-encoder: reconstruction by hidden units that small changes move little."""
