import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.compression import per_leaf, random_k, top_k
from fedjax_edge.compression.packing import unpack


def test_every_leaf_keeps_its_own_largest():
    update = {"a": jnp.array([1.0, 2.0, -3.0, 0.5]), "b": jnp.array([[100.0, 200.0]]), "c": jnp.float32(0.1)}
    codec = per_leaf(top_k(0.25))
    payload = codec.encode(update, None)
    assert [unpack(leaf.indices).tolist() for leaf in payload.payloads] == [
        [2],
        [1],
        [0],
    ]
    decoded = codec.decode(payload)
    assert decoded["a"].tolist() == [0, 0, -3, 0] and decoded["b"].tolist() == [[0, 200]]
    assert decoded["c"] == jnp.float32(0.1)


def test_leaves_draw_for_themselves():
    codec = per_leaf(random_k(0.1))
    first, second = codec.decode(codec.encode((jnp.ones(100), jnp.ones(100)), jax.random.key(0)))
    assert not np.array_equal(first, second)
