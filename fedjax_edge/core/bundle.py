"""A tree's small arrays as one: a dozen counters are then added in one operation, and sent in one message."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_edge.core.protocols import PyTree

SMALL = 4096  # numbers at most; to copy more costs more than it saves


class Bundle(NamedTuple):
    """The leaves of a tree."""

    large: list[jax.Array]
    small: dict[str, jax.Array]  # by dtype: all its small leaves, end to end


def bundle(tree: PyTree) -> Bundle:
    """Returns the leaves of a tree of arrays with the small ones of each dtype made one."""
    leaves = jax.tree.leaves(tree)
    small: dict[str, list[jax.Array]] = {}
    for leaf in filter(_is_small, leaves):
        small.setdefault(str(leaf.dtype), []).append(jnp.ravel(leaf))
    large = [leaf for leaf in leaves if not _is_small(leaf)]
    return Bundle(large, {dtype: jnp.concatenate(parts) for dtype, parts in small.items()})


def unbundle(bundled: Bundle, like: PyTree) -> PyTree:
    """Returns the tree that was bundled; `like` has its structure, shapes and dtypes."""
    large, taken = iter(bundled.large), dict.fromkeys(bundled.small, 0)

    def leaf(own: jax.ShapeDtypeStruct) -> jax.Array:
        if not _is_small(own):
            return next(large)
        dtype, count = str(own.dtype), math.prod(own.shape)
        first, taken[dtype] = taken[dtype], taken[dtype] + count
        return bundled.small[dtype][first : first + count].reshape(own.shape)

    return jax.tree.map(leaf, like)


def _is_small(leaf: jax.Array | jax.ShapeDtypeStruct) -> bool:
    return math.prod(leaf.shape) <= SMALL
