"""Arithmetic on pytrees that `optax.tree` lacks."""

import functools
import math

import jax
import jax.numpy as jnp

from fedjax_edge.core import checks
from fedjax_edge.core.protocols import PyTree


def is_finite(tree: PyTree) -> jax.Array:
    """Returns whether every number in every leaf is finite, bool [].

    Leaves of one shape share a reduction: an update and its weighted contribution are then read once.
    """
    by_shape = {}
    for leaf in jax.tree.leaves(tree):
        by_shape.setdefault(jnp.shape(leaf), []).append(jnp.isfinite(leaf))
    finite = [functools.reduce(jnp.logical_and, leaves).all() for leaves in by_shape.values()]
    return jnp.stack(finite).all() if finite else jnp.array(True)


def select(condition: jax.Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    """Returns one of two trees of equal structure by a condition, bool [], without mixing their numbers."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def zero_unless(condition: jax.Array, tree: PyTree) -> PyTree:
    """Returns `tree`, or zeros where the condition, bool [], is false; a NaN does not get through."""
    return jax.tree.map(lambda leaf: jnp.where(condition, leaf, jnp.zeros_like(leaf)), tree)


def size_in_bits(tree: PyTree) -> int:
    """Returns the bits that the arrays (or `jax.ShapeDtypeStruct`s) of `tree` occupy, sub-byte integers packed.

    A key of `jax.random` counts as its data.

    >>> size_in_bits({"codes": jnp.zeros(100, jnp.uint8), "scale": jnp.float32(1)})
    832
    """
    return sum(math.prod(jnp.shape(leaf)) * _bits_per_element(jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree))


def _bits_per_element(dtype: jnp.dtype) -> int:
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return size_in_bits(jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), dtype)))
    info = jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo
    return 8 if dtype == jnp.bool_ else info(dtype).bits


def at_least_float32(tree: PyTree) -> PyTree:
    """Returns `tree` with leaves narrower than float32 widened to it: sums over many clients need the room."""

    def widen(leaf: jax.Array) -> jax.Array:
        leaf = jnp.asarray(leaf)
        return leaf if jnp.finfo(leaf.dtype).bits >= 32 else leaf.astype(jnp.float32)

    return jax.tree.map(widen, tree)


def cast_floats_like(tree: PyTree, like: PyTree) -> PyTree:
    """Returns `tree` with floats in the dtypes of those of `like`: a traced hyperparameter, float32, may widen them."""

    def cast(leaf: jax.Array, own: jax.Array) -> jax.Array:
        dtype = jnp.result_type(own)
        return jnp.asarray(leaf, dtype) if jnp.issubdtype(dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree, like)


def gather(states: PyTree, ids: jax.Array) -> PyTree:
    """Returns rows `ids` of every leaf, [clients, ...] -> [cohort, ...]."""
    return jax.tree.map(lambda leaf: leaf[ids], states)


def scatter(states: PyTree, ids: jax.Array, rows: PyTree, where: jax.Array) -> PyTree:
    """Returns `states` with `rows` written at `ids` where `where`, bool [cohort]; the other rows are dropped.

    Raises:
      TypeError: for rows of another structure, shape or dtype than those of `states`.
    """

    def one(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)

    checks.alike("what a client keeps between rounds", one(rows), one(states))

    def write(leaf: jax.Array, row: jax.Array) -> jax.Array:
        return leaf.at[jnp.where(where, ids, leaf.shape[0])].set(row, mode="drop")

    return jax.tree.map(write, states, rows)


def replicate(tree: PyTree, copies: int) -> PyTree:
    """Returns every leaf repeated along a new first axis, [...] -> [copies, ...]."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (copies, *jnp.shape(leaf))), tree)
