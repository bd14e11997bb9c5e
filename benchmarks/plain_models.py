"""The four models as plain JAX functions of the parameters that every side starts from, and what they cost.

Only jax: also FedJAX, with the jax of its time, uses them. Parameters are flat dicts from the names that flax gives
("Dense_0/kernel") to arrays; images are floats, [batch, height, width] or [batch, height, width, channels].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]
Apply = Callable[[Params, jax.Array], jax.Array]  # (params, images) -> logits [batch, 10]


def softmax_regression(params: Params, images: jax.Array) -> jax.Array:
    return _dense(params, 0, _flat(images))


def perceptron(params: Params, images: jax.Array) -> jax.Array:
    x = jax.nn.relu(_dense(params, 0, _flat(images)))
    x = jax.nn.relu(_dense(params, 1, x))
    return _dense(params, 2, x)


def mnist_cnn(params: Params, images: jax.Array) -> jax.Array:
    """The network of McMahan et al. 2017."""
    x = jax.nn.relu(max_pool(_convolution(params, 0, images[..., None], padding=2)))
    x = jax.nn.relu(max_pool(_convolution(params, 1, x, padding=2)))
    x = jax.nn.relu(_dense(params, 0, _flat(x)))
    return _dense(params, 1, x)


def cifar_cnn(params: Params, images: jax.Array) -> jax.Array:
    """The network of pfl-research's CIFAR-10 benchmark, without dropout."""
    x = jax.nn.relu(_convolution(params, 0, images, padding=0))
    x = jax.nn.relu(max_pool(_convolution(params, 1, x, padding=0)))
    x = jax.nn.relu(_dense(params, 0, _flat(x)))
    return _dense(params, 1, x)


MODELS = {
    "softmax_regression": softmax_regression,
    "perceptron": perceptron,
    "mnist_cnn": mnist_cnn,
    "cifar_cnn": cifar_cnn,
}

SHAPES = {
    "softmax_regression": {"Dense_0": (784, 10)},
    "perceptron": {"Dense_0": (784, 200), "Dense_1": (200, 200), "Dense_2": (200, 10)},
    "mnist_cnn": {"Conv_0": (5, 5, 1, 32), "Conv_1": (5, 5, 32, 64), "Dense_0": (3136, 512), "Dense_1": (512, 10)},
    "cifar_cnn": {"Conv_0": (3, 3, 3, 32), "Conv_1": (3, 3, 32, 64), "Dense_0": (12544, 128), "Dense_1": (128, 10)},
}
"""Of the kernels, from the first layer to the last; a bias goes with each."""

POSITIONS = {"mnist_cnn": (28 * 28, 14 * 14), "cifar_cnn": (30 * 30, 28 * 28)}
"""At which each convolution is evaluated."""


def flops(model: str) -> int:
    """Returns the multiplications and additions of one example's forward and backward pass, matrix products only.

    A layer costs three products: its output, its weights' gradient and its input's gradient, the latter not in the
    first layer.
    """
    positions = [*POSITIONS.get(model, ()), *[1] * 9]
    products = [2 * count * _size(shape) for count, shape in zip(positions, SHAPES[model].values(), strict=False)]
    return 3 * sum(products) - products[0]


def max_pool(x: jax.Array) -> jax.Array:
    """The largest of each two by two, as the maximum of four slices."""
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def _convolution(params: Params, number: int, x: jax.Array, padding: int) -> jax.Array:
    """Patches times a matrix; stride 1 and the same padding on all sides."""
    kernel = params[f"Conv_{number}/kernel"]
    height, width, channels, features = kernel.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    windows = [x[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)]
    patches = jnp.concatenate(windows, axis=-1).reshape(-1, height * width * channels)
    outputs = patches @ kernel.reshape(-1, features)
    return outputs.reshape(x.shape[0], rows, columns, features) + params[f"Conv_{number}/bias"]


def _dense(params: Params, number: int, x: jax.Array) -> jax.Array:
    return x @ params[f"Dense_{number}/kernel"] + params[f"Dense_{number}/bias"]


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
