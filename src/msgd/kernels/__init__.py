"""What the models' kernels share.

- ``options``: every Numba option, and where compiled kernels are cached
- ``formulas``: scalar and row formulas, plain Python, written once for both targets
- ``cpu``, ``cuda``: those formulas compiled for their target, with what only that target needs
- ``mrg31k3p``, ``uniform``, ``cuda_uniform``: random numbers as Theano had them, any part
  of an array by itself
- ``reference``: those of the CPU over whole arrays, in plain loops

A model's room holds the loops over these: ``reference.py`` plain ones, ``cpu.py`` and ``cuda.py``
fast ones.
"""
