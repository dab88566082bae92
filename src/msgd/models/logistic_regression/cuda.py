"""Logistic regression on CUDA: the kernels of ``cuda_plain.py``, for all sizes."""

from msgd.models.logistic_regression.cuda_plain import Backend

__all__ = ["Backend"]
