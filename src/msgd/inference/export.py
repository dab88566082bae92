"""A model file as an ONNX graph: what ``msgd export --onnx`` writes.

Input ``images``, (N, height, width), the pixels as the data set stores them: bytes, or floatX.
Outputs, named as by the converters of scikit-learn: ``label`` (N,) int64, and ``probabilities``
(N, C) float32. In between the graph computes in the model's floatX, layer by layer as the formulas
of its ``model.py`` say.
"""

import json
import logging

import numpy as np

from msgd import __version__
from msgd.errors import RESULT, UserError
from msgd.files import atomic_path

log = logging.getLogger(__name__)

OPSET = 17  # of operators, and
IR_VERSION = 8  # of the format: old ones, which programs of 2022 read


def write_onnx(model, path):
    """Write ``model`` (ModelFile) as the ONNX file ``path``; equal models give equal bytes.

    Raises UserError without the package onnx, and for a model that has no form in GRAPHS.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise UserError(
            "the package onnx is missing: pip install -c constraints.txt -e '.[onnx]' installs it"
        ) from error
    proto = build_onnx(model)
    onnx.checker.check_model(proto)
    with atomic_path(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
    shape = " x ".join(map(str, model.image_shape))
    log.log(RESULT, "%s takes images of %s pixels, %s", path, shape, model.pixel_type)


def build_onnx(model):
    """Return the onnx.ModelProto of ``model``, a ModelFile."""
    from onnx import TensorProto, helper, numpy_helper

    if model.model not in GRAPHS:
        raise UserError(f"{model.model} has no ONNX form in msgd.inference.export")
    graph = Graph(model.float_x)
    scores = GRAPHS[model.model](graph, _pixels(graph, model), model)
    label = graph.add("ArgMax", scores, axis=1, keepdims=0)  # the first of equal ones
    graph.rename(label, "label")
    probabilities = graph.add("Softmax", scores, axis=1)
    graph.rename(graph.add("Cast", probabilities, to=TensorProto.FLOAT), "probabilities")
    pixels = helper.np_dtype_to_tensor_dtype(model.pixel_type)
    tensor = helper.make_tensor_value_info
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node(*words, **attributes) for words, attributes in graph.nodes],
            model.model,
            [tensor("images", pixels, ["N", *model.image_shape])],
            [
                tensor("label", TensorProto.INT64, ["N"]),
                tensor("probabilities", TensorProto.FLOAT, ["N", model.n_classes]),
            ],
            [numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="msgd",
        producer_version=__version__,
    )
    origin = {"settings": model.settings, "origin": model.origin}
    helper.set_model_props(proto, {key: json.dumps(value) for key, value in origin.items()})
    return proto


class Graph:
    """Nodes and constants of an ONNX graph in the making; ``float_x``: type of its numbers.

    nodes: [[operator, inputs, outputs], attributes] each; constants: dict of name -> array.
    """

    def __init__(self, float_x):
        self.float_x = float_x
        self.nodes = []
        self.constants = {}

    def add(self, operator, *inputs, **attributes):
        """Add a node; return the name of its output. inputs: names, or arrays for constants."""
        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        output = f"{operator}_{len(self.nodes)}"
        self.nodes.append([[operator, names, [output]], attributes])
        return output

    def constant(self, array):
        """Add a constant; return its name."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def rename(self, output, name):
        """Give the ``output`` of the last node another name."""
        assert self.nodes[-1][0][2] == [output]
        self.nodes[-1][0][2] = [name]


def _pixels(graph, model):
    """Return the name of the images (N, height, width) as the first layer takes them, in floatX."""
    from onnx import helper

    pixels = "images"
    if model.pixel_type != np.dtype(graph.float_x):
        to = helper.np_dtype_to_tensor_dtype(np.dtype(graph.float_x))
        pixels = graph.add("Cast", pixels, to=to)
    if model.pixels["scale"] != 1:
        pixels = graph.add("Mul", pixels, graph.float_x(model.pixels["scale"]).reshape(()))
    return pixels


def _layers(model):
    """Return [(weights, bias), ...] of ``model`` in the order of its layers."""
    arrays = [*model.parameters.values()]
    return list(zip(arrays[::2], arrays[1::2], strict=True))


def _activation(model):
    # Stacks are of sigmoids, and have no such key.
    return {"tanh": "Tanh", "sigmoid": "Sigmoid"}[model.settings.get("activation", "sigmoid")]


def _affine(graph, h, weights, bias):
    return graph.add("Add", graph.add("MatMul", h, weights), bias)


def _logistic_regression(graph, images, model):
    """Return the name of the logits (N, C)."""
    ((weights, bias),) = _layers(model)
    return _affine(graph, graph.add("Flatten", images), weights, bias)


def _dense(graph, h, layers, model):
    """Return the name of the logits (N, C) of dense ``layers`` over h (N, n_in)."""
    *hidden, last = layers
    for weights, bias in hidden:
        h = graph.add(_activation(model), _affine(graph, h, weights, bias))
    return _affine(graph, h, *last)


def _mlp(graph, images, model):
    """Return the name of the logits (N, C)."""
    return _dense(graph, graph.add("Flatten", images), _layers(model), model)


def _lenet(graph, images, model):
    """Return the name of the logits (N, C)."""
    from msgd.models.lenet.model import conv_shapes

    layers, pool = _layers(model), model.settings["pool_size"]
    h = graph.add("Reshape", images, np.array([0, 1, *model.image_shape]))
    shapes = conv_shapes(model.image_shape, model.settings)
    for (weights, bias), shape in zip(layers, shapes, strict=False):
        maps = _convolution(graph, h, weights, shape)
        # Rows and columns that fill no square are left out: the default of MaxPool too.
        pooled = graph.add("MaxPool", maps, kernel_shape=[pool, pool], strides=[pool, pool])
        h = graph.add(_activation(model), graph.add("Add", pooled, bias[:, None, None]))
    return _dense(graph, graph.add("Flatten", h), layers[len(shapes) :], model)


def _convolution(graph, h, filters, shape):
    """Return the name of the true convolution (N, M, h-f+1, w-f+1) of h (N, M_in, h, w).

    ONNX's Conv does not flip its filters, so they are flipped here. In float64 ONNX Runtime has no
    Conv: every window is gathered as a row, and multiplied with the filters.
    """
    flipped = filters[:, :, ::-1, ::-1]
    if graph.float_x == np.float32:
        return graph.add("Conv", h, flipped)
    size, height, width = shape.filter_size, shape.in_height, shape.in_width
    pixels = np.arange(shape.in_maps * height * width).reshape(-1, height, width)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (size, size), axis=(1, 2))
    out_height, out_width = windows.shape[1:3]
    n_maps = len(filters)
    rows = windows.transpose(1, 2, 0, 3, 4).reshape(out_height * out_width, -1)
    gathered = graph.add("Gather", graph.add("Flatten", h), rows, axis=1)
    maps = graph.add("MatMul", gathered, flipped.reshape(n_maps, -1).T)
    maps = graph.add("Transpose", maps, perm=[0, 2, 1])
    return graph.add("Reshape", maps, np.array([0, n_maps, out_height, out_width]))


# How the logits of each model follow from its images.
GRAPHS = {
    "logistic_regression": _logistic_regression,
    "logistic_cg": _logistic_regression,
    "mlp": _mlp,
    "lenet": _lenet,
    "sda": _mlp,
    "dbn": _mlp,
}
