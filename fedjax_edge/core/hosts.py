"""Several processes, on one host or on many, that run the same program on the devices of all of them."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding


def agreed(value: Any) -> Any:
    """Returns the first process's value, whatever JSON can hold, in every process: what is measured differs."""
    if jax.process_count() == 1:
        return value
    from jax.experimental.multihost_utils import broadcast_one_to_all

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(broadcast_one_to_all(np.int32(text.size)))
    return json.loads(bytes(broadcast_one_to_all(np.resize(text, size))))


def replicated(tree: Any, sharding: NamedSharding) -> Any:
    """Returns a pytree of arrays, equal in every process, as global arrays with a copy on every device."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def place(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree)
