"""Integers of any width packed into bytes, as they go over the wire."""

import jax
import jax.numpy as jnp


def pack(codes: jax.Array, bits: int) -> jax.Array:
    """Returns unsigned codes below `2**bits`, uint32 [n], as bytes, uint8 [ceil(n * bits / 8)].

    Eight codes fill `bits` bytes; a byte is put together from the codes that reach into it.

    >>> pack(jnp.array([1, 2, 3], jnp.uint32), 4).tolist()
    [33, 3]
    """
    if bits == 8:
        return codes.astype(jnp.uint8)
    count = codes.size
    group = jnp.pad(codes.astype(jnp.uint32), (0, -count % 8)).reshape(-1, 8)
    columns = []
    for byte in range(bits):
        reaching = range(8 * byte // bits, (8 * byte + 7) // bits + 1)
        columns.append(sum(_shifted(group[:, code], code * bits - 8 * byte) for code in reaching))
    packed = jnp.stack(columns, axis=1).astype(jnp.uint8)  # which keeps the lowest eight bits
    return packed.ravel()[: -(-count * bits // 8)]


def unpack(packed: jax.Array, bits: int, count: int) -> jax.Array:
    """Returns the first `count` codes of what `pack` made, uint32 [count]."""
    if bits == 8:
        return packed.astype(jnp.uint32)
    group = jnp.pad(packed, (0, -(-count // 8) * bits - packed.size)).reshape(-1, bits).astype(jnp.uint32)
    columns = []
    for code in range(8):
        reached = range(code * bits // 8, (code * bits + bits - 1) // 8 + 1)
        columns.append(sum(_shifted(group[:, byte], 8 * byte - code * bits) for byte in reached))
    mask = jnp.uint32(2**bits - 1)
    return (jnp.stack(columns, axis=1) & mask).ravel()[:count]


def _shifted(words: jax.Array, left: int) -> jax.Array:
    return words << jnp.uint32(left) if left >= 0 else words >> jnp.uint32(-left)
