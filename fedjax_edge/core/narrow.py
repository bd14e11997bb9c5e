"""Matrices of few columns, such as a classifier's last layer: a CPU trains them twice as fast transposed.

Their rows are too short for its vectors, and models side by side would not make one matrix for the examples they share.
"""

import jax
import jax.numpy as jnp

from fedjax_edge.core.backend import is_cpu
from fedjax_edge.core.protocols import PyTree

FEW_COLUMNS = 32  # with more, products of small batches were as fast either way


def is_narrow(leaf: jax.Array) -> bool:
    """Returns whether an array is a matrix of few columns, and of more rows, on a CPU."""
    return jnp.ndim(leaf) == 2 and leaf.shape[1] <= min(FEW_COLUMNS, leaf.shape[0] - 1) and is_cpu()


def flip_narrow(tree: PyTree, like: PyTree) -> PyTree:
    """Returns `tree` with those leaves transposed that are narrow in `like`, a tree of the same structure."""
    return jax.tree.map(lambda leaf, own: leaf.T if is_narrow(own) else leaf, tree, like)
