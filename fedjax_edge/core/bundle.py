"""A tree as few arrays: a dozen small ones are added in one operation, and sent in one message.

Matrices of few columns lie in it transposed, so that a round handles them as its clients train them.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from fedjax_edge.core.narrow import flip_narrow
from fedjax_edge.core.protocols import PyTree

SMALL = 4096  # numbers at most; to copy more costs more than it saves


@partial(jax.tree_util.register_dataclass, data_fields=("large", "small"), meta_fields=("leaves", "structure"))
@dataclass(frozen=True)
class Bundle:
    """The leaves of a tree, and what it takes to return to it."""

    large: list[jax.Array]
    small: dict[str, jax.Array]  # by dtype: all its small leaves, end to end
    leaves: tuple[jax.ShapeDtypeStruct, ...]
    structure: jax.tree_util.PyTreeDef


def bundle(tree: PyTree) -> Bundle:
    """Returns the leaves of a tree of arrays, or of numbers, the small ones of each dtype made one."""
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, tree))
    large = flip_narrow([leaf for leaf in leaves if not _is_small(leaf)])
    small: dict[str, list[jax.Array]] = {}
    for leaf in filter(_is_small, leaves):
        small.setdefault(str(leaf.dtype), []).append(jnp.ravel(leaf))
    small = {dtype: jnp.concatenate(parts) for dtype, parts in small.items()}
    return Bundle(large, small, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves), structure)


def unbundle(bundled: Bundle) -> PyTree:
    """Returns the tree that was bundled; or, where bundles were stacked along new first axes, a tree of stacks."""
    large, taken = iter(bundled.large), dict.fromkeys(bundled.small, 0)

    def leaf(own: jax.ShapeDtypeStruct) -> jax.Array:
        if not _is_small(own):
            return flip_narrow(next(large), own)
        end_to_end, count = bundled.small[str(own.dtype)], math.prod(own.shape)
        first, taken[str(own.dtype)] = taken[str(own.dtype)], taken[str(own.dtype)] + count
        return end_to_end[..., first : first + count].reshape(*end_to_end.shape[:-1], *own.shape)

    return bundled.structure.unflatten(map(leaf, bundled.leaves))


def _is_small(leaf: jax.Array | jax.ShapeDtypeStruct) -> bool:
    return math.prod(leaf.shape) <= SMALL
