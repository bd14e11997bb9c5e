"""A random rotation round a codec: it spreads an update's energy over all coordinates before they are rounded."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from fedjax_edge.core import checks
from fedjax_edge.core.flatten import TreeShape, flatten
from fedjax_edge.core.hadamard import hadamard, power_of_two, random_signs
from fedjax_edge.core.protocols import Codec, PyTree


@partial(jax.tree_util.register_dataclass, data_fields=["payload", "seed"], meta_fields=["shape"])
@dataclass(frozen=True)
class Rotated:
    """What is sent: the payload of the rotated update, and the seed to rotate it back with."""

    payload: PyTree
    seed: jax.Array  # uint32 []
    shape: TreeShape


def rotated(codec: Codec, times: int = 1) -> Codec:
    """Returns the codec that rotates the whole update at random, applies `codec`, and rotates back what is received.

    The update as one vector, padded with zeros to the next power of two `m`, has each number's sign flipped by a coin
    and is multiplied by the Hadamard matrix over `sqrt(m)`, in `m * log2(m)` additions. The coins come from a 32-bit
    seed that the client draws from its key and sends: 32 bits more than `codec` takes for `m` numbers in one leaf.
    One such rotation leaves few values if few numbers are large: `(2, 1, 0, ...)` becomes `(+-3, +-1, ...) / sqrt(m)`.
    A second one, with coins of its own from the same seed, makes any long update nearly normal.

    Squared errors are those of `codec` for the rotated vector, of the same norm, less what falls on the padding; if
    `codec` is unbiased whatever it is given, so is this. A rotated vector is nearly normal, and spans some
    `sqrt(8 * log(m) / m)` of its norm: `stochastic_uniform` with `k` levels has an error of at most
    `(2 * log(m) + 2) / (k - 1)**2 * |x|**2`.

    ==============================  ========================================================================
    input                           decoded by an exact codec
    ==============================  ========================================================================
    zero everywhere                 itself
    any other                       itself up to rounding relative to the norm of the whole update: a zero
                                    leaf beside others receives a share of the error
    empty                           empty
    NaN or infinite anywhere        no number is finite, so that the round can reject it; likewise a sum that
                                    overflows float32
    ==============================  ========================================================================

    Args:
      codec: what the rotated update is sent through.
      times: how often it is rotated.

    Raises:
      TypeError: for anything but a `Codec`.
      ValueError: for less than once.

    Source: Suresh et al., "Distributed Mean Estimation with Limited Communication", ICML 2017 (arXiv:1611.00429),
    Section 3, stochastic rotated quantization.

    >>> from fedjax_edge.compression.stochastic_uniform import stochastic_uniform
    >>> codec = rotated(stochastic_uniform(16))
    >>> [round(float(x), 2) for x in codec.decode(codec.encode(jnp.array([1.0, 0.0, 0.0]), jax.random.key(0)))]
    [1.0, 0.0, 0.0]
    """
    if not isinstance(codec, Codec):
        raise TypeError(f"rotated wraps a Codec, got {codec!r}")
    checks.integer("times", times)

    def encode(update: PyTree, key: jax.Array) -> Rotated:
        vector, shape = flatten(update)
        seed_key, codec_key = jax.random.split(key)
        seed = jax.random.bits(seed_key, (), jnp.uint32)
        vector = jnp.pad(vector, (0, power_of_two(shape.size) - shape.size))
        for signs in random_signs(seed, times * vector.size).reshape(times, vector.size):
            vector = hadamard(vector * signs)
        return Rotated(codec.encode(vector, codec_key), seed, shape)

    def decode(payload: Rotated) -> PyTree:
        vector = codec.decode(payload.payload)
        for signs in random_signs(payload.seed, times * vector.size).reshape(times, vector.size)[::-1]:
            vector = hadamard(vector) * signs
        return payload.shape.unflatten(vector[: payload.shape.size])

    return Codec(encode, decode)
