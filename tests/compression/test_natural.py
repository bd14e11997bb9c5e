import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.compression import natural_compression

CODEC = natural_compression()
DECODED = jax.jit(jax.vmap(lambda update, key: CODEC.decode(CODEC.encode(update, key)), (None, 0)))
KEYS = jax.random.split(jax.random.key(0), 2000)


def test_numbers_go_to_the_two_powers_of_two_round_them():
    decoded = np.asarray(DECODED(jnp.array([1.0, 2.5, -3.0, 0.75, 0.0, -0.125]), KEYS))
    possible = [{1}, {2, 4}, {-4, -2}, {0.5, 1}, {0}, {-0.125}]
    assert [set(np.unique(column).tolist()) for column in decoded.T] == possible
    np.testing.assert_allclose((decoded[:, 1:4] == [4, -4, 1]).mean(0), [0.25, 0.5, 0.5], atol=5 * 0.5 / 2000**0.5)


def test_the_error_is_an_eighth_of_the_square_at_worst():
    worst = 4 / 3  # between 1 and 2: (x - 1) * (2 - x) / x**2 is 1/8 there
    decoded = np.asarray(DECODED(jnp.full(1, worst), KEYS), np.float64)
    error = ((decoded - worst) ** 2).mean() / worst**2
    assert error == pytest.approx(1 / 8, rel=0.1)


def test_the_ends_of_the_range():
    tiny, huge = 2.0**-127, 1.5 * 2.0**127
    decoded = np.asarray(DECODED(np.array([tiny, huge], np.float32), KEYS[:50]), np.float64)
    assert set(decoded[:, 0]) <= {0.0, 2.0**-126} and set(decoded[:, 1]) == {2.0**127, np.inf}
