"""Federated averaging by hand for clients of unequal size: `handwritten.py`, with each client's own number of steps.

Clients are dealt to the devices once, largest first, each to the device with least work. A round shuffles a device's
examples within their clients by one sort, and each client's loop ends after its own last batch. `padded` gives all
clients the number of steps of the largest instead, as code that knows only equal shapes does.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from handwritten import SAME, SPREAD
from jax.sharding import Mesh
from plain_models import Apply, Params


def dealt(images: np.ndarray, labels: np.ndarray, offsets: np.ndarray, batch_size: int, devices: int) -> tuple:
    """Returns every device's own examples and clients, equally many of each: leaves [devices, ...].

    Images, labels, the client of each example (one past the last, for padding), and each client's start and size.
    """
    sizes = np.diff(offsets)
    steps = -(-sizes // batch_size)
    shares, work = [[] for _ in range(devices)], np.zeros(devices)
    for client in np.argsort(-sizes, kind="stable"):
        device = int(work.argmin())
        shares[device].append(client)
        work[device] += steps[client]
    num_rows = max(sizes[share].sum() for share in shares)
    num_clients = max(map(len, shares))
    rows, owners, starts, counts = [], [], [], []
    for share in shares:
        own = np.concatenate([np.arange(offsets[client], offsets[client + 1]) for client in share])
        rows.append(np.pad(own, (0, num_rows - len(own))))
        owner = np.repeat(np.arange(len(share)), sizes[share])
        owners.append(np.pad(owner, (0, num_rows - len(owner)), constant_values=num_clients))
        counts.append(np.pad(sizes[share], (0, num_clients - len(share))))
        starts.append(np.cumsum(counts[-1]) - counts[-1])
    clients = (np.asarray(array, np.int32) for array in (owners, starts, counts))
    return images[np.stack(rows)], labels[np.stack(rows)], *clients


def make_round(apply: Apply, batch_size: int, mesh: Mesh, padded_to: int | None = None) -> Callable:
    """Returns `round(params, data, learning_rate, key) -> params`, compiled; `data` as `dealt` gives it, spread.

    `padded_to` is the size of the largest client, if all are to take as many steps.
    """

    def batch_loss(params: Params, images: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
        logits = apply(params, images.astype(jnp.float32) / 255)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.where(mask, losses, 0).sum() / jnp.maximum(mask.sum(), 1)

    def on_one_device(params: Params, data: tuple, rate: jax.Array, keys: jax.Array) -> Params:
        images, labels, owners, starts, sizes = jax.tree.map(lambda leaf: leaf[0], data)
        random = jax.random.bits(keys[0], owners.shape)
        order = jnp.lexsort((random, owners))  # client after client, each shuffled
        order = jnp.pad(order, (0, batch_size))  # the last batch of all may reach beyond the end

        def client(total: tuple, one: tuple) -> tuple:
            start, size = one

            def step(number: jax.Array, current: Params) -> Params:
                first = number * batch_size
                rows = jax.lax.dynamic_slice(order, (start + first,), (batch_size,))
                mask = first + jnp.arange(batch_size) < size
                gradient = jax.grad(batch_loss)(current, images[rows], labels[rows], mask)
                return jax.tree.map(lambda p, g: p - rate * g, current, gradient)

            steps = -(-(size if padded_to is None else padded_to) // batch_size)
            trained = jax.lax.fori_loop(0, steps, step, params)
            change = jax.tree.map(lambda new, old: size * (new - old), trained, params)
            return jax.tree.map(jnp.add, total, (change, size.astype(jnp.float32))), None

        zeros = (jax.tree.map(jnp.zeros_like, params), jnp.float32(0))
        total, _ = jax.lax.scan(client, zeros, (starts, sizes))
        change, weight = jax.lax.psum(total, "clients")
        return jax.tree.map(lambda p, c: p + c / weight, params, change)

    @partial(jax.jit, donate_argnums=0)
    def round_(params: Params, data: tuple, rate: jax.Array, key: jax.Array) -> Params:
        on_devices = jax.shard_map(
            on_one_device, mesh=mesh, in_specs=(SAME, SPREAD, SAME, SPREAD), out_specs=SAME, check_vma=False
        )
        return on_devices(params, data, rate, jax.random.split(key, mesh.size))

    return round_
