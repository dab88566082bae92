"""Logistic regression fitted by conjugate gradients instead of minibatch SGD."""
