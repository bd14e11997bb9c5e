"""Evenly spaced levels round zero, the nearest one taken: what a device stores of a model."""

import jax
import jax.numpy as jnp

from fedjax_edge.compression.leafwise import leafwise
from fedjax_edge.compression.levels import Levels
from fedjax_edge.compression.norms import largest
from fedjax_edge.compression.packing import pack, unpack
from fedjax_edge.core import checks
from fedjax_edge.core.division import ratio
from fedjax_edge.core.protocols import Codec


def symmetric(bits: int = 8) -> Codec:
    """Returns the codec that rounds each number to the nearest of `2**bits - 1` levels round zero: weights in 8 bits.

    The levels reach from minus to plus the largest magnitude of each leaf.
    Deterministic, so that all devices hold the same model, and biased: a number moves by at most half a step, the
    largest magnitude over `2**bits - 2`, the same each time. Zero is a level: what was pruned stays so. A leaf costs
    `bits` bits a number, in whole bytes, and 32 for its scale. `decode(encode(params, None))` is the model as the
    device computes with it. For updates, `stochastic_uniform` is unbiased.

    ==============================  ===========================================================
    input                           decoded
    ==============================  ===========================================================
    zero, size-1                    itself
    constant                        itself, up to rounding
    below half a step               0
    empty                           empty
    NaN or infinite anywhere        a leaf of NaNs, so that the round can reject it
    ==============================  ===========================================================

    Args:
      bits: per number, 2 to 16.

    Raises:
      ValueError: for bits out of range.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", CVPR 2018 (arXiv:1712.05877), Section 2.1, with its zero-point in the middle.

    >>> codec = symmetric(8)
    >>> weights = jnp.array([0.0, 1.27, -0.634])
    >>> [round(float(weight), 4) for weight in codec.decode(codec.encode(weights, None))]
    [0.0, 1.27, -0.63]
    """
    checks.integer("bits", bits, at_least=2, at_most=16)
    top = 2 ** (bits - 1) - 1

    def encode_leaf(values: jax.Array, draws: None) -> Levels:
        scale = largest(values)
        level = jnp.clip(jnp.round(ratio(values, scale) * top), -top, top)
        return Levels(pack((level + top).astype(jnp.uint32), bits), scale)

    def decode_leaf(content: Levels, size: int) -> jax.Array:
        return content.scale * ((unpack(content.codes).astype(jnp.float32) - top) / top)

    return leafwise(encode_leaf, decode_leaf)
