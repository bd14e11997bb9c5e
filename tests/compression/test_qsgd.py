import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.compression import qsgd
from fedjax_edge.compression.packing import unpack


def test_numbers_go_to_the_neighbouring_multiples_of_the_norm_over_the_levels():
    update = jnp.array([3.0, -4.0, 0.0, 12.0])  # of norm 13: at 2 levels the step is 6.5
    codec = qsgd(2)
    decoded = jax.vmap(lambda key: codec.decode(codec.encode(update, key)))(jax.random.split(jax.random.key(0), 2000))
    possible = [{0.0, 6.5}, {-6.5, 0.0}, {0.0}, {6.5, 13.0}]
    assert [set(np.unique(column).tolist()) for column in np.asarray(decoded).T] == possible
    shares = np.abs(decoded).mean(0) / 6.5
    np.testing.assert_allclose(shares, [3 / 6.5, 4 / 6.5, 0, 12 / 6.5], atol=5 * 0.5 / 2000**0.5)


def test_codes_count_the_levels_from_the_lowest():
    payload = qsgd(5).encode(jnp.array([3.0, -4.0]), jax.random.key(0)).content
    assert unpack(payload.codes).tolist() == [8, 1]
    assert float(payload.scale) == pytest.approx(5)


@pytest.mark.parametrize("number", [1e-30, 1e30])
def test_squares_that_leave_the_range_do_not_matter(number):
    codec = qsgd(1)
    update = jnp.array([0.0, number, 0.0])
    np.testing.assert_allclose(codec.decode(codec.encode(update, jax.random.key(0))), update, rtol=1e-6)


@pytest.mark.parametrize("levels", [0, 2**15, 2.5, True])
def test_impossible_levels_are_refused(levels):
    with pytest.raises(ValueError, match=f"levels must be an integer from 1 to 32767, got {levels!r}"):
        qsgd(levels)
