"""LeNet: convolutions with max-pooling, then a multilayer perceptron."""
