"""Every assertion about aggregators passes on a right one and fails on a planted bug, in words that say which."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_edge.aggregation import coordinate_median, uniform_mean, weighted_mean
from fedjax_edge.core import Aggregator, ClientOutput, ClientUpdate, Cohort, Plan, federated
from fedjax_edge.data import from_client_arrays
from fedjax_edge.testing import (
    aggregate,
    assert_convex,
    assert_linear,
    assert_padding_invariant,
    assert_permutation_invariant,
    assert_scale_equivariant,
    assert_translation_equivariant,
    strategies,
)

RNG = np.random.default_rng(0)
UPDATES = {"a": RNG.normal(size=(5, 3)).astype(np.float32), "b": RNG.normal(size=5).astype(np.float32)}
OTHERS = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), UPDATES)
WEIGHTS = np.array([1, 4, 2, 7, 3], np.float32)
KEY = jax.random.key(0)
MEAN, MEDIAN = weighted_mean(), coordinate_median()  # what is made once is compiled once


def stacked(rule):
    """An aggregator that applies `rule(rows [cohort, ...], present [cohort]) -> [...]` to each leaf."""

    def finish(total, state, key):
        return jax.tree.map(lambda rows: rule(rows, total.present), total.rows), state

    return Aggregator(lambda update: (), lambda update, weight, state: update, finish, stacked=True)


def mean_then(change, contribution=lambda update: update):
    """The weighted mean with something done to it: `change(aggregate leaf, key)`."""
    mean = weighted_mean()

    def finish(total, state, key):
        result, state = mean.finish(total, state, key)
        return jax.tree.map(lambda leaf: change(leaf, key), result), state

    return mean._replace(
        contribution=lambda update, weight, state: mean.contribution(contribution(update), weight, state), finish=finish
    )


first_wins = stacked(lambda rows, present: rows[0])
alternating = stacked(
    lambda rows, present: (rows * jnp.resize(jnp.array([1.0, 0.9]), (5, *[1] * (rows.ndim - 1)))).sum(0)
)
forgets_the_mask = stacked(lambda rows, present: rows.mean(0))
divides_by_nobody = stacked(lambda rows, present: rows.sum(0) / present.sum().astype(jnp.float32))
noisy = mean_then(lambda leaf, key: leaf + 0.01 * jax.random.normal(key, leaf.shape))
clipped = mean_then(lambda leaf, key: leaf, lambda update: optax.tree.scale(1 / optax.tree.norm(update), update))
signs = mean_then(lambda leaf, key: jnp.sign(leaf))
extrapolates = mean_then(lambda leaf, key: 3 * leaf)


@pytest.mark.parametrize("aggregator", [MEAN, uniform_mean(), MEDIAN, noisy])
def test_an_order_that_does_not_matter(aggregator):
    assert_permutation_invariant(aggregator, UPDATES, WEIGHTS)
    assert_permutation_invariant(aggregator, UPDATES, WEIGHTS, present=[True, False, True, True, False])


@pytest.mark.parametrize("aggregator", [first_wins, alternating])
def test_an_order_that_matters(aggregator):
    with pytest.raises(AssertionError, match=r"aggregate of the clients \w+.*: leaf \['a'\] is .* they differ by"):
        assert_permutation_invariant(aggregator, UPDATES, WEIGHTS)
    with pytest.raises(ValueError, match="an order takes at least two clients, got 1"):
        assert_permutation_invariant(aggregator, np.zeros((1, 2), np.float32), [1])


def test_an_aggregate_that_is_not_a_number_agrees_with_no_claim():
    broken = mean_then(lambda leaf, key: leaf / jnp.sum(leaf * 0))
    for claim in (
        assert_permutation_invariant,
        assert_translation_equivariant,
        assert_scale_equivariant,
        assert_convex,
    ):
        with pytest.raises(AssertionError, match=r"the aggregate is not finite: leaf \['a'\]"):
            claim(broken, UPDATES, WEIGHTS)
    with pytest.raises(AssertionError, match="the aggregate is not finite"):
        assert_linear(broken, UPDATES, OTHERS, WEIGHTS)


def test_clients_that_are_absent():
    for aggregator in (MEAN, MEDIAN):
        assert_padding_invariant(aggregator, UPDATES, WEIGHTS)
    with pytest.raises(AssertionError, match="beside three absent clients: leaf"):
        assert_padding_invariant(forgets_the_mask, UPDATES, WEIGHTS)
    with pytest.raises(AssertionError, match=r"the aggregate of nobody is not finite: leaf \['a'\]"):
        assert_padding_invariant(divides_by_nobody, UPDATES, WEIGHTS)


def test_translation():
    for aggregator in (MEAN, MEDIAN, noisy):
        assert_translation_equivariant(aggregator, UPDATES, WEIGHTS)
    for aggregator in (clipped, signs, extrapolates):
        with pytest.raises(AssertionError, match="the aggregate of the shifted updates: leaf"):
            assert_translation_equivariant(aggregator, UPDATES, WEIGHTS)


def test_scale():
    for aggregator in (MEAN, MEDIAN, extrapolates):
        assert_scale_equivariant(aggregator, UPDATES, WEIGHTS, factors=(0.0, 0.37, 3.0, -1.0))
    with pytest.raises(AssertionError, match=r"the aggregate of the updates times 0\.37: leaf"):
        assert_scale_equivariant(signs, UPDATES, WEIGHTS)
    with pytest.raises(AssertionError, match="the aggregate of the updates times 0"):
        assert_scale_equivariant(noisy, UPDATES, WEIGHTS)
    largest = stacked(lambda rows, present: jnp.where(present.any(), rows.max(0), 0.0))
    assert_scale_equivariant(largest, UPDATES, WEIGHTS)
    with pytest.raises(AssertionError, match="the aggregate of the updates times -1"):
        assert_scale_equivariant(largest, UPDATES, WEIGHTS, factors=(-1.0,))


def test_convexity():
    for aggregator in (MEAN, uniform_mean(), MEDIAN, first_wins):
        assert_convex(aggregator, UPDATES, WEIGHTS)
    present = [False, True, True, False, False]
    assert_convex(MEDIAN, UPDATES, WEIGHTS, present=present)
    same = jax.tree.map(lambda leaf: np.full_like(leaf, 2), UPDATES)
    for aggregator in (extrapolates, noisy):
        with pytest.raises(
            AssertionError, match=r"leaves the clients' range: leaf \['a'\] is .*, the clients' from 2 to 2"
        ):
            assert_convex(aggregator, same, WEIGHTS)
    with pytest.raises(AssertionError, match="leaves the clients' range"):
        assert_convex(forgets_the_mask, same, WEIGHTS, present=present)
    with pytest.raises(ValueError, match="nobody is present"):
        assert_convex(MEAN, UPDATES, WEIGHTS, present=np.zeros(5, bool))


def test_linearity():
    for aggregator in (MEAN, extrapolates):
        assert_linear(aggregator, UPDATES, OTHERS, WEIGHTS)
    for aggregator in (MEDIAN, clipped, noisy):
        with pytest.raises(
            AssertionError, match=r"the aggregate of 2 times the first updates plus -0\.7 times the second"
        ):
            assert_linear(aggregator, UPDATES, OTHERS, WEIGHTS)


def test_clients_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="one leading axis"):
        aggregate(MEAN, UPDATES, WEIGHTS[:4], KEY)


def nan_of(present_not_finite):
    return jax.tree.map(
        lambda leaf: np.where(present_not_finite.reshape(-1, *[1] * (leaf.ndim - 1)), np.nan, leaf), UPDATES
    )


@pytest.mark.parametrize("aggregator", [MEAN, MEDIAN], ids=["sum", "stack"])
def test_the_kits_aggregate_is_that_of_a_round(aggregator):
    """One client of five is absent and one sends a NaN."""
    updates = nan_of(np.arange(5) == 3)
    columns = [{"update": jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], updates)} for i in range(5)]

    def update(params, examples, state, key):
        sent = jax.tree.map(lambda column: column[examples.start], examples.columns["update"])
        return ClientOutput(sent, jnp.asarray(WEIGHTS)[examples.client], state, {})

    population = from_client_arrays(columns)
    algorithm = federated(ClientUpdate(lambda params: (), update), optax.sgd(1.0), aggregator)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), UPDATES)
    present = jnp.arange(5) != 1
    state = algorithm.init(zeros, KEY, population)
    after, _ = jax.jit(algorithm.round, static_argnums=3)(
        state, Cohort(jnp.arange(5, dtype=jnp.int32), present), population, Plan(1, 1)
    )
    by_kit, _ = aggregate(aggregator, updates, WEIGHTS, KEY, present=present)
    for name, leaf in algorithm.params(after).items():
        np.testing.assert_allclose(by_kit[name], leaf, rtol=1e-6)


@settings(max_examples=10)
@given(st.data())
def test_examples_of_hypothesis_go_in(data):
    updates, weights = data.draw(strategies.client_updates(4)), data.draw(strategies.weights(4))
    assert_permutation_invariant(MEDIAN, updates, weights)
    assert_convex(MEAN, updates, weights)
