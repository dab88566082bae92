"""Evaluation: test scores, selection on validation errors, tables, the published rows."""
