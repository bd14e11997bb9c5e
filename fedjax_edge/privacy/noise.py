"""Noise for privacy: normal and Laplace draws whose tails end where nothing is left, at a probability of 2^-64.

`jax.random.normal` transforms a number of 23 bits and ends at 5.4 standard deviations. What one neighbour releases
beyond, the other cannot, which would cost up to 4.9e-7 of delta for each unit that the numbers move, in their noise.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri


def normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Standard normal draws, of magnitude 9.16 at most: the inverse distribution function of a fine uniform number.

    >>> normal(jax.random.key(0), (2, 3), jnp.float32).shape
    (2, 3)
    """
    uniform, sign = _uniform_and_sign(key, shape, dtype)
    return (-sign * ndtri(uniform / 2)).astype(dtype)


def laplace(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Laplace draws of scale 1, of magnitude 44.4 at most.

    >>> laplace(jax.random.key(0), (2, 3), jnp.float32).shape
    (2, 3)
    """
    uniform, sign = _uniform_and_sign(key, shape, dtype)
    return (-sign * jnp.log(uniform)).astype(dtype)


def _uniform_and_sign(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """A number in (0, 1], an odd multiple of 2^-64 before rounding, and a fair sign; at least float32."""
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    high, low = jax.random.bits(key, (2, *shape), jnp.uint32)
    uniform = high.astype(wide) * 2.0**-32 + (low | 1).astype(wide) * 2.0**-64
    return uniform, jnp.where(low & 1, 1, -1).astype(wide)
