"""Narrower floats: bfloat16, float16 and the two of eight bits, saturating."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_edge.compression.leafwise import leafwise
from fedjax_edge.core.protocols import Codec

_DTYPES = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


class Cast(NamedTuple):
    """What is sent of one leaf."""

    values: jax.Array  # of the narrow dtype


def half_precision(dtype: jax.typing.DTypeLike = jnp.bfloat16) -> Codec:
    """Returns the codec that sends each number as the nearest one of a narrower floating-point type.

    Deterministic and biased: a number moves by at most the relative error below, the same each time; below the smallest
    normal one it is the absolute error that no longer shrinks. 16 or 8 bits a number.

    =============  =======  ==============  ===============  =========
    dtype          largest  relative error  smallest (normal)  infinity
    =============  =======  ==============  ===============  =========
    bfloat16       3.39e38  2**-8           2**-126          inf
    float16        65504    2**-11          2**-14           inf
    float8_e4m3fn  448      2**-4           2**-6            NaN
    float8_e5m2    57344    2**-3           2**-14           inf
    =============  =======  ==============  ===============  =========

    ==============================  ===============================================================
    input                           decoded
    ==============================  ===============================================================
    beyond the largest              the largest, with its sign: what is finite stays so
    far below the smallest          0: scale updates up first, or wrap this in `error_feedback`
    NaN                             NaN
    infinite                        infinite or NaN, as above, so that the round can reject it
    empty                           empty
    ==============================  ===============================================================

    Args:
      dtype: bfloat16, float16, float8_e4m3fn or float8_e5m2.

    Raises:
      ValueError: for another dtype.

    Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018 (arXiv:1710.03740), and "FP8 Formats for Deep
    Learning", 2022 (arXiv:2209.05433), Table 1.

    >>> codec = half_precision(jnp.float8_e4m3fn)
    >>> codec.decode(codec.encode(jnp.array([1.0, 0.3, 1000.0]), None)).tolist()
    [1.0, 0.3125, 448.0]
    """
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = dtype
    if name not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {name}")
    top = float(jnp.finfo(dtype).max)

    def encode_leaf(values: jax.Array, draws: None) -> Cast:
        saturated = jnp.where(jnp.isfinite(values), jnp.clip(values, -top, top), values)
        return Cast(saturated.astype(dtype))

    def decode_leaf(content: Cast, size: int) -> jax.Array:
        return content.values.astype(jnp.float32)

    return leafwise(encode_leaf, decode_leaf)
