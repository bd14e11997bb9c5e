"""Integers of any width packed into bytes, as they go over the wire."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.tree_util.register_dataclass, data_fields=["content"], meta_fields=["bits", "count"])
@dataclass(frozen=True)
class Packed:
    """Codes as they are sent; how wide and how many they are is known to both sides."""

    content: jax.Array  # uint8 [ceil(count * bits / 8)]
    bits: int
    count: int


def pack(codes: jax.Array, bits: int) -> Packed:
    """Returns unsigned codes below `2**bits`, uint32 [n], as bytes.

    Eight codes fill `bits` bytes; a byte is put together from the codes that reach into it.

    >>> pack(jnp.array([1, 2, 3], jnp.uint32), 4).content.tolist()
    [33, 3]
    """
    count = codes.size
    if bits == 8:
        return Packed(codes.astype(jnp.uint8), bits, count)
    group = jnp.pad(codes.astype(jnp.uint32), (0, -count % 8)).reshape(-1, 8)
    columns = []
    for byte in range(bits):
        reaching = range(8 * byte // bits, (8 * byte + 7) // bits + 1)
        columns.append(sum(_shifted(group[:, code], code * bits - 8 * byte) for code in reaching))
    packed = jnp.stack(columns, axis=1).astype(jnp.uint8)  # which keeps the lowest eight bits
    return Packed(packed.ravel()[: -(-count * bits // 8)], bits, count)


def unpack(packed: Packed) -> jax.Array:
    """Returns the codes that `pack` was given, uint32 [count]."""
    content, bits, count = packed.content, packed.bits, packed.count
    if bits == 8:
        return content.astype(jnp.uint32)
    group = jnp.pad(content, (0, -(-count // 8) * bits - content.size)).reshape(-1, bits).astype(jnp.uint32)
    columns = []
    for code in range(8):
        reached = range(code * bits // 8, (code * bits + bits - 1) // 8 + 1)
        columns.append(sum(_shifted(group[:, byte], 8 * byte - code * bits) for byte in reached))
    mask = jnp.uint32(2**bits - 1)
    return (jnp.stack(columns, axis=1) & mask).ravel()[:count]


def _shifted(words: jax.Array, left: int) -> jax.Array:
    return words << jnp.uint32(left) if left >= 0 else words >> jnp.uint32(-left)
