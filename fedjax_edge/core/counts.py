"""Exact counts beyond 2^31 in 32-bit arithmetic: a round of a large model sends more bits than an int32 holds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_LOW_BITS = 16


class Count(NamedTuple):
    """A count as `high * 2**16 + low`; Counts add elementwise, exactly, for up to 32,767 terms below 2^31."""

    high: jax.Array  # int32 [...]
    low: jax.Array  # int32 [...]

    @classmethod
    def of(cls, value: Any) -> "Count":
        """Splits a Python integer below 2^46, or an int32 array.

        >>> Count.of(5_000_000_000).value()
        np.int64(5000000000)
        """
        high, low = value >> _LOW_BITS, value & ((1 << _LOW_BITS) - 1)
        return cls(jnp.asarray(high, jnp.int32), jnp.asarray(low, jnp.int32))

    def value(self) -> np.ndarray:
        """Returns the count on the host, int64 [...]."""
        return (np.asarray(self.high, np.int64) << _LOW_BITS) + np.asarray(self.low, np.int64)
