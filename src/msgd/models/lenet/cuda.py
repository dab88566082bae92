"""LeNet on CUDA: the kernels of ``cuda_plain.py``, for all sizes."""

from msgd.models.lenet.cuda_plain import Backend

__all__ = ["Backend"]
