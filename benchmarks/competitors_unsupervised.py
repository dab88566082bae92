"""The models without labels in PyTorch, JAX and NumPy: what a user would pick instead.

A competitor takes a msgd Dataset, the completed hyperparameters of the model ``da`` or ``rbm``, and
msgd's initial parameters; ``train(n)`` trains the next n minibatches and returns a cost of each
before its step, a list of floats. n divides the minibatches of an epoch. The formulas and their
letters are those of the models' model.py. Each imports its library itself; float32 on the CPU
throughout.

A denoising auto-encoder is given the masks that msgd draws, as floats made ahead: those of the
first epoch, which serve in every one. msgd draws them while it trains. A Boltzmann machine draws
its samples from its library's own generator.
"""

import numpy as np
from competitors import minibatches
from scipy.special import expit


def masks_of_an_epoch(dataset, settings):
    """Return the masks of msgd's first epoch, (M, B, D) float32 of zeros and ones."""
    from msgd.kernels.uniform import fill_mask, new_position
    from msgd.models.da.model import mask_draws

    size = settings["batch_size"]
    n_batches, n_features = len(dataset.train_x) // size, dataset.n_features
    masks = np.empty((n_batches, size, n_features), np.float32)
    position = new_position(mask_draws(n_features, settings))
    for mask in masks:
        fill_mask(position, np.float32(1 - settings["corruption"]), mask)
    return masks


class Msgd:
    """The CPU kernels of this project, in the model's first stage."""

    def __init__(self, dataset, settings, parameters):
        from msgd.models import load_backend, load_stages

        self.backend = load_backend(settings["model"], "cpu")(
            dataset, parameters, settings, np.float32
        )
        self.backend.begin(load_stages(settings)[0])
        self.n_done = 0

    def train(self, n):
        """Train the next ``n`` minibatches."""
        costs = self.backend.train(self.n_done, self.n_done + n)
        self.n_done += n
        return costs.tolist()


class Autoencoder:
    """The images and masks of a denoising auto-encoder, minibatch by minibatch; its rate."""

    def __init__(self, dataset, settings, parameters):
        self.examples = [minibatches(dataset, settings)[0], masks_of_an_epoch(dataset, settings)]
        self.rate, self.n_done = settings["learning_rate"], 0
        self.parameters = [array.copy() for array in parameters.values()]

    def following(self, n):
        """Return the next ``n`` minibatches of each of the examples."""
        start = self.n_done % len(self.examples[0])
        self.n_done += n
        return [array[start : start + n] for array in self.examples]


class Machine(Autoencoder):
    """The images of a Boltzmann machine and, of each minibatch, which pixel is flipped."""

    def __init__(self, dataset, settings, parameters):
        self.examples = [minibatches(dataset, settings)[0]]
        self.rate, self.n_done = settings["learning_rate"] / settings["batch_size"], 0
        self.parameters = [array.copy() for array in parameters.values()]
        self.is_persistent, self.n_steps = settings["persistent"], settings["gibbs_steps"]
        self.chain = np.zeros((settings["batch_size"], settings["n_hidden"]), np.float32)

    def following(self, n):
        """Return the next ``n`` minibatches, and the number j of each one's flipped pixel."""
        flipped = np.arange(self.n_done, self.n_done + n) % self.examples[0].shape[2]
        return *super().following(n), flipped


class NumPyAutoencoder(Autoencoder):
    """Matrix products of whole minibatches."""

    def train(self, n):
        """Train the next ``n`` minibatches."""
        weights, hidden_bias, visible_bias = self.parameters
        costs = []
        for x, mask in zip(*self.following(n), strict=True):
            corrupted = mask * x
            y = expit(corrupted @ weights + hidden_bias)
            a = y @ weights.T + visible_bias
            costs.append(cross_entropy(np, a, x))
            d = (expit(a) - x) / np.float32(len(x))
            e = (d @ weights) * y * (1 - y)
            gradient = corrupted.T @ e
            gradient += d.T @ y
            gradient *= self.rate
            weights -= gradient
            hidden_bias -= self.rate * e.sum(axis=0)
            visible_bias -= self.rate * d.sum(axis=0)
        return [float(cost) for cost in costs]


class NumPyMachine(Machine):
    """Matrix products of whole minibatches, and samples of numpy.random.default_rng."""

    def train(self, n):
        """Train the next ``n`` minibatches."""
        self.random = np.random.default_rng(self.n_done)
        return [float(self.step(x, j)) for x, j in zip(*self.following(n), strict=True)]

    def step(self, x, j):
        """Train a minibatch; return its cost."""
        weights, hidden_bias, visible_bias = self.parameters
        positive = expit(x @ weights + hidden_bias)
        h = self.chain if self.is_persistent else self.draw(positive)
        if self.is_persistent:
            cost = log_pseudo_likelihood(np, x, j, self.parameters)
        for step in range(self.n_steps):
            a = h @ weights.T + visible_bias
            v = self.draw(expit(a))
            negative = expit(v @ weights + hidden_bias)
            if self.is_persistent or step < self.n_steps - 1:
                h = self.draw(negative)
        if not self.is_persistent:
            cost = -cross_entropy(np, a, x)
        self.chain = h
        gradient = x.T @ positive
        gradient -= v.T @ negative
        gradient *= self.rate
        weights += gradient
        hidden_bias += self.rate * (positive - negative).sum(axis=0)
        visible_bias += self.rate * (x - v).sum(axis=0)
        return cost

    def draw(self, means):
        """Return zeros and ones with these probabilities of ones."""
        return (self.random.random(means.shape, np.float32) < means).astype(np.float32)


def cross_entropy(numpy, a, x):
    """Return the mean over the images of their cross-entropy; numpy: NumPy or jax.numpy."""
    lost = numpy.maximum(a, 0) - x * a + numpy.log1p(numpy.exp(-numpy.abs(a)))
    return lost.sum() / len(x)


def log_pseudo_likelihood(numpy, x, j, parameters):
    """Return the published proxy, with pixel ``j`` flipped; numpy: NumPy or jax.numpy."""
    weights, hidden_bias, visible_bias = parameters
    r = (x > 0.5).astype(numpy.float32)
    change = 1 - 2 * r[:, j]
    a = r @ weights + hidden_bias
    flipped = a + change[:, None] * weights[j]
    energy = (numpy.logaddexp(flipped, 0) - numpy.logaddexp(a, 0)).sum(axis=1)
    energy += change * visible_bias[j]
    return -x.shape[1] * numpy.logaddexp(energy, 0).mean()


class TorchAutoencoder(Autoencoder):
    """Autograd and torch.optim.SGD."""

    def __init__(self, dataset, settings, parameters):
        import torch

        super().__init__(dataset, settings, parameters)
        self.examples = [*map(torch.from_numpy, self.examples)]
        self.parameters = [torch.from_numpy(p).requires_grad_() for p in self.parameters]
        self.optimizer = torch.optim.SGD(self.parameters, lr=self.rate)
        entropy = torch.nn.functional.binary_cross_entropy_with_logits

        def loss(x, mask):
            weights, hidden_bias, visible_bias = self.parameters
            y = torch.sigmoid((mask * x) @ weights + hidden_bias)
            a = y @ weights.T + visible_bias
            return entropy(a, x, reduction="sum") / len(x)

        self.loss = loss

    def train(self, n):
        """Train the next ``n`` minibatches."""
        costs = []
        for x, mask in zip(*self.following(n), strict=True):
            self.optimizer.zero_grad()
            cost = self.loss(x, mask)
            cost.backward()
            self.optimizer.step()
            costs.append(cost.detach())
        return [cost.item() for cost in costs]


class TorchCompiledAutoencoder(TorchAutoencoder):
    """The same, its loss compiled by torch.compile."""

    def __init__(self, dataset, settings, parameters):
        import torch

        super().__init__(dataset, settings, parameters)
        self.loss = torch.compile(self.loss)


class TorchMachine(Machine):
    """The gradient by its formula, added to the parameters in place."""

    def __init__(self, dataset, settings, parameters):
        import torch

        super().__init__(dataset, settings, parameters)
        torch.manual_seed(0)
        self.torch, self.step = torch, self.train_minibatch
        self.examples = [*map(torch.from_numpy, self.examples)]
        self.parameters = [*map(torch.from_numpy, self.parameters)]
        self.chain = torch.from_numpy(self.chain)

    def train(self, n):
        """Train the next ``n`` minibatches."""
        costs, (images, flipped) = [], self.following(n)
        for x, j in zip(images, self.torch.from_numpy(flipped)[:, None], strict=True):
            with self.torch.no_grad():
                self.chain, cost = self.step(x, j, self.chain)
            costs.append(cost)
        return [cost.item() for cost in costs]

    def train_minibatch(self, x, j, chain):
        """Train a minibatch; return the chain after it and its cost."""
        torch, (weights, hidden_bias, visible_bias) = self.torch, self.parameters
        positive = torch.sigmoid(x @ weights + hidden_bias)
        h = chain if self.is_persistent else self.draw(positive)
        if self.is_persistent:
            cost = self.log_pseudo_likelihood(x, j)
        for step in range(self.n_steps):
            a = h @ weights.T + visible_bias
            v = self.draw(torch.sigmoid(a))
            negative = torch.sigmoid(v @ weights + hidden_bias)
            if self.is_persistent or step < self.n_steps - 1:
                h = self.draw(negative)
        if not self.is_persistent:
            entropy = torch.nn.functional.binary_cross_entropy_with_logits
            cost = -entropy(a, x, reduction="sum") / len(x)
        weights.addmm_(x.T, positive, alpha=self.rate)
        weights.addmm_(v.T, negative, alpha=-self.rate)
        hidden_bias.add_((positive - negative).sum(0), alpha=self.rate)
        visible_bias.add_((x - v).sum(0), alpha=self.rate)
        return h, cost

    def draw(self, means):
        """Return zeros and ones with these probabilities of ones."""
        return (self.torch.rand_like(means) < means).float()

    def log_pseudo_likelihood(self, x, j):
        """Return the published proxy, with pixel ``j`` flipped; j: (1,), for torch.compile."""
        softplus = self.torch.nn.functional.softplus
        weights, hidden_bias, visible_bias = self.parameters
        r = (x > 0.5).float()
        change = 1 - 2 * r[:, j]
        a = r @ weights + hidden_bias
        flipped = a + change * weights[j]
        energy = (softplus(flipped) - softplus(a)).sum(1, keepdim=True)
        return -x.shape[1] * softplus(energy + change * visible_bias[j]).mean()


class TorchCompiledMachine(TorchMachine):
    """The same, a minibatch compiled by torch.compile."""

    def __init__(self, dataset, settings, parameters):
        super().__init__(dataset, settings, parameters)
        self.step = self.torch.compile(self.step)


class JaxAutoencoder(Autoencoder):
    """A jitted lax.scan over the minibatches of a call."""

    def __init__(self, dataset, settings, parameters):
        import jax
        import jax.numpy as jnp

        super().__init__(dataset, settings, parameters)
        self.examples = [*map(jnp.asarray, self.examples)]
        self.parameters, rate = [*map(jnp.asarray, self.parameters)], self.rate

        def loss(parameters, x, mask):
            weights, hidden_bias, visible_bias = parameters
            y = jax.nn.sigmoid((mask * x) @ weights + hidden_bias)
            return cross_entropy(jnp, y @ weights.T + visible_bias, x)

        def step(parameters, example):
            cost, gradients = jax.value_and_grad(loss)(parameters, *example)
            return jax.tree.map(lambda p, g: p - rate * g, parameters, gradients), cost

        self.scan = jax.jit(lambda parameters, *examples: jax.lax.scan(step, parameters, examples))

    def train(self, n):
        """Train the next ``n`` minibatches."""
        self.parameters, costs = self.scan(self.parameters, *self.following(n))
        return costs.tolist()


class JaxMachine(Machine):
    """A jitted lax.scan over the minibatches of a call, and samples of jax.random."""

    def __init__(self, dataset, settings, parameters):
        import jax
        import jax.numpy as jnp

        super().__init__(dataset, settings, parameters)
        self.examples = [*map(jnp.asarray, self.examples)]
        parameters = [*map(jnp.asarray, self.parameters)]
        self.state = parameters, jnp.asarray(self.chain), jax.random.key(0)
        sigmoid = jax.nn.sigmoid

        def draw(key, means):
            return (jax.random.uniform(key, means.shape) < means).astype(jnp.float32)

        def step(state, example):
            parameters, chain, key = state
            weights, hidden_bias, visible_bias = parameters
            x, j = example
            key, first, *keys = jax.random.split(key, 2 + 2 * self.n_steps)
            positive = sigmoid(x @ weights + hidden_bias)
            h = chain if self.is_persistent else draw(first, positive)
            if self.is_persistent:
                cost = log_pseudo_likelihood(jnp, x, j, parameters)
            for number in range(self.n_steps):
                a = h @ weights.T + visible_bias
                v = draw(keys[2 * number], sigmoid(a))
                negative = sigmoid(v @ weights + hidden_bias)
                if self.is_persistent or number < self.n_steps - 1:
                    h = draw(keys[2 * number + 1], negative)
            if not self.is_persistent:
                cost = -cross_entropy(jnp, a, x)
            parameters = [
                weights + self.rate * (x.T @ positive - v.T @ negative),
                hidden_bias + self.rate * (positive - negative).sum(0),
                visible_bias + self.rate * (x - v).sum(0),
            ]
            return (parameters, h, key), cost

        self.scan = jax.jit(lambda state, *examples: jax.lax.scan(step, state, examples))

    def train(self, n):
        """Train the next ``n`` minibatches."""
        self.state, costs = self.scan(self.state, *self.following(n))
        return costs.tolist()


COMPETITORS = {
    "NumPy": {"da": NumPyAutoencoder, "rbm": NumPyMachine},
    "PyTorch eager": {"da": TorchAutoencoder, "rbm": TorchMachine},
    "torch.compile": {"da": TorchCompiledAutoencoder, "rbm": TorchCompiledMachine},
    "JAX jit+scan": {"da": JaxAutoencoder, "rbm": JaxMachine},
}


def make(name, dataset, settings, parameters):
    """Return the competitor of library ``name`` for a model's first stage.

    msgd is given the model as it is. The others are given the first layer of a stack as a model of
    its own.
    """
    from msgd.models import load_model

    model = load_model(settings["model"])
    if name == "msgd":
        return Msgd(dataset, settings, parameters)
    if hasattr(model, "layer_settings"):
        settings = model.layer_settings(settings, 1)
        weights, hidden_bias, *_ = parameters.values()
        visible_bias = np.zeros(dataset.n_features, np.float32)
        parameters = {"weights": weights, "hidden_bias": hidden_bias, "visible_bias": visible_bias}
    return COMPETITORS[name][settings["model"]](dataset, settings, parameters)
