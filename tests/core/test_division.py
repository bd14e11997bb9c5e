import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.core.division import ratio

pytestmark = pytest.mark.usefixtures("optimized")
SCALES = np.array([1.2e-38, 1e-30, 0.3, 1, 7, 8.4e37, 8.6e37, 1.7e38, 3e38, np.finfo(np.float32).max], np.float32)
SHARES = np.array([1, -0.5, 0.25, 0.75, 0], np.float32)


@pytest.mark.parametrize("scale", SCALES)
def test_quotients_are_right_up_to_the_largest_number(scale):
    values = jnp.asarray(SHARES * scale)
    if scale < 1e-37:
        values = values.at[1:4].set(0)  # what would be subnormal
    expected = np.asarray(values, np.float64) / np.float64(scale)
    for function in (ratio, jax.jit(ratio)):
        np.testing.assert_allclose(function(values, jnp.float32(scale)), expected, rtol=3e-7)


def test_quotients_of_many_rows():
    values = SHARES * SCALES[1:, None]
    found = jax.jit(jax.vmap(ratio))(values, SCALES[1:])
    np.testing.assert_allclose(found, np.broadcast_to(SHARES, values.shape), rtol=3e-7)


def test_ordinary_quotients_are_those_of_the_division_to_the_bit():
    values = jax.random.normal(jax.random.key(0), (1000,))
    for scale in (0.1, 1.0, 3.3, 1e10):
        divide = jax.jit(lambda values, scale: values / scale)
        np.testing.assert_array_equal(jax.jit(ratio)(values, scale), divide(values, jnp.float32(scale)))


def test_zero_divides_nothing_and_what_is_not_a_number_stays_so():
    assert ratio(jnp.zeros(2), jnp.float32(0)).tolist() == [0, 0]
    assert np.isnan(ratio(jnp.array([1.0, jnp.nan]), jnp.float32(jnp.nan))).all()
