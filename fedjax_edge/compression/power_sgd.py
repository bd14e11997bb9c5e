"""PowerSGD: each matrix of an update as the product of two narrow ones, by one step of subspace iteration."""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_edge.compression.norms import l2_norm, nan_unless_finite
from fedjax_edge.core import checks
from fedjax_edge.core.protocols import Codec, PyTree, UpdateTransform
from fedjax_edge.core.trees import at_least_float32, size_in_bits


@partial(jax.tree_util.register_dataclass, data_fields=["left", "right"], meta_fields=["shape", "dtype"])
@dataclass(frozen=True)
class Factors:
    """What is sent of one matrix: `left @ right.T`."""

    left: jax.Array  # float32 [rows, rank], orthonormal
    right: jax.Array  # float32 [columns, rank]
    shape: tuple[int, ...]
    dtype: jnp.dtype


class PowerState(NamedTuple):
    """What a client keeps: what it has not sent yet, and where the next iteration starts."""

    memory: PyTree  # like the update, float32 at least
    rights: tuple[jax.Array, ...]  # float32 [columns, rank] of each matrix


def low_rank(rank: int) -> Codec:
    """Returns the codec that sends each matrix `M` as `P Q^T` of rank `rank`, from a random start.

    `P` is an orthonormal basis of `M S`, for `S` of independent normal numbers, and `Q = M^T P`: what is decoded is `M`
    projected on the span of `P`. A leaf with several axes is a matrix with its last one, the output channels of a flax
    kernel, as columns. A matrix of `n` rows and `m` columns costs `32 * rank * (n + m)` bits. Leaves with fewer axes,
    and those that would not get smaller, are sent as they are.

    Biased. For given `S` the error is `|M|**2 - |P^T M|**2`, never more than `|M|**2`, and at most
    `(1 - rank / m) * |M|**2` in expectation: a contraction, as `error_feedback` needs. (`P` spans `M S`, so that what
    is kept is at least `|M S'|**2` for an orthonormal basis `S'` of the random span.) A matrix of rank `rank` or less
    is decoded exactly. `power_sgd` starts where the last round ended, and finds better subspaces.

    ==============================  ===========================================================================
    input                           decoded
    ==============================  ===========================================================================
    scalar, vector, small matrix    itself
    zero                            itself
    empty                           empty
    rank above what is there        limited to it; the matrix is sent as it is
    NaN or infinite in a matrix     a leaf that is not finite, so that the round can reject it; likewise where
                                    `M S` overflows float32
    ==============================  ===========================================================================

    Args:
      rank: of each matrix, at least 1.

    Raises:
      ValueError: for a rank below one.

    Source: Vogels et al., "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization", NeurIPS
    2019 (arXiv:1905.13727), Algorithm 1, for one worker and without warm start.

    >>> codec = low_rank(1)
    >>> matrix = jnp.outer(jnp.arange(1.0, 5.0), jnp.array([1.0, -1.0, 2.0]))
    >>> decoded = codec.decode(codec.encode(matrix, jax.random.key(0)))
    >>> bool(jnp.allclose(decoded, matrix, atol=1e-5))
    True
    """
    checks.integer("rank", rank)

    def encode(update: PyTree, key: jax.Array) -> PyTree:
        return _encode(update, _no_rights(update, rank), rank, key)

    return Codec(encode, _decode)


def power_sgd(rank: int) -> UpdateTransform:
    """Returns PowerSGD: `low_rank` with a memory of what was lost, and with the last `Q` of each matrix as its start.

    Every client iterates on matrices of its own: its memory plus its update, started from the `Q` that it sent in its
    last round (warm start; columns that are zero, all of them in its first round, are drawn anew). In time `P` nears
    the leading singular vectors, if updates change slowly. All that was sent plus the memory equals all updates. Bits,
    shapes and edge cases are those of `low_rank`.

    For a given start `M S` is linear in `M`, and the paper sums it, then `M^T P`, over all workers: two exchanges a
    step, and the same as compressing their mean. A client of a round sends once, so that each is compressed for
    itself, and a mean over clients may have a rank of up to `clients * rank`.

    Args:
      rank: of each matrix, at least 1.

    Raises:
      ValueError: for a rank below one.

    Source: Vogels et al. 2019 (arXiv:1905.13727), Algorithms 1 and 2; the clients' momentum is not part of it.

    >>> transform, update = power_sgd(1), jnp.arange(12.0).reshape(4, 3)
    >>> sent, state, bits = transform.apply(update, transform.init(update), jax.random.key(0))
    >>> bits, bool(jnp.allclose(sent + state.memory, update))  # 4 + 3 numbers for 12
    (224, True)
    """
    checks.integer("rank", rank)

    def init(update: PyTree) -> PowerState:
        return PowerState(optax.tree.zeros_like(at_least_float32(update)), _no_rights(update, rank))

    def apply(update: PyTree, state: PowerState, key: jax.Array) -> tuple[PyTree, PowerState, int]:
        corrected = optax.tree.add(at_least_float32(update), state.memory)
        payload = _encode(optax.tree.cast_like(corrected, update), state.rights, rank, key)
        sent = _decode(payload)
        parts = jax.tree.leaves(payload, is_leaf=_is_factors)
        rights = tuple(part.right for part in parts if _is_factors(part))
        lost = optax.tree.sub(corrected, at_least_float32(sent))
        return sent, PowerState(lost, rights), size_in_bits(payload)

    return UpdateTransform(init, apply)


def _is_factors(node: PyTree) -> bool:
    return isinstance(node, Factors)


def _gets_smaller(leaf: jax.Array, rank: int) -> bool:
    if leaf.ndim < 2:
        return False
    numbers = rank * (math.prod(leaf.shape[:-1]) + leaf.shape[-1])
    return numbers < leaf.size and 32 * numbers < size_in_bits(leaf)


def _no_rights(update: PyTree, rank: int) -> tuple[jax.Array, ...]:
    leaves = map(jnp.asarray, jax.tree.leaves(update))
    return tuple(jnp.zeros((leaf.shape[-1], rank), jnp.float32) for leaf in leaves if _gets_smaller(leaf, rank))


def _encode(update: PyTree, rights: tuple[jax.Array, ...], rank: int, key: jax.Array) -> PyTree:
    """Returns the update with every matrix that gets smaller as `Factors`, iterated from its `rights`."""
    leaves, structure = jax.tree.flatten(update)
    starts, payload = iter(enumerate(rights)), []
    for leaf in map(jnp.asarray, leaves):
        if _gets_smaller(leaf, rank):
            position, right = next(starts)
            matrix = leaf.astype(jnp.float32).reshape(-1, leaf.shape[-1])
            payload.append(_iterate(matrix, right, jax.random.fold_in(key, position), leaf.shape, leaf.dtype))
        else:
            payload.append(leaf)
    return structure.unflatten(payload)


def _iterate(matrix: jax.Array, right: jax.Array, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Factors:
    lengths = jax.vmap(l2_norm, in_axes=1)(right)[None, :]  # the span matters, and no product may overflow
    fresh = jax.random.normal(key, right.shape, right.dtype)
    start = jnp.where(lengths > 0, right / jnp.where(lengths > 0, lengths, 1), fresh)
    with jax.default_matmul_precision("highest"):  # accelerators would round the factors otherwise
        left, _ = jnp.linalg.qr(matrix @ start)
        return Factors(left, nan_unless_finite(matrix.T @ left, matrix), shape, dtype)


def _decode(payload: PyTree) -> PyTree:
    def decode_one(part: Factors | jax.Array) -> jax.Array:
        if not _is_factors(part):
            return part
        product = jnp.matmul(part.left, part.right.T, precision="highest")
        return product.reshape(part.shape).astype(part.dtype)

    return jax.tree.map(decode_one, payload, is_leaf=_is_factors)
