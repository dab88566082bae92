"""How many numbers the parameters of a model are, by its sizes alone, before any memory is taken.

Settings may come from a stranger's file, or hold a slip of the pen: a network of a billion units is
made nowhere.
"""

import itertools
import math
import os
import resource
from pathlib import Path

import numpy as np

from msgd.config import expand_grid, raise_findings, split_size_findings
from msgd.errors import UserError
from msgd.models import UNSUPERVISED, load_model

# In a training: drawn as float64, rounded, held by the backend, and kept at its best.
COPIES = 4
HARMLESS = 10**7  # parameters that may be made for a comparison


def n_parameters(settings, image_shape, n_classes):
    """Return how many numbers the parameters are of a model with completed ``settings``.

    image_shape: height and width; n_classes: C. The one layer of a model without labels is tied; a
    model that is none of those here is taken for dense layers. Raises UserError if the model cannot
    have images of that size.
    """
    n_features, units = math.prod(image_shape), settings.get("n_hidden", [])
    layers = units if isinstance(units, list) else [units]
    if settings["model"] in UNSUPERVISED and not isinstance(units, list):
        return (n_features + 1) * units + n_features
    if settings["model"] != "lenet":
        return _dense([n_features, *layers, n_classes])
    lenet = load_model("lenet")
    shapes = lenet.conv_shapes(image_shape, settings)
    filters = sum(s.out_maps * (s.in_maps * s.filter_size**2 + 1) for s in shapes)
    return filters + _dense(lenet.dense_sizes(shapes, settings, n_classes))


def _dense(sizes):
    """Return the number of weights and biases between layers of ``sizes`` units."""
    return sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(sizes))


def check_sizes(experiments, sizes):
    """Raise UserError if an experiment cannot work with data of these ``sizes``.

    experiments: dict of name -> completed settings; sizes: what data.unpickle.known_sizes returns;
    None, where a training is the first to know, passes.
    """
    if sizes is None:
        return
    findings = dict.fromkeys(split_size_findings(experiments, sizes.n_train))
    for name, settings in experiments.items():
        for run in expand_grid(settings).values():
            try:
                n_parameters(run, sizes.image_shape, n_classes=2)
            except UserError as error:
                findings[f"experiments.{name}.{error}; or leave {name} out"] = None
    raise_findings([*findings], "configuration")


def check_held(arrays, settings, dataset, fault):
    """Raise UserError, which begins with ``fault``, if ``arrays`` are far too few for a model.

    arrays: dict of name -> array; dataset: what has image_shape and n_classes. Before the arrays
    that the settings speak of are made to be compared with these.
    """
    held = sum(array.size for array in arrays.values())
    needed = n_parameters(settings, dataset.image_shape, dataset.n_classes)
    if needed > max(held, HARMLESS):
        raise UserError(f"{fault}: it holds {held:,} numbers, and the model has {needed:,}")


def check_memory(settings, dataset, float_x):
    """Raise UserError if a training of ``settings`` on ``dataset`` would not fit into the memory.

    float_x: "float32" or "float64".
    """
    n = n_parameters(settings, dataset.image_shape, dataset.n_classes)
    needed, present = n * COPIES * np.dtype(float_x).itemsize, memory()
    if needed > present:
        raise UserError(
            f"a {settings['model']} of these layers has {n:,} parameters, whose training takes "
            f"{needed / 2**30:,.1f} GiB; there are {present / 2**30:,.1f} GiB of memory"
        )


def memory():
    """Return the bytes of memory that this process may have at most."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min([machine, *([limit] if limit != resource.RLIM_INFINITY else []), *_control_group()])


def _control_group():
    """Return the limit of a container's memory, in a list, where there is one."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return []
    return [int(text)] if text.isdecimal() else []
