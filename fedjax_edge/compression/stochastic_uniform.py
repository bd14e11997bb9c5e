"""Stochastic uniform quantization: unbiased at any number of bits."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.compression.norms import nan_unless_finite
from fedjax_edge.compression.packing import Packed, pack, unpack
from fedjax_edge.core import checks
from fedjax_edge.core.division import ratio
from fedjax_edge.core.protocols import Codec, PyTree


@partial(jax.tree_util.register_dataclass, data_fields=["codes", "low", "step"], meta_fields=["shape", "dtype"])
@dataclass(frozen=True)
class Quantized:
    """What is sent of one leaf: packed codes, and the grid they count on."""

    codes: Packed
    low: jax.Array  # float32 []
    step: jax.Array  # float32 []
    shape: tuple[int, ...]
    dtype: jnp.dtype


def stochastic_uniform(bits: int) -> Codec:
    """Returns the codec that rounds each number at random to one of the `2**bits` levels that span its leaf.

    A number goes to one of its two neighbours on the grid from the leaf's minimum to its maximum, to each with the
    probability that makes the expectation exact, to 2^-23 of a step (draws have 23 bits). A leaf of `n` numbers costs
    `n * bits` bits, in whole bytes, and 64 for its grid. Variance: at most `(step / 2)**2` a number, where
    `step = (max - min) / (2**bits - 1)`.

    ==========================  ==========================================================
    input                       decoded
    ==========================  ==========================================================
    a number on the grid        itself, up to rounding
    constant, zero or size-1    itself
    empty                       empty
    NaN or infinite anywhere    not finite, so that the round can reject it; likewise a
                                range that overflows float32
    a step below 1.2e-38        its minimum everywhere, where a CPU flushes such steps to
                                zero: at 8 bits a range below 3e-36
    narrower than float32       rounded to that dtype, by up to half a step of it, the
                                same each time: unbiased but for that
    ==========================  ==========================================================

    Rounding lengthens an update on average, and so moves it past a norm it was clipped to: the private mean clips
    again where it sums.

    Args:
      bits: per number, 1 to 16.

    Raises:
      ValueError: for bits out of range.

    Source: Suresh et al., "Distributed Mean Estimation with Limited Communication", ICML 2017 (arXiv:1611.00429),
    Section 2.2, stochastic k-level quantization with k = 2**bits and s_i = max - min.

    >>> codec = stochastic_uniform(8)
    >>> payload = codec.encode(jnp.array([0.0, 0.3, 1.0]), jax.random.key(0))
    >>> payload.codes.content.dtype.name, bool(abs(codec.decode(payload)[1] - 0.3) < 1 / 255)
    ('uint8', True)
    """
    checks.integer("bits", bits, at_most=16)
    top = 2**bits - 1

    def encode_leaf(leaf: jax.Array, draws: jax.Array) -> Quantized:
        values = leaf.astype(jnp.float32).ravel()
        low, high = (values.min(), values.max()) if leaf.size else (jnp.float32(0), jnp.float32(0))
        step = nan_unless_finite((high - low) / top, values)  # XLA on CPU loses a NaN in the minima of many rows
        level = ratio(values - low, step)
        below = jnp.floor(level)
        rounds_up = draws < level - below  # exact, where level + uniform would round
        codes = jnp.clip(below + rounds_up.astype(jnp.float32), 0, top)
        return Quantized(pack(codes.astype(jnp.uint32), bits), low, step, leaf.shape, leaf.dtype)

    def decode_leaf(payload: Quantized) -> jax.Array:
        codes = unpack(payload.codes).astype(jnp.float32)
        return (payload.low + codes * payload.step).reshape(payload.shape).astype(payload.dtype)

    def encode(update: PyTree, key: jax.Array) -> PyTree:
        leaves, structure = jax.tree.flatten(update)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        ends = np.cumsum([leaf.size for leaf in leaves], dtype=int)
        draws = jnp.split(jax.random.uniform(key, (sum(leaf.size for leaf in leaves),)), ends[:-1])
        return structure.unflatten(map(encode_leaf, leaves, draws))

    def decode(payload: PyTree) -> PyTree:
        return jax.tree.map(decode_leaf, payload, is_leaf=lambda node: isinstance(node, Quantized))

    return Codec(encode, decode)
