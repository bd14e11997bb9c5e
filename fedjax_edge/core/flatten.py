"""A pytree of floats as one vector and back, with a shape that can travel as static data of a payload."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_edge.core.protocols import PyTree


class TreeShape(NamedTuple):
    """The structure, shapes and dtypes of a tree: hashable, costs nothing on the wire."""

    structure: jax.tree_util.PyTreeDef
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[jnp.dtype, ...]

    @property
    def size(self) -> int:
        """The number of elements of all leaves."""
        return sum(math.prod(shape) for shape in self.shapes)

    def unflatten(self, vector: jax.Array) -> PyTree:
        """Returns the tree whose elements are those of `vector`, float32 [size]."""
        leaves, start = [], 0
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            stop = start + math.prod(shape)
            leaves.append(vector[start:stop].reshape(shape).astype(dtype))
            start = stop
        return jax.tree.unflatten(self.structure, leaves)


def flatten(tree: PyTree) -> tuple[jax.Array, TreeShape]:
    """Returns all elements as one vector, float32 [size], and the shape to undo it with."""
    leaves, structure = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    shape = TreeShape(structure, tuple(leaf.shape for leaf in leaves), tuple(leaf.dtype for leaf in leaves))
    flat = [leaf.astype(jnp.float32).ravel() for leaf in leaves]
    return jnp.concatenate(flat) if flat else jnp.zeros(0, jnp.float32), shape
