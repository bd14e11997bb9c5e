"""QSGD: stochastic rounding to levels of the norm, unbiased."""

from fedjax_edge.compression.levels import stochastic_levels
from fedjax_edge.compression.norms import l2_norm
from fedjax_edge.core import checks
from fedjax_edge.core.protocols import Codec


def qsgd(levels: int) -> Codec:
    """Returns the codec that rounds each number at random to a multiple of `|x| / levels`, `|x|` its leaf's norm.

    Unbiased: a number goes to one of its two neighbours with the probability that makes the expectation exact. The
    squared error of a leaf of `n` numbers is at most `min(n / levels**2, sqrt(n) / levels) * |x|**2` in expectation. A
    leaf costs `ceil(log2(2 * levels + 1))` bits a number (127 levels: 8 bits), in whole bytes, and 32 for its norm;
    most codes are 0 where `levels` is below `sqrt(n)`, and an entropy coder needs less (`entropy_bits`).

    ==============================  ===================================================
    input                           decoded
    ==============================  ===================================================
    zero, size-1                    itself
    constant                        a multiple of the grid's step: its mean is kept, it
                                    is not
    empty                           empty
    NaN or infinite anywhere        a leaf of NaNs, so that the round can reject it;
                                    likewise a norm that overflows float32
    narrower than float32           rounded to that dtype: unbiased but for that; infinite
                                    beyond its range, as a norm may be in float16, and
                                    then rejected by the round
    ==============================  ===================================================

    Args:
      levels: above zero, 1 to 32767.

    Raises:
      ValueError: for levels out of range.

    Source: Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding", NIPS 2017
    (arXiv:1610.02132), Section 3.1 and Lemma 3.1.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> codec = qsgd(5)
    >>> decoded = codec.decode(codec.encode(jnp.array([3.0, -4.0]), jax.random.key(0)))
    >>> [round(float(value), 5) for value in decoded]  # 3 and 4 are multiples of 5 / 5
    [3.0, -4.0]
    """
    checks.integer("levels", levels, at_most=2**15 - 1)
    return stochastic_levels(levels, l2_norm)
