"""Logistic regression: softmax of an affine map of the pixels."""
