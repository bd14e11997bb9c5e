"""Federated averaging as one would write it by hand in plain JAX: what the package is measured against.

Only what the benchmark needs, and so as short and as fast as it gets: clients of equal size and plain SGD. A
`shard_map` over the devices, a scan over a device's clients (on an accelerator, all of them vmapped), a scan over a
client's steps; parameters donated. (Clients of unequal size: `handwritten_unequal.py`.)
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from plain_models import Apply, Params

SPREAD, SAME = PartitionSpec("clients"), PartitionSpec()


def make_round(apply: Apply, batch_size: int, cohort: int | None, mesh: Mesh) -> Callable:
    """Returns `round(params, images, labels, learning_rate, key) -> (params, loss, accuracy)`, compiled.

    Images [clients, examples, ...] and labels [clients, examples] are spread over the mesh axis "clients", of a size
    that divides the number of clients a round. With a cohort they are on every device, as are parameters, learning rate
    and key; each round then draws so many clients.
    """

    def train(params: Params, images: jax.Array, labels: jax.Array, rate: jax.Array, key: jax.Array) -> tuple:
        def step(params: Params, rows: jax.Array) -> tuple[Params, jax.Array]:
            loss_and_gradient = jax.value_and_grad(partial(loss_fn, apply), has_aux=True)
            metrics, gradient = loss_and_gradient(params, images[rows], labels[rows])
            return jax.tree.map(lambda p, g: p - rate * g, params, gradient), jnp.stack(metrics)

        order = jax.random.permutation(key, labels.shape[0])
        trained, metrics = jax.lax.scan(step, params, order.reshape(-1, batch_size))
        return trained, metrics.mean(0)

    def on_one_device(
        params: Params, images: jax.Array, labels: jax.Array, ids: jax.Array, rate: jax.Array, keys: jax.Array
    ) -> tuple:

        def client(number: jax.Array, key: jax.Array) -> tuple:
            trained, metrics = train(params, images[number], labels[number], rate, key)
            weight = jnp.float32(labels.shape[1])
            change = jax.tree.map(lambda new, old: weight * (new - old), trained, params)
            return change, weight, weight * metrics

        def add(total: tuple, one: tuple) -> tuple:
            return jax.tree.map(jnp.add, total, client(*one)), None

        ids = jnp.arange(labels.shape[0]) if cohort is None else ids
        if jax.default_backend() == "cpu":
            zeros = (jax.tree.map(jnp.zeros_like, params), jnp.float32(0), jnp.zeros(2))
            total, _ = jax.lax.scan(add, zeros, (ids, keys))
        else:
            total = jax.tree.map(lambda leaf: leaf.sum(0), jax.vmap(client)(ids, keys))
        change, weight, metrics = jax.lax.psum(total, "clients")
        return jax.tree.map(lambda p, c: p + c / weight, params, change), *(metrics / weight)

    @partial(jax.jit, donate_argnums=0)
    def round_(params: Params, images: jax.Array, labels: jax.Array, rate: jax.Array, key: jax.Array) -> tuple:
        cohort_key, training_key = jax.random.split(key)
        if cohort is None:
            ids = jnp.arange(labels.shape[0])
        else:
            ids = jax.random.choice(cohort_key, labels.shape[0], (cohort,), replace=False)
        data = SPREAD if cohort is None else SAME
        on_devices = jax.shard_map(
            on_one_device,
            mesh=mesh,
            in_specs=(SAME, data, data, SPREAD, SAME, SPREAD),
            out_specs=SAME,
            check_vma=False,
        )
        return on_devices(params, images, labels, ids, rate, jax.random.split(training_key, len(ids)))

    return round_


def loss_fn(apply: Apply, params: Params, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean loss and the accuracy of a batch of uint8 images."""
    logits = apply(params, images.astype(jnp.float32) / 255)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), (logits.argmax(-1) == labels).mean()


def make_mesh() -> Mesh:
    return jax.make_mesh((jax.device_count(),), ("clients",), axis_types=(AxisType.Auto,))


def spread(arrays: Any, mesh: Mesh) -> Any:
    """Returns arrays [clients, ...] with an equal share of the clients on every device."""
    return jax.device_put(arrays, NamedSharding(mesh, SPREAD))


def everywhere(arrays: Any, mesh: Mesh) -> Any:
    """Returns arrays with a copy on every device."""
    return jax.device_put(arrays, NamedSharding(mesh, SAME))
