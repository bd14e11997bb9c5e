"""Integers of any width packed into bytes, as they go over the wire."""

import jax
import jax.numpy as jnp


def pack(codes: jax.Array, bits: int) -> jax.Array:
    """Returns unsigned codes below `2**bits`, uint32 [n], as bytes, uint8 [ceil(n * bits / 8)].

    >>> pack(jnp.array([1, 2, 3], jnp.uint32), 4).tolist()
    [33, 3]
    """
    if bits == 8:
        return codes.astype(jnp.uint8)
    digits = (codes[:, None] >> jnp.arange(bits, dtype=jnp.uint32)[None, :]) & 1
    return jnp.packbits(digits.astype(jnp.uint8).ravel(), bitorder="little")


def unpack(packed: jax.Array, bits: int, count: int) -> jax.Array:
    """Returns the first `count` codes of what `pack` made, uint32 [count]."""
    if bits == 8:
        return packed.astype(jnp.uint32)
    digits = jnp.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return (digits.astype(jnp.uint32) << jnp.arange(bits, dtype=jnp.uint32)[None, :]).sum(1, dtype=jnp.uint32)
