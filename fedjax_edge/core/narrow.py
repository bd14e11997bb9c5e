"""Matrices of few columns, such as a classifier's last layer: a CPU trains them twice as fast transposed.

Their rows are too short for its vectors, and models side by side would not make one matrix for the examples they share.
"""

import jax
import jax.numpy as jnp

from fedjax_edge.core.backend import is_cpu
from fedjax_edge.core.protocols import PyTree

FEW_COLUMNS = 32  # with more, products of small batches were as fast either way


def is_narrow(leaf: jax.typing.ArrayLike) -> bool:
    """Returns whether an array is a matrix of few columns, and of more rows, on a CPU; a number of Python is none."""
    shape = jnp.shape(leaf)
    return len(shape) == 2 and shape[1] <= min(FEW_COLUMNS, shape[0] - 1) and is_cpu()


def flip_narrow(tree: PyTree, like: PyTree | None = None) -> PyTree:
    """Returns `tree` with its narrow leaves transposed; or those that are narrow in `like`, of the same structure.

    Leaves may be stacked along more axes than those of `like`.
    """
    like = tree if like is None else like
    return jax.tree.map(lambda leaf, own: leaf.swapaxes(-1, -2) if is_narrow(own) else leaf, tree, like)
