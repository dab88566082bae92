"""msgd: MNIST from download to report, by patience-controlled minibatch SGD in Numba kernels.

The rooms, in the order data passes through them:

- ``data``: download, safe unpickling, the six arrays
- ``kernels``: formulas and reductions that models share, for CPU and CUDA
- ``models``: one room per model: the formulas in ``model.py``, the same in plain loops in
  ``reference.py`` (read these two first), fast twins in ``cpu.py`` and ``cuda.py``, and where the
  latter's kernels cannot serve, plain ones in ``cuda_plain.py``. Beside the rooms stands what they
  share: ``interface.py`` says what a backend offers, ``reference_backend.py``, ``cpu_backend.py``
  and ``cuda_backend.py`` what those of a device do alike

  - ``logistic_regression``, ``logistic_cg``, ``mlp``, ``lenet``: classifiers
  - ``da``, ``ca``, ``rbm``: auto-encoders, denoising and contractive, and the restricted Boltzmann
    machine, which learn without labels (``unsupervised_backend.py``)
  - ``sda``, ``dbn``: stacks of these layers, which end as classifiers (``stack.py``,
    ``represent.py``)

- ``training``: the loop, the patience rule, snapshots, states to go on from
- ``evaluation``: test scores, selection and model card, published tables
- ``inference``: model files, pictures and what a model makes of them, ONNX
- ``plots``: figures from saved files
- ``report``: the page that tells of all runs
- ``sklearn``: an estimator of scikit-learn
- ``cli``: the ``msgd`` program, one subcommand per Snakemake rule

Legend of the dimension letters used in every shape of this package:

- ``N`` examples of a split, ``B`` examples of a minibatch
- ``D`` pixels of an image (height x width), ``H`` units of a hidden layer, ``C`` classes
- CPU kernels: ``L`` lanes that hold the classes, whole vectors; ``E`` nonzero pixels or patches of
  all images. In networks ``L`` is the number of layers
"""

import contextlib

__version__ = "0.1.0"

# numba-cuda puts itself in the place of Numba's own old module numba.cuda by a .pth file, which
# Python does not run in folders on PYTHONPATH. It holds no more than this import, which must come
# before the first one of numba.cuda; msgd.kernels.cuda says where it did not.
with contextlib.suppress(ImportError):
    import _numba_cuda_redirector  # noqa: F401
