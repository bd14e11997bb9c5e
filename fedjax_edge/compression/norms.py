"""Norms of a vector that neither overflow nor vanish before the vector does."""

import jax
import jax.numpy as jnp

from fedjax_edge.core.division import ratio


def largest(values: jax.Array) -> jax.Array:
    """Returns the largest magnitude, float32 []; 0 of none, NaN unless all are finite.

    The maximum alone does not say so: XLA on CPU loses a NaN where it takes the maxima of many rows (jax 0.10.2).
    """
    return nan_unless_finite(jnp.max(jnp.abs(values), initial=0), values)


def l2_norm(values: jax.Array) -> jax.Array:
    """Returns the square root of the sum of squares, float32 [], likewise.

    >>> round(float(l2_norm(jnp.array([3e30, 4e30]))) / 1e30, 5)
    5.0
    """
    unit = largest(values)
    scaled = ratio(values, unit)
    return unit * jnp.sqrt(jnp.sum(scaled * scaled))


def mean_magnitude(values: jax.Array) -> jax.Array:
    """Returns the mean of the magnitudes, float32 [], likewise."""
    unit = largest(values)
    return unit * (jnp.sum(ratio(jnp.abs(values), unit)) / max(values.size, 1))


def nan_unless_finite(values: jax.Array, source: jax.Array) -> jax.Array:
    """Returns `values`, or as many NaNs if any number of `source` is not finite: a round must see what is not sent."""
    return jnp.where(jnp.isfinite(source).all(), values, jnp.nan)
