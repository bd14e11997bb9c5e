"""Signed numbers rounded at random to evenly spaced levels up to a scale: what QSGD and TernGrad share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_edge.compression.leafwise import leafwise
from fedjax_edge.compression.packing import Packed, pack, unpack
from fedjax_edge.core.division import ratio
from fedjax_edge.core.protocols import Codec


class Levels(NamedTuple):
    """What is sent of one leaf: codes of the levels -levels ... levels, and what the outermost stands for."""

    codes: Packed
    scale: jax.Array  # float32 []


def stochastic_levels(levels: int, scale_of: Callable[[jax.Array], jax.Array]) -> Codec:
    """Returns the unbiased codec with `2 * levels + 1` levels up to `scale_of(values)`, at least the largest magnitude.

    Unbiased to 2^-23 of a level, as draws have 23 bits: of numbers that are less than that, it sends too many.

    A leaf costs `ceil(log2(2 * levels + 1))` bits a number, in whole bytes, and 32 for the scale.
    """
    bits = (2 * levels).bit_length()

    def encode_leaf(values: jax.Array, draws: jax.Array) -> Levels:
        scale = scale_of(values)
        level = ratio(jnp.abs(values), scale) * levels
        below = jnp.floor(level)
        rounds_up = draws < level - below  # exact, where level + uniform would round
        level = jnp.clip(below + rounds_up.astype(jnp.float32), 0, levels)
        codes = jnp.where(values < 0, -level, level) + levels
        return Levels(pack(codes.astype(jnp.uint32), bits), scale)

    def decode_leaf(content: Levels, size: int) -> jax.Array:
        codes = unpack(content.codes).astype(jnp.float32)
        return content.scale * ((codes - levels) / levels)

    return leafwise(encode_leaf, decode_leaf, jax.random.uniform)
