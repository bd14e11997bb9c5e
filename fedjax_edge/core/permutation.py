"""A keyed permutation of [0, n), evaluated index by index, for any n known only at run time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

BATCH_ROUNDS = 24
COHORT_ROUNDS = 32


def permutation(key: jax.Array, size: jax.Array | int, rounds: int = BATCH_ROUNDS) -> Callable[[jax.Array], jax.Array]:
    """Returns a random permutation of [0, size) as a function of the index; its cost does not depend on `size`.

    The swap-or-not shuffle: each round pairs `x` with `pivot - x` and swaps the pair if a coin, tossed for the larger
    of the two, says so. More rounds are closer to uniform: batches take 24, cohorts 32. With fair coins the order at
    the worst size below 8, which is 4, is within 8.4e-6 and 2.0e-7 of uniform in total variation (by enumeration).

    Args:
      key: consumed.
      size: int32 [], from 1 to 2^31 - 1; a size of 0 is treated as 1.
      rounds: swap-or-not rounds.

    Returns:
      A function from int32 [...] to int32 [...], a bijection of [0, size). An index at or past `size` gives a value
      that looks valid: mask it.

    Source: Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card Shuffle", CRYPTO 2012, Figure 1, with
    murmur3's 32-bit finalizer in the place of the round function.

    >>> sorted(permutation(jax.random.key(0), 5)(jnp.arange(5)).tolist())
    [0, 1, 2, 3, 4]
    """
    size = jnp.maximum(jnp.asarray(size).astype(jnp.uint32), jnp.uint32(1))
    words = jax.random.bits(key, (2, rounds), jnp.uint32)
    pivots, salts = words[0] % size, words[1]

    def swap_or_not(x: jax.Array, pivot_and_salt: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        pivot, salt = pivot_and_salt
        partner = jnp.where(x <= pivot, pivot - x, pivot + (size - x))
        swap = _finalize(jnp.maximum(x, partner) ^ salt) >> 31 == 1
        return jnp.where(swap, partner, x), None

    def permute(index: jax.Array) -> jax.Array:
        x = jnp.asarray(index).astype(jnp.uint32)
        return jax.lax.scan(swap_or_not, x, (pivots, salts))[0].astype(jnp.int32)

    return permute


def _finalize(word: jax.Array) -> jax.Array:
    """The 32-bit finalizer of MurmurHash3 (Appleby 2011): every input bit moves every output bit."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
