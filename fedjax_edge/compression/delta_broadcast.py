"""Delta broadcast: the server sends what changed since the last broadcast, compressed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_edge.core.counts import Count
from fedjax_edge.core.protocols import Codec, Downlink, PyTree
from fedjax_edge.core.trees import select, size_in_bits


class Broadcasts(NamedTuple):
    """What the server keeps: the model as clients know it, and how many broadcasts made it."""

    reference: PyTree
    number: jax.Array  # int32 []


def delta_broadcast(codec: Codec) -> Downlink:
    """Returns the downlink that sends the difference between the model and what clients know of it, by `codec`.

    What a broadcast lost is part of the next difference, so that a biased codec (`top_k`) serves as well as an unbiased
    one: if the model stands still, clients come to know it exactly under any contraction. The first broadcast is the
    initial model itself.

    A client is sent what it lacks: every difference since it last took part, or, where that is less, the model as the
    others know it, uncompressed. Its memory is the number of the broadcast it last received.

    ==========================================  ====================================================
    client                                      bits
    ==========================================  ====================================================
    first time                                  the model's full size
    missed `m` rounds since                     `m + 1` payloads, or the full size if that is less
    ==========================================  ====================================================

    Args:
      codec: of the differences; the number of its bits must not depend on them.

    Raises:
      TypeError: for anything but a `Codec`.

    Source: EF21-P of Gruntkowska et al., "EF21-P and Friends", ICML 2023 (arXiv:2209.15218), which compresses the
    broadcast so; the catching up of clients that missed rounds is ours.

    >>> from fedjax_edge.compression import top_k
    >>> downlink = delta_broadcast(top_k(0.5))
    >>> state = downlink.init(jnp.array([1.0, 2.0]))
    >>> received, state, bits = downlink.apply(jnp.array([1.5, 2.1]), state, None)
    >>> received.tolist(), bits
    ([1.5, 2.0], 40)
    """
    if not isinstance(codec, Codec):
        raise TypeError(f"delta_broadcast takes a Codec, got {codec!r}")

    def init(message: PyTree) -> Broadcasts:
        return Broadcasts(message, jnp.int32(0))

    def apply(message: PyTree, state: Broadcasts, key: jax.Array) -> tuple[PyTree, Broadcasts, int]:
        payload = codec.encode(optax.tree.sub(message, state.reference), key)
        reference = optax.tree.add(state.reference, codec.decode(payload))
        return reference, Broadcasts(reference, state.number + 1), size_in_bits(payload)

    def receive(bits: int, last: jax.Array, state: Broadcasts) -> tuple[Count, jax.Array]:
        full = size_in_bits(state.reference)
        missing = state.number - last
        knows = (last > 0) & (missing <= full // max(bits, 1))
        differences = Count.of(bits).times(jnp.where(knows, missing, 0))
        return select(knows, differences, Count.of(full)), state.number

    return Downlink(init, apply, client_init=lambda: jnp.int32(0), receive=receive)
