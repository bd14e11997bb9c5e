"""Symmetric noise on the integers, drawn from tables that are exact to 2^-95 for each value."""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_BITS = 95  # random bits compared with the table; one of three words' 96 is the sign
_CUT = 67  # numbers beyond have a probability of 2^-96 together (e^-67)
LARGEST = 2.0**14  # standard deviation, so that a table has at most 200,000 entries


class IntegerNoise(NamedTuple):
    """A law on the integers as a table of its distribution function, of the magnitude."""

    thresholds: np.ndarray  # uint32 [3, magnitudes]: P[|y| <= k] in units of 2^-95, as words of 32, 32 and 31 bits
    total_variation: float  # between what is drawn of independent uniform bits and the law, at most

    def draw(self, key: jax.Array, count: int) -> jax.Array:
        """Returns independent draws, int32 [count]."""
        words = jax.random.bits(key, (3, count), jnp.uint32)
        sign, words = words[2] & 1, words.at[2].set(words[2] >> 1)
        table = jnp.asarray(self.thresholds)
        length = table.shape[1]

        def halve(level: jax.Array, magnitude: jax.Array) -> jax.Array:
            candidate = magnitude + (jnp.int32(1) << (length.bit_length() - 1 - level))
            is_reached = (candidate <= length) & ~_is_less(words, table[:, jnp.minimum(candidate, length) - 1])
            return jnp.where(is_reached, candidate, magnitude)

        # How many thresholds are reached. (Unrolled, XLA would evaluate each step once for every use.)
        magnitude = jax.lax.fori_loop(0, length.bit_length(), halve, jnp.zeros(count, jnp.int32))
        return jnp.where(sign == 1, -magnitude, magnitude)


def _is_less(a: jax.Array, b: jax.Array) -> jax.Array:
    """Compares numbers of three words, uint32 [3, count]."""
    return (a[0] < b[0]) | ((a[0] == b[0]) & ((a[1] < b[1]) | ((a[1] == b[1]) & (a[2] < b[2]))))


@lru_cache(maxsize=16)
def discrete_gaussian_noise(standard_deviation: float) -> IntegerNoise:
    """The discrete Gaussian: P[y = k] in proportion to exp(-k^2 / (2 sigma^2)).

    Source: Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (NeurIPS 2020,
    arXiv:2004.00010), Definition 1. (Its sampler loops until it accepts; a table takes one draw of fixed length.)

    >>> import jax
    >>> discrete_gaussian_noise(0.3).draw(jax.random.key(0), 1000).tolist().count(0) > 980
    True
    """

    def weights() -> list[Decimal]:
        exponent = -1 / (2 * Decimal(standard_deviation) ** 2)
        last = math.ceil(standard_deviation * math.sqrt(2 * _CUT)) + 1
        # w_k / w_(k-1) = exp((2 k - 1) exponent): two products each instead of one exponential
        ratio, growth = exponent.exp(), (2 * exponent).exp()
        values = [Decimal(1)]
        for _ in range(last):
            values.append(values[-1] * ratio)
            ratio *= growth
        return values

    return _from_weights(weights)


@lru_cache(maxsize=16)
def skellam_noise(variance: float) -> IntegerNoise:
    """The difference of two independent Poisson variables of mean `variance / 2`: P[y = k] = e^-v I_k(v).

    Sums of such are such again. The Bessel functions come from their recurrence, run backwards (Miller's algorithm).
    """

    def weights() -> list[Decimal]:
        v = Decimal(variance)
        last = math.ceil(math.sqrt(2 * _CUT * variance) + _CUT) + 1  # Bernstein's bound of the tail
        above, value, values = Decimal(0), Decimal(10) ** -200, []
        for k in range(2 * last + 50, 0, -1):
            above, value = value, above + 2 * k / v * value
            if k - 1 <= last:
                values.append(value)
        return values[::-1]

    return _from_weights(weights)


def _from_weights(weights: Callable[[], list[Decimal]]) -> IntegerNoise:
    """Returns the table of the symmetric law with such weights of 0, 1, 2, ..., up to a factor."""
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, -(10**8), 10**8
        values = weights()
        total = values[0] + 2 * sum(values[1:])
        reached, words = Decimal(0), []
        for k, value in enumerate(values):
            reached += value if k == 0 else 2 * value
            word = min(int(reached / total * 2**_BITS), 2**_BITS - 1)
            words.append((word >> 63, word >> 31 & 0xFFFFFFFF, word & 0x7FFFFFFF))
    return IntegerNoise(np.array(words[:-1], np.uint32).reshape(-1, 3).T, (len(words) + 2) * 2.0**-_BITS)
