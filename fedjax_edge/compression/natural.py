"""Natural compression: the nearest powers of two at random, unbiased."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from fedjax_edge.compression.packing import Packed, pack, unpack
from fedjax_edge.core.flatten import TreeShape, flatten
from fedjax_edge.core.protocols import Codec, PyTree

_MANTISSA, _CODE = 23, 9  # bits of a float32: mantissa; sign and exponent
_EXPONENT = 2**8 - 1


@partial(jax.tree_util.register_dataclass, data_fields=["codes"], meta_fields=["shape"])
@dataclass(frozen=True)
class Powers:
    """What is sent: the sign and exponent of every number."""

    codes: Packed
    shape: TreeShape


def natural_compression() -> Codec:
    """Returns the codec that rounds each number at random to one of the two powers of two that enclose it.

    It adds random bits to the mantissa, drops it, and sends sign and exponent, 9 bits a number in whole bytes; a carry
    out of the mantissa has just the probability that makes the expectation exact. The squared error is at most an
    eighth of the number's square in expectation, down to 2**-126.

    ==============================  ================================================================
    input                           decoded
    ==============================  ================================================================
    a power of two, zero            itself
    below the smallest normal       0 or the smallest normal number, 2**-126: unbiased there too
    above 2**127                    2**127 or infinite, so that the round can reject it
    NaN or infinite                 infinite
    empty                           empty
    ==============================  ================================================================

    In the result's dtype: a power of two beyond the range of float16 becomes infinite or zero there.

    Source: Horváth et al., "Natural Compression for Distributed Deep Learning", MSML 2022 (arXiv:1905.10988),
    whose variance is 1/8.

    >>> codec = natural_compression()
    >>> codec.decode(codec.encode(jnp.array([0.5, -4.0, 0.0]), jax.random.key(0))).tolist()
    [0.5, -4.0, 0.0]
    """

    def encode(update: PyTree, key: jax.Array) -> Powers:
        vector, shape = flatten(update)
        word = jax.lax.bitcast_convert_type(vector, jnp.uint32)
        draws = jax.random.bits(key, word.shape) >> (32 - _MANTISSA)
        rounded = (word + draws) >> _MANTISSA
        code = word >> _MANTISSA
        not_finite = code & _EXPONENT == _EXPONENT  # a carry would turn a NaN into a zero
        return Powers(pack(jnp.where(not_finite, code, rounded), _CODE), shape)

    def decode(payload: Powers) -> PyTree:
        words = unpack(payload.codes) << _MANTISSA
        return payload.shape.unflatten(jax.lax.bitcast_convert_type(words, jnp.float32))

    return Codec(encode, decode)
