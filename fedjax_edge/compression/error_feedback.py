"""Error feedback: what compression lost is remembered on the client and sent later."""

from collections.abc import Callable

import jax
import optax

from fedjax_edge.core.protocols import Codec, PyTree, UpdateTransform
from fedjax_edge.core.trees import at_least_float32, size_in_bits


def error_feedback(codec: Codec, size: Callable[[PyTree], int | jax.Array] = size_in_bits) -> UpdateTransform:
    """Returns the transform that adds a client's memory to its update, sends that through `codec`, and keeps the rest.

    At any time the sum of all that was sent plus the memory equals the sum of all updates. A client's memory lasts
    from one of its rounds to the next, however long that takes. It is kept in float32 at least.

    Args:
      codec: what updates are sent through. It must lose less than it is given (a contraction: `top_k`, `scaled_sign`,
        `random_k(..., unbiased=False)`); with one that loses more the memory grows without end.
      size: `(payload) -> bits`, what a payload costs: by default what it occupies; `coded_size` once it is
        entropy-coded.

    Raises:
      TypeError: for anything but a `Codec`.

    Source: Karimireddy et al., "Error Feedback Fixes SignSGD", ICML 2019 (arXiv:1901.09847), Algorithm 2; Stich et
    al., "Sparsified SGD with Memory", NeurIPS 2018 (arXiv:1809.07599), Algorithm 1.
    """

    if not isinstance(codec, Codec):
        raise TypeError(f"error_feedback wraps a Codec, got {codec!r}")

    def apply(update: PyTree, memory: PyTree, key: jax.Array) -> tuple[PyTree, PyTree, int | jax.Array]:
        corrected = optax.tree.add(at_least_float32(update), memory)
        payload = codec.encode(optax.tree.cast_like(corrected, update), key)
        sent = codec.decode(payload)
        return sent, optax.tree.sub(corrected, at_least_float32(sent)), size(payload)

    return UpdateTransform(init=lambda update: optax.tree.zeros_like(at_least_float32(update)), apply=apply)
