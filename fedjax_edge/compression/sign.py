"""Only the signs, one bit a number: as they are, or times the mean magnitude."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_edge.compression.leafwise import leafwise
from fedjax_edge.compression.norms import mean_magnitude
from fedjax_edge.compression.packing import Packed, pack, unpack
from fedjax_edge.core.flatten import TreeShape, flatten
from fedjax_edge.core.protocols import Codec, PyTree


@partial(jax.tree_util.register_dataclass, data_fields=["signs", "is_finite"], meta_fields=["shape"])
@dataclass(frozen=True)
class Signs:
    """What is sent: every sign, and whether the update was finite."""

    signs: Packed  # 1 for minus
    is_finite: jax.Array  # bool []
    shape: TreeShape


class ScaledSigns(NamedTuple):
    """What is sent of one leaf: every sign, and the mean magnitude."""

    signs: Packed  # 1 for minus
    scale: jax.Array  # float32 []


def sign() -> Codec:
    """Returns the codec that sends the sign of each number: 1 bit, in whole bytes, and a byte for the update.

    Deterministic and biased without bound: of the magnitude nothing is left, so choose the server's learning rate for
    numbers of magnitude 1. signSGD with majority vote is this codec with `fe.aggregation.majority_vote`.

    ==========================  ========================================================
    input                       decoded
    ==========================  ========================================================
    above 0, 0, -0              1, 1, 1 (a bit has no room for a zero)
    below 0                     -1
    empty                       empty
    NaN or infinite anywhere    all NaN, so that the round can reject it
    ==========================  ========================================================

    Source: Bernstein et al., "signSGD: Compressed Optimisation for Non-Convex Problems", ICML 2018 (arXiv:1802.04434),
    Algorithm 1.

    >>> codec = sign()
    >>> codec.decode(codec.encode(jnp.array([0.5, -4.0, 0.0]), None)).tolist()
    [1.0, -1.0, 1.0]
    """

    def encode(update: PyTree, key: jax.Array) -> Signs:
        vector, shape = flatten(update)
        return Signs(pack_signs(vector), jnp.isfinite(vector).all(), shape)

    def decode(payload: Signs) -> PyTree:
        signs = unpack_signs(payload.signs)
        return payload.shape.unflatten(jnp.where(payload.is_finite, signs, jnp.nan))

    return Codec(encode, decode)


def scaled_sign() -> Codec:
    """Returns the codec that sends each leaf as its signs times its mean magnitude: EF-signSGD's, in `error_feedback`.

    Deterministic and biased. The squared error of a leaf of `n` numbers is `|x|**2 - (sum|x|)**2 / n`, at most
    `(1 - 1 / n) * |x|**2`: a contraction, as `error_feedback` needs. A leaf costs 1 bit a number, in whole bytes, and
    32 for its scale.

    ==============================  ========================================================
    input                           decoded
    ==============================  ========================================================
    equal magnitudes, zero, size-1  itself, up to rounding
    0 among others                  plus the mean magnitude
    empty                           empty
    NaN or infinite anywhere        a leaf that is not finite, so that the round can reject it
    ==============================  ========================================================

    Source: Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019
    (arXiv:1901.09847), Algorithm 1; the contraction is what it calls the density.

    >>> codec = scaled_sign()
    >>> codec.decode(codec.encode(jnp.array([0.5, -4.0, 0.0]), None)).tolist()
    [1.5, -1.5, 1.5]
    """

    def encode_leaf(values: jax.Array, draws: None) -> ScaledSigns:
        return ScaledSigns(pack_signs(values), mean_magnitude(values))

    def decode_leaf(content: ScaledSigns, size: int) -> jax.Array:
        return content.scale * unpack_signs(content.signs)

    return leafwise(encode_leaf, decode_leaf)


def pack_signs(values: jax.Array) -> Packed:
    """Returns a bit for each number, 1 below zero."""
    return pack((values < 0).astype(jnp.uint32), 1)


def unpack_signs(packed: Packed) -> jax.Array:
    """Returns 1 or -1 for each bit, float32 [count]."""
    return 1 - 2 * unpack(packed).astype(jnp.float32)
