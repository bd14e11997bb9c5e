"""Exact counts beyond 2^31 in 32-bit arithmetic: a round of a large model sends more bits than an int32 holds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_DIGIT_BITS = 11
MOST_TERMS = 2 ** (31 - _DIGIT_BITS)  # whose digits an int32 holds together


class Count(NamedTuple):
    """A count in three digits of base 2^11; Counts add elementwise, exactly, for up to 2^20 terms below 2^31."""

    high: jax.Array  # int32 [...]
    middle: jax.Array  # int32 [...]
    low: jax.Array  # int32 [...]

    @classmethod
    def of(cls, value: Any) -> "Count":
        """Splits a Python integer below 2^53, or an int32 array.

        Raises:
          TypeError: for numbers that are not integers.

        >>> Count.of(5_000_000_000).value()
        np.int64(5000000000)
        """
        if not jnp.issubdtype(jnp.result_type(value), jnp.integer):
            raise TypeError(f"a count, such as that of a payload's bits, must be an integer, got {value!r}")
        digit = (1 << _DIGIT_BITS) - 1
        digits = (value >> (2 * _DIGIT_BITS), (value >> _DIGIT_BITS) & digit, value & digit)
        return cls(*(jnp.asarray(part, jnp.int32) for part in digits))

    def times(self, factor: jax.Array) -> "Count":
        """Returns the count of `factor` such things, int32 [...], at least 0 and below 2^20.

        >>> Count.of(5_000_000_000).times(jnp.int32(3)).value()
        np.int64(15000000000)
        """
        base = 1 << _DIGIT_BITS
        low = self.low * factor
        middle = self.middle * factor + low // base
        return Count(self.high * factor + middle // base, middle % base, low % base)

    def value(self) -> np.ndarray:
        """Returns the count on the host, int64 [...]."""
        high, middle, low = (np.asarray(part, np.int64) for part in self)
        return (high << (2 * _DIGIT_BITS)) + (middle << _DIGIT_BITS) + low
