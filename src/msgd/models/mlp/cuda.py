"""Multilayer perceptron on CUDA: the kernels of ``cuda_plain.py``, for all sizes."""

from msgd.models.mlp.cuda_plain import Backend

__all__ = ["Backend"]
