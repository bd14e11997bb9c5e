"""Fixed-point rounding, the quantization of the introduction to edge computing: simple, and biased."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from fedjax_edge.compression.packing import Packed, pack, unpack
from fedjax_edge.core import checks
from fedjax_edge.core.flatten import TreeShape, flatten
from fedjax_edge.core.protocols import Codec, PyTree


@partial(jax.tree_util.register_dataclass, data_fields=["codes"], meta_fields=["shape"])
@dataclass(frozen=True)
class FixedPoint:
    """What is sent: every number's multiple of the grid's step, offset to be unsigned."""

    codes: Packed
    shape: TreeShape


def fixed_point(bits: int) -> Codec:
    """Returns the codec `round(p * (2**bits - 1)) / (2**bits - 1)` for numbers in [-1, 1].

    The magnitude takes `bits` bits and the sign one more. Biased: the error of one number is up to half a step, and
    the same each time.

    ================================  ===============================================================
    input                             decoded
    ================================  ===============================================================
    in [-1, 1]                        the nearest multiple of 1 / (2**bits - 1), ties to the even one
    beyond                            -1 or 1
    smaller than half a step          0: it suits parameters, or updates scaled to the range
    NaN or infinite                   NaN (a code of its own), so that the round can reject it
    ================================  ===============================================================

    Args:
      bits: of the magnitude, 1 to 16.

    Raises:
      ValueError: for bits out of range.

    >>> codec = fixed_point(8)
    >>> decoded = codec.decode(codec.encode({"w": jnp.array([0.1])}, None))
    >>> bool(decoded["w"][0] == jnp.float32(26 / 255))
    True
    """
    checks.integer("bits", bits, at_most=16)
    steps = 2**bits - 1
    not_a_number = 2 * steps + 1

    def encode(update: PyTree, key: jax.Array) -> FixedPoint:
        vector, shape = flatten(update)
        codes = jnp.round(jnp.clip(vector, -1, 1) * steps) + steps
        codes = jnp.where(jnp.isfinite(vector), codes, not_a_number)
        return FixedPoint(pack(codes.astype(jnp.uint32), bits + 1), shape)

    def decode(payload: FixedPoint) -> PyTree:
        codes = unpack(payload.codes)
        values = (codes.astype(jnp.float32) - steps) / steps
        return payload.shape.unflatten(jnp.where(codes == not_a_number, jnp.nan, values))

    return Codec(encode, decode)
