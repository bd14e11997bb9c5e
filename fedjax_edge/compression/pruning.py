"""Magnitude pruning: a mask of the weights that are kept, kept through training and on the wire."""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_edge.compression.norms import nan_unless_finite
from fedjax_edge.compression.selection import largest_magnitudes
from fedjax_edge.core import checks
from fedjax_edge.core.flatten import TreeShape, flatten
from fedjax_edge.core.protocols import Codec, PyTree


@partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["shape"])
@dataclass(frozen=True)
class Kept:
    """What is sent: the numbers that the mask keeps, in order; both sides know the mask."""

    values: jax.Array  # float32 [kept]
    shape: TreeShape


class StoredBits(NamedTuple):
    """What a model takes, in three formats."""

    dense: int  # every number
    bitmap: int  # the numbers that are kept, and one bit for every number
    indices: int  # the numbers that are kept, and the index of each in its leaf


def magnitude_mask(params: PyTree, sparsity: float) -> PyTree:
    """Returns which weights to keep, bool leaves like `params`: the largest magnitudes of each leaf.

    Of a leaf of `n` weights in two or more axes, `round(sparsity * n)` are pruned, of equals the last; at least one
    stays. Scalars and vectors (biases, scales) are kept whole. Call it outside of `jit`, on a model that is trained a
    little, and start from `apply_mask(params, mask)`. To prune step by step, let the sparsity follow
    `optax.polynomial_schedule(0.0, final, power=3, transition_steps=rounds)` (Zhu and Gupta, equation 1) and make a
    new algorithm, with its new mask, for every stage.

    Args:
      params: pytree of floats.
      sparsity: the share to prune, at least 0 and below 1.

    Raises:
      ValueError: for a sparsity out of range, or weights that are not finite.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NIPS 2015
    (arXiv:1506.02626), Section 3; Zhu and Gupta, "To Prune, or Not to Prune", 2017 (arXiv:1710.01878).

    >>> magnitude_mask({"w": jnp.array([[1.0, -3.0], [0.5, 2.0]]), "b": jnp.zeros(2)}, 0.5)["w"].tolist()
    [[False, True], [False, True]]
    """
    checks.non_negative("sparsity", sparsity)
    if sparsity >= 1:
        raise ValueError(f"sparsity must be below 1, got {sparsity!r}")

    def of_leaf(leaf: jax.Array) -> np.ndarray:
        leaf = jnp.asarray(leaf)
        if not np.isfinite(leaf).all():
            raise ValueError("params must be finite to be pruned")
        if leaf.ndim < 2 or not leaf.size:
            return np.ones(leaf.shape, bool)
        kept = max(1, leaf.size - round(sparsity * leaf.size))
        mask = np.zeros(leaf.size, bool)
        mask[largest_magnitudes(leaf.astype(jnp.float32).ravel(), kept)] = True
        return mask.reshape(leaf.shape)

    return jax.tree.map(of_leaf, params)


def apply_mask(tree: PyTree, mask: PyTree) -> PyTree:
    """Returns `tree` with exact zeros where the mask, bool leaves of the same shapes, is false."""
    return jax.tree.map(lambda leaf, keep: jnp.where(keep, leaf, jnp.zeros_like(leaf)), tree, mask)


def sparse_optimizer(optimizer: optax.GradientTransformation, mask: PyTree) -> optax.GradientTransformation:
    """Returns `optimizer` with its steps masked: weights that are zero where the mask is false stay exactly zero.

    For a client's optimizer and for the server's, whatever they are: momentum, weight decay, and the noise of a private
    mean are masked after them. (`optax.masked` and `optax.transforms.freeze` choose whole leaves.)

    Args:
      optimizer: any of optax.
      mask: from `magnitude_mask`.

    >>> mask = jnp.array([[True, False]])
    >>> optimizer, weights = sparse_optimizer(optax.sgd(0.1, 0.9), mask), jnp.array([[1.0, 0.0]])
    >>> step, _ = optimizer.update(jnp.ones((1, 2)), optimizer.init(weights), weights)
    >>> (weights + step).round(3).tolist()
    [[0.9..., 0.0]]
    """

    def update(steps: PyTree, state: optax.EmptyState, params: PyTree = None) -> tuple[PyTree, optax.EmptyState]:
        return apply_mask(steps, mask), state

    return optax.chain(optimizer, optax.GradientTransformation(optax.init_empty_state, update))


def masked(mask: PyTree) -> Codec:
    """Returns the codec that sends the numbers that the mask keeps, 32 bits each; the others are received as zero.

    Both sides know the mask, and no index is sent. `compose(masked(mask), stochastic_uniform(8))` costs 8 bits a kept
    number, and 64. Lossless for the updates of `sparse_optimizer`. Of others it is a projection: deterministic, biased,
    and with the squared norm of what is dropped as its error; do not wrap it in `error_feedback`, whose memory would
    keep that for ever.

    ==============================  ==================================================================
    input                           decoded
    ==============================  ==================================================================
    zero where the mask is false    itself
    nothing kept, or empty          zeros, or empty
    NaN or infinite anywhere        NaN wherever a number is sent, so that the round can reject it:
                                    a mask that keeps nothing could not tell
    ==============================  ==================================================================

    Args:
      mask: bool leaves, concrete, of the updates' shapes.

    Raises:
      ValueError: for an update of another structure or of other shapes, when it is encoded.

    >>> codec = masked({"w": np.array([[True, False, True]])})
    >>> payload = codec.encode({"w": jnp.array([[1.0, 0.0, 3.0]])}, None)
    >>> payload.values.tolist(), codec.decode(payload)["w"].tolist()
    ([1.0, 3.0], [[1.0, 0.0, 3.0]])
    """
    kept = jax.tree.map(lambda leaf: np.asarray(leaf, bool), mask)
    form = jax.tree.structure(kept), tuple(leaf.shape for leaf in jax.tree.leaves(kept))
    indices = np.flatnonzero(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(kept)] or [[]]))

    def encode(update: PyTree, key: jax.Array) -> Kept:
        vector, shape = flatten(update)
        if (shape.structure, shape.shapes) != form:
            raise ValueError(f"the mask is for updates of shapes {form[1]} in {form[0]}, got {shape.shapes}")
        return Kept(nan_unless_finite(vector[indices], vector), shape)

    def decode(payload: Kept) -> PyTree:
        zeros = jnp.zeros(payload.shape.size, jnp.float32)
        return payload.shape.unflatten(zeros.at[indices].set(payload.values, unique_indices=True))

    return Codec(encode, decode)


def stored_bits(params: PyTree, mask: PyTree | None = None, bits: int | None = None) -> StoredBits:
    """Returns the bits that a device needs for a model: dense, or what a mask keeps by bitmap or by index.

    Args:
      params: arrays, or `jax.ShapeDtypeStruct`s.
      mask: bool leaves of the same shapes; by default everything is kept.
      bits: of a number, as `symmetric(bits)` stores it, with 32 for each leaf's scale; by default those of its dtype.

    >>> params, mask = {"w": jnp.ones((10, 10))}, {"w": np.arange(100).reshape(10, 10) < 20}
    >>> stored_bits(params), stored_bits(params, mask, bits=8).bitmap  # 20 * 8 + 100 + 32
    (StoredBits(dense=3200, bitmap=3300, indices=3900), 292)
    """
    total = np.zeros(3, int)
    keep_all = jax.tree.map(lambda leaf: np.ones(jnp.shape(leaf), bool), params)
    for leaf, keep in zip(jax.tree.leaves(params), jax.tree.leaves(keep_all if mask is None else mask), strict=True):
        size, kept = math.prod(jnp.shape(leaf)), int(np.sum(keep))
        width = jnp.finfo(jnp.result_type(leaf)).bits if bits is None else bits
        scale = 0 if bits is None else 32
        index = max(size - 1, 1).bit_length()
        total += [size * width + scale, kept * width + size + scale, kept * (width + index) + scale]
    return StoredBits(*total.tolist())
