"""Evaluation: test scores, selection on validation errors, the model card, tables."""
