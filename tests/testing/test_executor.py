"""Algorithms that depend on the plan or on the order of their cohort are found."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_edge.aggregation import weighted_mean
from fedjax_edge.core import Aggregator, ClientOutput, ClientUpdate, Cohort, Count, Mean, Plan, RoundRecord, federated
from fedjax_edge.data import from_client_arrays
from fedjax_edge.testing import assert_order_invariant, assert_plan_invariant

KEY = jax.random.key(0)
POPULATION = from_client_arrays([{"x": np.full((n, 2), i + 1, np.float32)} for i, n in enumerate([1, 4, 2, 7, 3])])
COHORT = Cohort(jnp.array([3, 0, 4, 1, 1], jnp.int32), jnp.array([True, True, True, True, False]))
PARAMS = jnp.zeros(2)


def draws(params, examples, state, key):
    value = examples.columns["x"][examples.start] + jax.random.normal(key, params.shape)
    weight = examples.size.astype(jnp.float32)
    return ClientOutput(value, weight, state + 1, {"loss": Mean(weight, jnp.float32(1))})


CLIENT = ClientUpdate(lambda params: jnp.int32(0), draws)
RIGHT = federated(CLIENT, optax.sgd(1.0, momentum=0.9), weighted_mean())


def by_hand(keys_of, average):
    """A round as one writes it first, with `keys_of(key, ids)` and a mean, `average(updates, present, plan)`."""

    def round_(state, cohort, population, plan=None):
        params, key = state
        examples = jax.vmap(population.examples)(cohort.ids)
        values = population.columns["x"][examples.start]
        updates = jax.vmap(lambda value, one: value + jax.random.normal(one, (2,)))(values, keys_of(key, cohort.ids))
        zero = jnp.int32(0)
        count = Count.of(zero)
        record = RoundRecord({}, count, count, cohort.present.sum(), zero)
        return (params + average(updates, cohort.present, plan), jax.random.fold_in(key, 1)), record

    return RIGHT._replace(
        init=lambda params, key, population: (params, key), round=round_, params=lambda state: state[0]
    )


def keys_by_id(key, ids):
    return jax.vmap(jax.random.fold_in, (None, 0))(key, ids)


def mean(updates, present, plan):
    return jnp.where(present[:, None], updates, 0).sum(0) / jnp.maximum(present.sum(), 1).astype(jnp.float32)


def mean_of_chunk_means(updates, present, plan):
    chunks = [mean(updates[i : i + plan.width], present[i : i + plan.width], plan) for i in range(0, 5, plan.width)]
    return sum(chunks) / len(chunks)


def per_device(updates, present, plan):
    return mean(updates, present, plan) * plan.devices


def test_plans_that_do_not_matter():
    assert_plan_invariant(RIGHT, PARAMS, POPULATION, COHORT, [Plan(2, 1)], key=KEY)
    assert_plan_invariant(by_hand(keys_by_id, mean), PARAMS, POPULATION, COHORT, [Plan(3, 1)], key=KEY)


def test_plans_that_matter():
    for average, plan in ((mean_of_chunk_means, "width 2 on 1 device"), (per_device, "width 1 on 2 device")):
        with pytest.raises(AssertionError, match=rf"{plan}.*: the state: leaf \[0\] is .* they differ by"):
            assert_plan_invariant(by_hand(keys_by_id, average), PARAMS, POPULATION, COHORT, key=KEY)


def test_orders_that_do_not_matter():
    assert_order_invariant(RIGHT, PARAMS, POPULATION, COHORT, key=KEY)
    assert_order_invariant(by_hand(keys_by_id, mean), PARAMS, POPULATION, COHORT, key=KEY)


def test_orders_that_matter():
    by_place = by_hand(lambda key, ids: jax.random.split(key, len(ids)), mean)
    with pytest.raises(AssertionError, match=r"the cohort reversed: the state: leaf \[0\] is .* they differ by"):
        assert_order_invariant(by_place, PARAMS, POPULATION, COHORT, key=KEY)
    first = Aggregator(
        lambda update: (),
        lambda update, weight, state: update,
        lambda total, state, key: (total.rows[0], state),
        stacked=True,
    )
    with pytest.raises(AssertionError, match=r"the cohort reversed: the state: leaf \.server"):
        assert_order_invariant(federated(CLIENT, optax.sgd(1.0), first), PARAMS, POPULATION, COHORT, key=KEY)


def test_a_record_that_depends_on_the_plan():
    right = by_hand(keys_by_id, mean)

    def round_(state, cohort, population, plan=None):
        state, record = right.round(state, cohort, population, plan)
        return state, record._replace(clients=jnp.int32(len(cohort.ids) // plan.width * plan.width))

    with pytest.raises(
        AssertionError, match=r"width 2 .*: the record of round 0: leaf \.clients is 4 at \(\), expected 5"
    ):
        assert_plan_invariant(right._replace(round=round_), PARAMS, POPULATION, COHORT, key=KEY)


def test_a_model_that_is_not_a_number_agrees_with_no_plan_and_no_order():
    diverges = federated(CLIENT, optax.sgd(float("inf")), weighted_mean())
    for claim in (assert_plan_invariant, assert_order_invariant):
        with pytest.raises(AssertionError, match="the model after these rounds is not finite: leaf itself"):
            claim(diverges, PARAMS, POPULATION, COHORT, key=KEY)
