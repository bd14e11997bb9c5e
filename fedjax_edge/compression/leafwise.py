"""Codecs that treat each leaf by itself: a scale of its own, codes of its own."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.core.protocols import Codec, PyTree


@partial(jax.tree_util.register_dataclass, data_fields=["content"], meta_fields=["shape", "dtype"])
@dataclass(frozen=True)
class Leaf:
    """What is sent of one leaf; its shape and dtype cost nothing."""

    content: PyTree
    shape: tuple[int, ...]
    dtype: jnp.dtype


def leafwise(
    encode_leaf: Callable[[jax.Array, jax.Array | None], PyTree],
    decode_leaf: Callable[[PyTree, int], jax.Array],
    draw: Callable[[jax.Array, tuple[int]], jax.Array] | None = None,
) -> Codec:
    """Returns the codec made of what happens to the numbers of one leaf.

    Args:
      encode_leaf: `(values, draws) -> content` for values, float32 [n], and draws [n], or `None`.
      decode_leaf: `(content, n) -> values`, float32 [n].
      draw: `(key, shape) -> draws`, called once for the whole update; `None` where nothing is random.
    """

    def encode(update: PyTree, key: jax.Array) -> PyTree:
        leaves, structure = jax.tree.flatten(update)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        ends = np.cumsum([leaf.size for leaf in leaves], dtype=int)
        draws = jnp.split(draw(key, (sum(leaf.size for leaf in leaves),)), ends[:-1]) if draw else [None] * len(leaves)
        contents = [
            encode_leaf(leaf.astype(jnp.float32).ravel(), own) for leaf, own in zip(leaves, draws, strict=False)
        ]
        return structure.unflatten(
            Leaf(content, leaf.shape, leaf.dtype) for content, leaf in zip(contents, leaves, strict=True)
        )

    def decode_one(payload: Leaf) -> jax.Array:
        values = decode_leaf(payload.content, math.prod(payload.shape))
        return values.reshape(payload.shape).astype(payload.dtype)

    def decode(payload: PyTree) -> PyTree:
        return jax.tree.map(decode_one, payload, is_leaf=lambda node: isinstance(node, Leaf))

    return Codec(encode, decode)
