"""TernGrad: minus, zero or plus the largest magnitude, unbiased."""

from fedjax_edge.compression.levels import stochastic_levels
from fedjax_edge.compression.norms import largest
from fedjax_edge.core.protocols import Codec


def terngrad() -> Codec:
    """Returns the codec that sends each number as -1, 0 or 1 times the largest magnitude of its leaf.

    A number is sent with the probability of its magnitude over the largest: unbiased. The squared error of a leaf of
    `n` numbers is `max|x| * sum|x| - |x|**2` in expectation, at most `n / 4 * max|x|**2` and `(sqrt(n) - 1) * |x|**2`.
    A leaf costs 2 bits a number, in whole bytes, and 32 for its scale. (The paper clips gradients at 2.5 standard
    deviations beforehand, which lowers the error and adds a bias; `chain` a clip before it to do so.)

    ==============================  ========================================================
    input                           decoded
    ==============================  ========================================================
    equal magnitudes, zero, size-1  itself
    empty                           empty
    NaN or infinite anywhere        a leaf of NaNs, so that the round can reject it
    ==============================  ========================================================

    Source: Wen et al., "TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning", NIPS 2017
    (arXiv:1705.07878), with its layer-wise scale.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> codec = terngrad()
    >>> codec.decode(codec.encode(jnp.array([0.0, 2.0, -2.0]), jax.random.key(0))).tolist()
    [0.0, 2.0, -2.0]
    """
    return stochastic_levels(1, largest)
