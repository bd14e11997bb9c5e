"""Federated averaging as one would write it by hand in plain JAX: what `overhead.py` measures the package against.

Only what the benchmark needs, and so as short and as fast as it gets: clients of equal size, full participation, plain
SGD. A `shard_map` over the devices, a scan over a device's clients, a scan over a client's steps; parameters donated.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_edge.models import conv_general_dilated, max_pool

Params = Any
Apply = Callable[[Params, jax.Array], jax.Array]  # (params, float images [batch, 28, 28]) -> logits [batch, 10]


def softmax_regression(params: Params, images: jax.Array) -> jax.Array:
    return _dense(params["Dense_0"], images.reshape(images.shape[0], -1))


def perceptron(params: Params, images: jax.Array) -> jax.Array:
    x = images.reshape(images.shape[0], -1)
    x = jax.nn.relu(_dense(params["Dense_0"], x))
    x = jax.nn.relu(_dense(params["Dense_1"], x))
    return _dense(params["Dense_2"], x)


def cnn(params: Params, images: jax.Array) -> jax.Array:
    x = jax.nn.relu(max_pool(_convolution(params["Conv_0"], images[..., None])))
    x = jax.nn.relu(max_pool(_convolution(params["Conv_1"], x)))
    x = jax.nn.relu(_dense(params["Dense_0"], x.reshape(x.shape[0], -1)))
    return _dense(params["Dense_1"], x)


def _dense(params: Params, x: jax.Array) -> jax.Array:
    return x @ params["kernel"] + params["bias"]


def _convolution(params: Params, x: jax.Array) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return conv_general_dilated(x, params["kernel"], (1, 1), "SAME", dimension_numbers=numbers) + params["bias"]


def make_round(apply: Apply, learning_rate: float, batch_size: int, mesh: Mesh) -> Callable:
    """Returns `round(params, images, labels, key) -> (params, loss, accuracy)`, compiled.

    Images [clients, examples, 28, 28] and labels [clients, examples] are spread over the mesh axis "clients", of a size
    that divides the number of clients; parameters and key are on every device.
    """

    def loss_fn(params: Params, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = apply(params, images.astype(jnp.float32) / 255)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (logits.argmax(-1) == labels).mean()

    def train(params: Params, images: jax.Array, labels: jax.Array, key: jax.Array) -> tuple[Params, jax.Array]:
        def step(params: Params, rows: jax.Array) -> tuple[Params, jax.Array]:
            metrics, gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, images[rows], labels[rows])
            return jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient), jnp.stack(metrics)

        order = jax.random.permutation(key, labels.shape[0])
        trained, metrics = jax.lax.scan(step, params, order.reshape(-1, batch_size))
        return trained, metrics.mean(0)

    def on_one_device(params: Params, images: jax.Array, labels: jax.Array, keys: jax.Array) -> tuple:
        def client(total: tuple, data: tuple) -> tuple:
            trained, metrics = train(params, *data)
            weight = jnp.float32(data[1].shape[0])
            change = jax.tree.map(lambda new, old: weight * (new - old), trained, params)
            return jax.tree.map(jnp.add, total, (change, weight, weight * metrics)), None

        zeros = (jax.tree.map(jnp.zeros_like, params), jnp.float32(0), jnp.zeros(2))
        total, _ = jax.lax.scan(client, zeros, (images, labels, keys))
        change, weight, metrics = jax.lax.psum(total, "clients")
        return jax.tree.map(lambda p, c: p + c / weight, params, change), *(metrics / weight)

    @partial(jax.jit, donate_argnums=0)
    def round_(params: Params, images: jax.Array, labels: jax.Array, key: jax.Array) -> tuple:
        spread, same = PartitionSpec("clients"), PartitionSpec()
        keys = jax.random.split(key, labels.shape[0])
        on_devices = jax.shard_map(
            on_one_device, mesh=mesh, in_specs=(same, spread, spread, spread), out_specs=same, check_vma=False
        )
        return on_devices(params, images, labels, keys)

    return round_


def spread(arrays: Any, mesh: Mesh) -> Any:
    """Returns arrays [clients, ...] with an equal share of the clients on every device."""
    return jax.device_put(arrays, NamedSharding(mesh, PartitionSpec("clients")))


def copied(params: Params, mesh: Mesh) -> Params:
    """Returns a new copy of the parameters on every device."""
    return jax.tree.map(jnp.copy, jax.device_put(params, NamedSharding(mesh, PartitionSpec())))
