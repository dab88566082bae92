"""Figures, drawn from saved files only and never from inside training."""
