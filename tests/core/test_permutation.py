import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax_edge.core import permutation
from fedjax_edge.core.permutation import BATCH_ROUNDS, COHORT_ROUNDS

SIZES = [1, 2, 3, 7, 10, 64, 100, 1_000]


def test_it_is_a_bijection_for_a_size_known_only_at_run_time(key):
    shuffle = jax.jit(lambda size: permutation(key, size)(jnp.arange(1_000)))
    for size in SIZES:
        np.testing.assert_array_equal(np.sort(shuffle(jnp.int32(size))[:size]), np.arange(size))


def test_it_reaches_the_largest_size(key):
    size = 2**31 - 1
    image = np.asarray(permutation(key, size)(jnp.arange(10_000)))
    assert len(np.unique(image)) == 10_000
    assert image.min() >= 0
    # 10,000 uniform draws all below 0.999 * size: probability 5e-5.
    assert image.max() > 0.999 * size


def test_keys_differ_and_repeat(key):
    index = jnp.arange(50)
    assert (permutation(key, 50)(index) != permutation(jax.random.key(1), 50)(index)).any()
    np.testing.assert_array_equal(permutation(key, 50)(index), permutation(key, 50)(index))


@pytest.mark.parametrize("rounds", [BATCH_ROUNDS, COHORT_ROUNDS])
def test_all_orders_of_four_are_equally_likely(rounds):
    """Chi-square over the 24 orders; fixed seed, false alarm 1e-4. Two rounds of the shuffle fail it."""
    assert _p_value_of_orders(rounds) > 1e-4
    assert _p_value_of_orders(2) < 1e-4


def _p_value_of_orders(rounds):
    keys = jax.random.split(jax.random.key(7), 24_000)
    orders = np.asarray(jax.jit(jax.vmap(lambda k: permutation(k, 4, rounds)(jnp.arange(4))))(keys))
    counts = np.unique(orders @ np.array([64, 16, 4, 1]), return_counts=True)[1]
    return stats.chisquare(np.pad(counts, (0, 24 - len(counts)))).pvalue


def test_every_index_goes_everywhere_equally_often():
    """Chi-square over the 17 x 17 table of index and image; fixed seed, false alarm 1e-4."""
    keys = jax.random.split(jax.random.key(3), 17_000)
    images = np.asarray(jax.jit(jax.vmap(lambda k: permutation(k, 17)(jnp.arange(17))))(keys))
    table = np.stack([np.bincount(images[:, i], minlength=17) for i in range(17)])
    # Rows and columns are both fixed, so 16 * 16 degrees of freedom remain.
    statistic = ((table - 1_000) ** 2 / 1_000).sum() * 16 / 17
    assert stats.chi2.sf(statistic, 16 * 16) > 1e-4
