"""msgd: MNIST from download to report, by patience-controlled minibatch SGD in Numba kernels.

The rooms, in the order data passes through them:

- ``data``: download, safe unpickling, the six arrays
- ``kernels``: formulas and reductions that models share, for CPU and CUDA
- ``models``: one room per model: ``model.py``, ``reference.py``, ``cpu.py``, ``cuda.py``
- ``training``: the loop, the patience rule, snapshots, states to go on from
- ``evaluation``: test scores, selection and model card, published tables
- ``plots``: figures from saved files
- ``cli``: the ``msgd`` program, one subcommand per Snakemake rule

Legend of the dimension letters used in every shape of this package:

- ``N`` examples of a split, ``B`` examples of a minibatch
- ``D`` pixels of an image (height x width), ``C`` classes
- CPU kernels: ``W`` columns of a row of classes, whole vectors; ``P`` patches of an image; ``M``
  minibatches; ``E`` nonzero pixels or patches of all images; ``R`` pixels or patches lit in a
  minibatch, summed over minibatches
"""

import contextlib

__version__ = "0.1.0"

# numba-cuda puts itself in the place of Numba's own old module numba.cuda by a .pth file, which
# Python does not run in folders on PYTHONPATH. It holds no more than this import, which must come
# before the first one of numba.cuda; msgd.kernels.cuda tells where it did not.
with contextlib.suppress(ImportError):
    import _numba_cuda_redirector  # noqa: F401
