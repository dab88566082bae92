"""What a user would pick instead: the same models in PyTorch, JAX and NumPy, as one writes them.

A competitor takes a msgd Dataset, the completed hyperparameters and msgd's initial parameters, and
offers ``train_epoch()``, one pass over the whole minibatches in order, and
``count_validation_errors()``. Each imports its library itself; float32 on the CPU throughout.
"""

import numpy as np

N_CONVOLUTIONS = {"logistic_regression": 0, "mlp": 0, "lenet": 2}


def minibatches(dataset, settings, split="train"):
    """Return the pixels (M, B, D) float32 and labels (M, B) of the whole minibatches of a split."""
    x, y = dataset.split(split)
    size = settings["batch_size"]
    n = len(x) // size * size
    pixels = x[:n].astype(np.float32) * np.float32(dataset.pixel_scale)
    return pixels.reshape(-1, size, x.shape[1]), y[:n].reshape(-1, size).astype(np.int64)


class Msgd:
    """The CPU kernels of this project."""

    def __init__(self, dataset, settings, parameters):
        from msgd.models import load_backend

        self.backend = load_backend(settings["model"], "cpu")(
            dataset, parameters, settings, np.float32
        )
        self.n_train_batches = len(dataset.train_x) // settings["batch_size"]

    def train_epoch(self):
        """Train one epoch; the parameters change in place."""
        self.backend.train(0, self.n_train_batches)

    def count_validation_errors(self):
        """Return the misclassified examples of the whole validation minibatches."""
        return self.backend.count_errors("valid")


class NumPy:
    """Matrix products of whole minibatches, as a Theano-style graph would do them one by one."""

    def __init__(self, dataset, settings, parameters):
        self.x, self.y = minibatches(dataset, settings)
        self.valid = minibatches(dataset, settings, "valid")
        self.rate = np.float32(settings["learning_rate"])
        self.l2 = np.float32(settings["l2"])
        arrays = [array.copy() for array in parameters.values()]
        self.layers = [*zip(arrays[::2], arrays[1::2], strict=True)]

    def forward(self, x):
        """Return the inputs of every layer, and the logits."""
        inputs = [x]
        for weights, bias in self.layers[:-1]:
            inputs.append(np.tanh(inputs[-1] @ weights + bias))
        weights, bias = self.layers[-1]
        return inputs, inputs[-1] @ weights + bias

    def train_epoch(self):
        """Train one epoch."""
        rows = np.arange(self.x.shape[1])
        for x, y in zip(self.x, self.y, strict=True):
            inputs, logits = self.forward(x)
            error = np.exp(logits - logits.max(axis=1, keepdims=True))
            error /= error.sum(axis=1, keepdims=True)
            error[rows, y] -= 1
            error /= np.float32(len(x))
            for number in range(len(self.layers) - 1, -1, -1):
                weights, bias = self.layers[number]
                gradient, bias_gradient = inputs[number].T @ error, error.sum(axis=0)
                if self.l2:
                    gradient += 2 * self.l2 * weights
                if number:
                    error = error @ weights.T * (1 - inputs[number] ** 2)
                weights -= self.rate * gradient
                bias -= self.rate * bias_gradient

    def count_validation_errors(self):
        """Return the misclassified examples of the whole validation minibatches."""
        return sum(
            int((self.forward(x)[1].argmax(axis=1) != y).sum())
            for x, y in zip(*self.valid, strict=True)
        )


class TorchEager:
    """A torch.nn.Sequential and torch.optim.SGD."""

    def __init__(self, dataset, settings, parameters):
        import torch
        from torch import nn

        self.torch = torch
        model, shape = settings["model"], (1, *dataset.image_shape)
        arrays = [torch.from_numpy(array.copy()) for array in parameters.values()]
        modules = [nn.Unflatten(1, shape)] if N_CONVOLUTIONS[model] else []
        for number, (weights, bias) in enumerate(zip(arrays[::2], arrays[1::2], strict=True)):
            if number < N_CONVOLUTIONS[model]:
                layer = nn.Conv2d(weights.shape[1], weights.shape[0], weights.shape[2:])
                weights = weights.flip(2, 3)  # torch correlates where the tutorial convolves
                after = [nn.MaxPool2d(settings["pool_size"]), nn.Tanh()]
                if number == N_CONVOLUTIONS[model] - 1:
                    after.append(nn.Flatten())
            else:
                layer, weights = nn.Linear(*weights.shape), weights.T
                after = [nn.Tanh()] if number < len(arrays) // 2 - 1 else []
            with torch.no_grad():
                layer.weight.copy_(weights)
                layer.bias.copy_(bias)
            modules += [layer, *after]
        self.network = nn.Sequential(*modules)
        weights = [p for p in self.network.parameters() if p.ndim > 1]
        biases = [p for p in self.network.parameters() if p.ndim == 1]
        self.optimizer = torch.optim.SGD(
            [{"params": weights, "weight_decay": 2 * settings["l2"]}, {"params": biases}],
            lr=settings["learning_rate"],
        )
        self.x, self.y = map(torch.from_numpy, minibatches(dataset, settings))
        self.valid = [*map(torch.from_numpy, minibatches(dataset, settings, "valid"))]
        self.loss = lambda x, y: nn.functional.cross_entropy(self.network(x), y)

    def train_epoch(self):
        """Train one epoch."""
        for x, y in zip(self.x, self.y, strict=True):
            self.optimizer.zero_grad()
            self.loss(x, y).backward()
            self.optimizer.step()

    def count_validation_errors(self):
        """Return the misclassified examples of the whole validation minibatches."""
        with self.torch.no_grad():
            return sum(
                int((self.network(x).argmax(1) != y).sum())
                for x, y in zip(*self.valid, strict=True)
            )


class TorchCompile(TorchEager):
    """The same, its loss compiled by torch.compile."""

    def __init__(self, dataset, settings, parameters):
        super().__init__(dataset, settings, parameters)
        self.loss = self.torch.compile(self.loss)


class Jax:
    """A jitted lax.scan over the minibatches of an epoch."""

    def __init__(self, dataset, settings, parameters):
        import jax
        import jax.numpy as jnp

        n_convolutions = N_CONVOLUTIONS[settings["model"]]
        pool, rate, l2 = settings["pool_size"] if n_convolutions else 1, *rates(settings)
        arrays = [jnp.asarray(array) for array in parameters.values()]
        arrays[: 2 * n_convolutions : 2] = [
            filters[:, :, ::-1, ::-1] for filters in arrays[: 2 * n_convolutions : 2]
        ]
        self.layers = [*zip(arrays[::2], arrays[1::2], strict=True)]
        image_shape = (-1, 1, *dataset.image_shape)

        def network(layers, x):
            h = x.reshape(image_shape) if n_convolutions else x
            for number, (weights, bias) in enumerate(layers):
                if number < n_convolutions:
                    h = jax.lax.conv_general_dilated(h, weights, (1, 1), "VALID")
                    window = (1, 1, pool, pool)
                    h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, window, window, "VALID")
                    h = jnp.tanh(h + bias[None, :, None, None])
                else:
                    h = h.reshape(len(h), -1) @ weights + bias
                    h = jnp.tanh(h) if number < len(layers) - 1 else h
            return h

        def cost(layers, x, y):
            log_p = jax.nn.log_softmax(network(layers, x))
            nll = -jnp.take_along_axis(log_p, y[:, None], 1).mean()
            return nll + l2 * sum((weights**2).sum() for weights, _ in layers)

        def step(layers, batch):
            gradients = jax.grad(cost)(layers, *batch)
            return jax.tree.map(lambda p, g: p - rate * g, layers, gradients), None

        self.epoch = jax.jit(lambda layers, x, y: jax.lax.scan(step, layers, (x, y))[0])
        self.errors = jax.jit(
            lambda layers, x, y: jax.lax.map(
                lambda batch: (network(layers, batch[0]).argmax(1) != batch[1]).sum(), (x, y)
            ).sum()
        )
        self.train = [*map(jnp.asarray, minibatches(dataset, settings))]
        self.valid = [*map(jnp.asarray, minibatches(dataset, settings, "valid"))]

    def train_epoch(self):
        """Train one epoch."""
        self.layers = self.epoch(self.layers, *self.train)
        self.layers[0][0].block_until_ready()

    def count_validation_errors(self):
        """Return the misclassified examples of the whole validation minibatches."""
        return int(self.errors(self.layers, *self.valid))


def rates(settings):
    """Return (learning rate, l2) as float32."""
    return np.float32(settings["learning_rate"]), np.float32(settings["l2"])


COMPETITORS = {
    "msgd": Msgd,
    "NumPy": NumPy,
    "PyTorch eager": TorchEager,
    "torch.compile": TorchCompile,
    "JAX jit+scan": Jax,
}
