"""DRIVE and EDEN: a rotated update rounded to the best levels for normal numbers, and a scale that undoes the bias."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr, ndtri

from fedjax_edge.compression.leafwise import leafwise
from fedjax_edge.compression.norms import l2_norm
from fedjax_edge.compression.packing import Packed, pack, unpack
from fedjax_edge.compression.rotated import rotated
from fedjax_edge.core import checks
from fedjax_edge.core.division import ratio
from fedjax_edge.core.protocols import Codec

_CELLS, _RANGE = 4096, 5.0  # a table that finds a number's level: cells so narrow that each holds one bound at most


class Rounded(NamedTuple):
    """What is sent of the rotated update: codes of the levels, and what they are multiplied by."""

    codes: Packed
    scale: jax.Array  # float32 []


def drive() -> Codec:
    """Returns the codec that sends the sign of each coordinate of the rotated update, and one unbiased scale.

    The scale is `|x|**2 / sum|R(x)|`: what is decoded has the inner product `|x|**2` with the update, whatever the
    rotation `R`. This is `eden(1)`, where the rest is said. The squared error is at most some `(pi / 2 - 1) * |x|**2`.

    Source: Vargaftik et al., "DRIVE: One-bit Distributed Mean Estimation", NeurIPS 2021 (arXiv:2105.08339),
    Algorithm 1, with its unbiased scale.

    >>> codec, update = drive(), jnp.array([1.0, -2.0, 3.0, 4.0])
    >>> round(float(codec.decode(codec.encode(update, jax.random.key(0))) @ update), 4)  # the squared norm, 30
    30.0
    """
    return eden(1)


def eden(bits: int) -> Codec:
    """Returns the codec that rotates the update and rounds it to the `2**bits` levels that suit normal numbers best.

    The levels are Lloyd's and Max's for the standard normal distribution, times `|x| / sqrt(m)` for the `m` coordinates
    of the rotated update (`rotated` pads to a power of two), times the factor that makes the inner product of what is
    decoded with the update exact, `|x|**2 / <R(x), rounded R(x)>`. With a uniformly random rotation that makes it
    unbiased. Two Hadamard rotations are used here (the paper uses one, which leaves a sparse update biased at any
    length: `rotated` says why); their bias vanishes as `m` grows, and is below 0.02 for `(2, 1, 0, ...)` of 500
    numbers. It costs `m * bits` bits, in whole bytes, 32 for the
    scale and 32 for the rotation's seed. The squared error is, for large `m`, `|x|**2` times

    ====  =====  =====  ======  =======  =======  =======
    bits  1      2      3       4        6        8
    ====  =====  =====  ======  =======  =======  =======
    at    0.571  0.133  0.0358  0.00959  0.00065  0.00004
    ====  =====  =====  ======  =======  =======  =======

    ==============================  =====================================================================
    input                           decoded
    ==============================  =====================================================================
    zero everywhere                 itself
    a single number                 itself
    empty                           empty
    NaN or infinite anywhere        no number is finite, so that the round can reject it; likewise a norm
                                    or a sum that overflows float32
    narrower than float32           rounded to that dtype: unbiased but for that
    ==============================  =====================================================================

    Args:
      bits: per coordinate, 1 to 8.

    Raises:
      ValueError: for bits out of range.

    Source: Vargaftik et al., "EDEN: Communication-Efficient and Robust Distributed Mean Estimation for Federated
    Learning", ICML 2022 (arXiv:2108.08842), Algorithm 1; levels: Max, "Quantizing for Minimum
    Distortion", IRE Transactions on Information Theory 1960.

    >>> codec = eden(2)
    >>> update = jnp.array([1.0, -2.0, 3.0, 4.0])
    >>> decoded = codec.decode(codec.encode(update, jax.random.key(0)))
    >>> round(float(decoded @ update), 4)  # the squared norm, 30
    30.0
    """
    checks.integer("bits", bits, at_most=8)
    levels = normal_levels(2**bits)
    bounds = np.append((levels[1:] + levels[:-1]) / 2, np.float32(np.inf))
    below = np.searchsorted(bounds, np.linspace(-_RANGE, _RANGE, _CELLS, endpoint=False)).astype(np.int32)

    def encode_leaf(values: jax.Array, draws: None) -> Rounded:
        length = l2_norm(values)
        unit = ratio(values, length) * values.size**0.5
        cell = jnp.clip((unit + _RANGE) * (_CELLS / (2 * _RANGE)), 0, _CELLS - 1).astype(jnp.int32)
        codes = jnp.asarray(below)[cell]
        codes += (unit >= jnp.asarray(bounds)[codes]).astype(jnp.int32)
        overlap = jnp.mean(unit * jnp.asarray(levels)[codes])
        return Rounded(pack(codes.astype(jnp.uint32), bits), ratio(length * values.size**-0.5, overlap))

    def decode_leaf(content: Rounded, size: int) -> jax.Array:
        return content.scale * jnp.asarray(levels)[unpack(content.codes)]

    return rotated(leafwise(encode_leaf, decode_leaf), times=2)


@cache
def normal_levels(count: int) -> np.ndarray:
    """Returns the `count` levels of least squared error for standard normal numbers, float32 [count], by Lloyd's way.

    >>> normal_levels(4).round(3).tolist()
    [-1.5099999904632568, -0.453000009059906, 0.453000009059906, 1.5099999904632568]
    """
    levels = 3**0.5 * ndtri((np.arange(count) + 0.5) / count)  # nearly right for many levels (Panter and Dite)
    for _ in range(1000):
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        levels = -np.diff(np.exp(-(edges**2) / 2)) / np.diff(ndtr(edges)) / (2 * np.pi) ** 0.5
    return ((levels - levels[::-1]) / 2).astype(np.float32)
