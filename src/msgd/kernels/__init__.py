"""What the models' kernels share.

- ``options``: every Numba option, and where compiled kernels are cached
- ``formulas``: scalar and row formulas, plain Python, written once for both targets
- ``cpu``, ``cuda``: those formulas compiled for their target, with what only that target needs

The twins of a model (``models/<model>/cpu.py`` and ``cuda.py``) hold loops over these.
"""
