"""The executor: maps a pure function over clients, and sums or stacks what comes back.

    vmap over a chunk  x  scan over chunks  x  shard_map over a mesh axis named "clients"

Summed results exist for one chunk at a time, so their memory does not grow with the number of clients.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fedjax_edge.core.bundle import Bundle, bundle, unbundle
from fedjax_edge.core.hosts import replicated
from fedjax_edge.core.plan import Plan
from fedjax_edge.core.protocols import PyTree
from fedjax_edge.core.trees import zero_unless

AXIS = "clients"

ClientFn = Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, PyTree]]
"""`fn(shared, client, active) -> (to_sum, to_stack)`; an inactive client should cost nothing."""


def map_clients(
    fn: ClientFn, shared: PyTree, clients: PyTree, active: jax.Array, plan: Plan, cost: jax.Array | None = None
) -> tuple[PyTree, PyTree]:
    """Calls `fn` for every client and returns the sum of its first results and the stack of its second ones.

    Args:
      fn: a pure function of what all clients share, of one client's own part, and of whether it is active.
      shared: any pytree, handed to every call whole.
      clients: leaves [clients, ...].
      active: bool [clients]; an inactive client adds nothing to the sum, and its stacked row is zero.
      plan: how to spread the clients; it changes the result only by the order of floating-point sums.
      cost: [clients], proportional to each client's work. Clients of like cost are vmapped together and the devices
        are given equal totals.

    Returns:
      The sum, leaves [...], and the stack, leaves [clients, ...] in the order given.
    """
    count = active.shape[0]
    slots = _deal(cost, count, plan)
    filled = (slots < count) & active[jnp.minimum(slots, count - 1)]
    dealt = jax.tree.map(lambda leaf: leaf[jnp.minimum(slots, count - 1)], clients)
    if plan.devices == 1:
        total, rows = _scan_chunks(fn, shared, *jax.tree.map(lambda leaf: leaf[0], (dealt, filled)))
    else:
        total, rows = _over_devices(fn, plan.devices)(shared, dealt, filled)
    position = jnp.zeros(slots.size, jnp.int32).at[slots.ravel()].set(jnp.arange(slots.size, dtype=jnp.int32))
    rows = jax.tree.map(lambda leaf: leaf.reshape(slots.size, *leaf.shape[2:])[position[:count]], rows)
    return total, rows if plan.devices == 1 else jax.lax.with_sharding_constraint(rows, _on_every(plan.devices))


def _deal(cost: jax.Array | None, count: int, plan: Plan) -> jax.Array:
    """Returns which client each slot takes, int32 [devices, chunks, width]; numbers from `count` on are padding.

    Dearest first, so that a chunk holds clients of like cost; then there and back again over the devices.
    """
    chunks = -(-count // (plan.width * plan.devices))
    padding = chunks * plan.width * plan.devices - count
    dearest_first = jnp.arange(count) if cost is None else jnp.argsort(-cost)
    order = jnp.concatenate([dearest_first.astype(jnp.int32), count + jnp.arange(padding, dtype=jnp.int32)])
    table = np.arange(chunks * plan.devices).reshape(chunks, plan.devices)
    table[1::2] = table[1::2, ::-1]
    return order.reshape(-1, plan.width)[table.T]


def _scan_chunks(
    fn: ClientFn, shared: PyTree, clients: PyTree, active: jax.Array, combine: Callable[[Bundle], Bundle] = lambda x: x
) -> tuple[PyTree, PyTree]:
    """Scans over chunks on one device: leaves [chunks, width, ...] give a sum [...] and rows [chunks, width, ...].

    `combine` adds the sums of all devices, bundled.
    """

    def one(client: PyTree, is_active: jax.Array) -> tuple[PyTree, PyTree]:
        return zero_unless(is_active, fn(shared, client, is_active))

    def chunk_of_one(client: PyTree, is_active: jax.Array) -> tuple[Bundle, PyTree]:
        to_sum, row = one(*jax.tree.map(lambda leaf: leaf[0], (client, is_active)))
        return bundle(to_sum), jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), row)

    def chunk_of_many(client: PyTree, is_active: jax.Array) -> tuple[Bundle, PyTree]:
        to_sum, rows = jax.vmap(one)(client, is_active)
        return bundle(jax.tree.map(lambda leaf: leaf.sum(0, dtype=leaf.dtype), to_sum)), rows

    chunk = jax.jit(chunk_of_one if active.shape[1] == 1 else chunk_of_many, inline=True)  # so that it is traced once

    def step(total: Bundle, slot: tuple[PyTree, jax.Array]) -> tuple[Bundle, PyTree]:
        to_sum, rows = chunk(*slot)
        return optax.tree.add(total, to_sum), rows

    first = jax.tree.map(lambda leaf: leaf[0], (clients, active))
    zeros = optax.tree.zeros_like(jax.eval_shape(chunk, *first)[0])
    total, rows = jax.lax.scan(step, zeros, (clients, active))
    return unbundle(combine(total)), rows


def _over_devices(fn: ClientFn, devices: int) -> Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, PyTree]]:
    """Returns `_scan_chunks` spread over devices: leaves [devices, chunks, width, ...], and one sum at the end."""

    def on_one_device(shared: PyTree, clients: PyTree, active: jax.Array) -> tuple[PyTree, PyTree]:
        own = jax.tree.map(lambda leaf: leaf[0], (clients, active))
        return _scan_chunks(fn, shared, *own, combine=lambda total: jax.lax.psum(total, AXIS))

    split = PartitionSpec(AXIS)
    return jax.shard_map(
        on_one_device,
        mesh=clients_mesh(devices),
        in_specs=(PartitionSpec(), split, split),
        out_specs=(PartitionSpec(), split),
        check_vma=False,  # it rejects ordinary user code whose scan carry starts at zeros
    )


def on_each_device(fn: Callable[..., PyTree], plan: Plan) -> Callable[..., PyTree]:
    """Returns `fn`, computed by every device for itself; what it and `map_clients` trace alike is traced once."""
    if plan.devices == 1:
        return fn
    everywhere = PartitionSpec()
    return jax.shard_map(
        fn, mesh=clients_mesh(plan.devices), in_specs=everywhere, out_specs=everywhere, check_vma=False
    )


def clients_mesh(devices: int) -> Mesh:
    """Returns the mesh of the first `devices` devices along the axis "clients"."""
    return jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def on_all_devices(tree: PyTree, plan: Plan) -> PyTree:
    """Returns `tree` with a copy on every device of the plan, so that no call has to send it again."""
    if plan.devices == 1:
        return jax.device_put(tree, jax.devices()[0])
    return replicated(tree, _on_every(plan.devices))


def _on_every(devices: int) -> NamedSharding:
    return NamedSharding(clients_mesh(devices), PartitionSpec())
