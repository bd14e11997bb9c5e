"""Random-k sparsification: numbers chosen by a seed, so that no index is sent."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from fedjax_edge.compression.norms import nan_unless_finite
from fedjax_edge.core import checks
from fedjax_edge.core.flatten import TreeShape, flatten
from fedjax_edge.core.permutation import permutation
from fedjax_edge.core.protocols import Codec, PyTree


@partial(jax.tree_util.register_dataclass, data_fields=["values", "seed"], meta_fields=["shape"])
@dataclass(frozen=True)
class Chosen:
    """What is sent: the numbers that were chosen, and the seed that chose them."""

    values: jax.Array  # float32 [k]
    seed: jax.Array  # uint32 []
    shape: TreeShape


def random_k(fraction: float, unbiased: bool = True) -> Codec:
    """Returns the codec that sends `k` of the update's `n` numbers, chosen at random without replacement.

    `k = max(1, round(fraction * n))`. The client draws a 32-bit seed from its key and sends it; both sides find the
    indices by the keyed permutation of `core.permutation`, so the cost is `32 * k` bits for the numbers and 32 for the
    seed. Received numbers are multiplied by `n / k`: unbiased, with an error of `(n / k - 1) * |x|**2` in expectation
    (squared norms). Not multiplied (`unbiased=False`), what is decoded is `k / n * x` on average and its error
    `(1 - k / n) * |x|**2`: the contraction that `error_feedback` needs.

    ==============================  =================================================
    input                           decoded
    ==============================  =================================================
    fraction 1, one number          itself
    empty                           empty
    NaN or infinite anywhere        NaN wherever a number is sent, whichever they are
    `n / k` times it overflows      infinite, so that the round can reject it
    narrower than float32           rounded to that dtype: unbiased but for that
    ==============================  =================================================

    Args:
      fraction: of the numbers to send, in (0, 1].
      unbiased: whether to multiply by `n / k`.

    Raises:
      ValueError: for a fraction out of range.

    Source: Stich et al., "Sparsified SGD with Memory", NeurIPS 2018 (arXiv:1809.07599), Definitions 2.1 and 2.2
    (not multiplied); Wangni et al., "Gradient Sparsification for Communication-Efficient Distributed Optimization",
    NeurIPS 2018 (arXiv:1710.09854; unbiased).

    >>> codec = random_k(0.5)
    >>> sorted(codec.decode(codec.encode(jnp.ones(4), jax.random.key(0))).tolist())
    [0.0, 0.0, 2.0, 2.0]
    """
    checks.probability("fraction", fraction)

    def indices(seed: jax.Array, size: int) -> jax.Array:
        kept = min(size, max(1, round(fraction * size)))
        return permutation(jax.random.key(seed), size)(jnp.arange(kept))

    def encode(update: PyTree, key: jax.Array) -> Chosen:
        vector, shape = flatten(update)
        seed = jax.random.bits(key, (), jnp.uint32)
        return Chosen(nan_unless_finite(vector[indices(seed, shape.size)], vector), seed, shape)

    def decode(payload: Chosen) -> PyTree:
        size = payload.shape.size
        values = payload.values * (size / max(payload.values.size, 1)) if unbiased else payload.values
        vector = jnp.zeros(size, jnp.float32).at[indices(payload.seed, size)].set(values)
        return payload.shape.unflatten(vector)

    return Codec(encode, decode)
