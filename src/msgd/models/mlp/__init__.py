"""Multilayer perceptron: hidden layers between the pixels and a softmax."""
