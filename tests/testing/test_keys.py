"""Draws that are not independent are found: keys closed over, forgotten and used twice."""

import jax
import numpy as np
import pytest

from fedjax_edge.compression import fixed_point, stochastic_uniform
from fedjax_edge.core import UpdateTransform
from fedjax_edge.privacy import gaussian_mean
from fedjax_edge.testing import assert_draws_independent, assert_keys_independent

KEY = jax.random.key(0)


def noisy(keys_of, scale=lambda position: 1.0):
    """Adds noise to each leaf, from `keys_of(key, leaves)`."""

    def apply(update, state, key):
        leaves, structure = jax.tree.flatten(update)
        keys = keys_of(key, len(leaves))
        rows = [
            leaf + scale(position) * jax.random.normal(one, leaf.shape)
            for position, (leaf, one) in enumerate(zip(leaves, keys, strict=True))
        ]
        return structure.unflatten(rows), state, None

    return UpdateTransform(lambda update: (), apply)


def test_draws_that_are_independent():
    assert_keys_independent(noisy(jax.random.split), KEY, leaves=2)
    assert_keys_independent(stochastic_uniform(1), KEY, leaves=2)
    assert_keys_independent(gaussian_mean(1.0, 1.0, denominator=1.0), KEY, leaves=2)


def central(finish):
    return gaussian_mean(1.0, 1.0, denominator=1.0)._replace(finish=finish)


def same_every_round(total, state, key):
    return jax.tree.map(lambda leaf: leaf + jax.random.normal(KEY, leaf.shape), total), state


def same_for_every_leaf(total, state, key):
    return jax.tree.map(lambda leaf: leaf + jax.random.normal(key, leaf.shape), total), state


LEAVES = (
    r"the same draws twice: round (\d), client (\d), leaf \['0'\] and round \1, client \2, leaf \['1'\] correlate by "
)
PLANTED = {
    "a key closed over": (
        noisy(lambda key, leaves: jax.random.split(KEY, leaves)),
        "24 streams draw nothing of their own: one key",
    ),
    "one leaf with a key closed over": (
        noisy(lambda key, leaves: [key, KEY]),
        r"leaf \['1'\] draws nothing of its own",
    ),
    "a fold_in forgotten": (noisy(lambda key, leaves: [key] * leaves), LEAVES + "1"),
    "a leaf's noise again, larger": (noisy(lambda key, leaves: [key] * leaves, lambda leaf: 1.0 + 9 * leaf), LEAVES),
    "a leaf's noise again, negative": (
        noisy(lambda key, leaves: [key] * leaves, lambda leaf: 1.0 - 2 * leaf),
        LEAVES + "-",
    ),
    "a round forgotten": (central(same_every_round), "6 streams draw nothing of their own: one key for all"),
    "a leaf forgotten": (
        central(same_for_every_leaf),
        r"round (\d), leaf \['0'\] and round \1, leaf \['1'\] correlate by 1",
    ),
    "nothing random": (fixed_point(8), "one key for all, or nothing is random"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_draws_that_are_not(bug):
    component, message = PLANTED[bug]
    with pytest.raises(AssertionError, match=message):
        assert_keys_independent(component, KEY, leaves=2)


def by_id(key, number, ids):
    keys = jax.vmap(lambda client: jax.random.fold_in(jax.random.fold_in(key, number), client))(ids)
    return jax.vmap(lambda one: jax.random.uniform(one, (64,)))(keys)


def by_place(key, number, ids):
    keys = jax.random.split(jax.random.fold_in(key, number), len(ids))
    return jax.vmap(lambda one: jax.random.uniform(one, (64,)))(keys)


def without_the_round(key, number, ids):
    return by_id(key, 0, ids)


def same_for_all_clients(key, number, ids):
    """What comes of a key that `vmap` does not map over."""
    mine = jax.random.fold_in(key, number)
    return jax.vmap(lambda client: jax.random.uniform(mine, (64,)))(ids)


def sum_of_round_and_id(key, number, ids):
    return by_id(key, 0, ids + number)


def test_functions_that_draw():
    assert_keys_independent(by_id, KEY)
    with pytest.raises(
        AssertionError, match="what clients draw after one is added and the order reversed: leaf itself is"
    ):
        assert_keys_independent(by_place, KEY)
    for draw in (without_the_round, sum_of_round_and_id, same_for_all_clients):
        with pytest.raises(
            AssertionError, match=r"the same draws twice: round \d, client (\d), leaf itself and round \d, client"
        ):
            assert_keys_independent(draw, KEY)


def test_streams_of_ones_own():
    rng = np.random.default_rng(0)
    streams = {name: rng.normal(size=100) for name in "abc"}
    assert_draws_independent(streams)
    with pytest.raises(AssertionError, match=r"twice: b and d correlate by 1\.\d+ over 100 numbers"):
        assert_draws_independent({**streams, "d": streams["b"] + 1e-3 * rng.normal(size=100)})
    with pytest.raises(ValueError, match="two streams of at least 32 numbers, got 3 of at least 5"):
        assert_draws_independent({name: row[:5] for name, row in streams.items()})


def test_false_alarms_of_independence_are_rare():
    rng = np.random.default_rng(1)
    for _ in range(50):
        assert_draws_independent({str(i): rng.integers(0, 2, 256) for i in range(36)})
    with pytest.raises(AssertionError, match="the same draws twice"):
        assert_draws_independent({str(i): rng.integers(0, 2, 256) for i in range(36)}, standard_errors=2.0)
