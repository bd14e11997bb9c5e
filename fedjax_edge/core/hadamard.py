"""The Hadamard rotation with random signs: it spreads a vector's energy over all coordinates."""

import jax
import jax.numpy as jnp


def hadamard(vector: jax.Array) -> jax.Array:
    """Returns the orthonormal Walsh-Hadamard transform of a vector, float32 [power of two]: its own inverse.

    >>> hadamard(jnp.array([1.0, 0.0, 0.0, 0.0])).tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    size, half = vector.size, 1
    while half < size:
        pairs = vector.reshape(-1, 2, half)
        vector = jnp.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
        half *= 2
    return vector.ravel() * size**-0.5


def power_of_two(size: int) -> int:
    """Returns the least power of two of at least `size`; 1 for 0."""
    return 1 << max(size - 1, 0).bit_length()


def random_signs(seed: jax.Array, size: int) -> jax.Array:
    """Returns fair coins, 1 or -1, float32 [size], from a seed, uint32 []."""
    words = jax.random.bits(jax.random.key(seed), (-(-size // 32), 1), jnp.uint32)
    coins = (words >> jnp.arange(32, dtype=jnp.uint32)[None, :]) & 1
    return 1 - 2 * coins.ravel()[:size].astype(jnp.float32)
