"""Top-k sparsification: only the largest numbers are sent."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from fedjax_edge.compression.packing import Packed, pack, unpack
from fedjax_edge.compression.selection import largest_magnitudes
from fedjax_edge.core import checks
from fedjax_edge.core.flatten import TreeShape, flatten
from fedjax_edge.core.protocols import Codec, PyTree


@partial(jax.tree_util.register_dataclass, data_fields=["values", "indices"], meta_fields=["shape"])
@dataclass(frozen=True)
class Sparse:
    """What is sent: the numbers that are kept, and where they belong."""

    values: jax.Array  # float32 [k]
    indices: Packed
    shape: TreeShape


def top_k(fraction: float) -> Codec:
    """Returns the codec that keeps the largest magnitudes of the whole update and drops the rest.

    Of `n` numbers it keeps `k = max(1, round(fraction * n))`, at 32 bits each and `ceil(log2(n))` for each index, at
    least 1 and together in whole bytes (40 in all for a single number). Biased; its squared error is at most
    `(1 - k / n) * |x|**2`, the contraction that `error_feedback` needs: wrapped in it, what is dropped is sent later.
    (`per_leaf(top_k(...))` keeps a share of every leaf.)

    ==============================  ===================================================================
    input                           decoded
    ==============================  ===================================================================
    fraction 1, one number          itself
    at most `k` numbers not zero    itself
    equal magnitudes                the first ones stay, in the order of the leaves
    empty                           empty, at no cost
    NaN or infinite                 itself: it counts as largest, and reaches the server to be rejected
    ==============================  ===================================================================

    Args:
      fraction: of the numbers to keep, in (0, 1].

    Raises:
      ValueError: for a fraction out of range.

    Source: Aji and Heafield, "Sparse Communication for Distributed Gradient Descent", EMNLP 2017 (arXiv:1704.05021).

    >>> codec = top_k(0.5)
    >>> codec.decode(codec.encode(jnp.array([1.0, -3.0, 0.5, 2.0]), None)).tolist()
    [0.0, -3.0, 0.0, 2.0]
    """
    checks.probability("fraction", fraction)

    def encode(update: PyTree, key: jax.Array) -> Sparse:
        vector, shape = flatten(update)
        indices = largest_magnitudes(vector, _kept(fraction, shape.size))
        return Sparse(vector[indices], pack(indices.astype(jnp.uint32), _index_bits(shape.size)), shape)

    def decode(payload: Sparse) -> PyTree:
        size = payload.shape.size
        indices = unpack(payload.indices).astype(jnp.int32)
        return payload.shape.unflatten(jnp.zeros(size, jnp.float32).at[indices].set(payload.values))

    return Codec(encode, decode)


def _kept(fraction: float, size: int) -> int:
    return min(size, max(1, round(fraction * size)))


def _index_bits(size: int) -> int:
    return max(size - 1, 1).bit_length()
