import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_edge.aggregation import uniform_mean, weighted_mean

CLIENTS = 5

updates_of = hnp.arrays(np.float32, (CLIENTS, 7), elements=st.floats(-100, 100, width=32))
weights_of = hnp.arrays(np.float32, CLIENTS, elements=st.one_of(st.just(0.0), st.floats(2.0**-7, 2.0**14, width=32)))


def as_tree(rows):
    return {"a": rows[..., 0], "b": (rows[..., 1:].reshape(*rows.shape[:-1], 2, 3),)}


def as_rows(tree):
    return np.concatenate([np.reshape(tree["a"], 1), np.ravel(tree["b"][0])])


def aggregate(aggregator):
    def run(updates, weights):
        state = aggregator.init(jax.tree.map(lambda leaf: leaf[0], updates))
        contributions = jax.vmap(lambda update, weight: aggregator.contribution(update, weight, state))(
            updates, weights
        )
        total = jax.tree.map(lambda leaf: leaf.sum(0, dtype=leaf.dtype), contributions)
        return aggregator.finish(total, state, jax.random.key(0))[0]

    return jax.jit(run)


weighted, uniform = aggregate(weighted_mean()), aggregate(uniform_mean())


@given(updates_of, weights_of)
def test_weighted_mean_is_that_of_numpy_and_nobodys_is_zero(updates, weights):
    mean = as_rows(weighted(as_tree(updates), weights))
    expected = np.average(updates.astype(float), axis=0, weights=weights) if weights.any() else np.zeros(7)
    np.testing.assert_allclose(mean, expected, atol=1e-4)


@given(updates_of, weights_of)
def test_uniform_mean_is_that_of_numpy_whatever_the_weights(updates, weights):
    mean = as_rows(uniform(as_tree(updates), weights))
    np.testing.assert_allclose(mean, updates.astype(float).mean(0), atol=1e-4)


@pytest.mark.parametrize("mean", [weighted, uniform])
@given(updates=updates_of, weights=weights_of, order=st.permutations(range(CLIENTS)))
def test_the_order_of_clients_plays_no_part(mean, updates, weights, order):
    one, other = mean(as_tree(updates), weights), mean(as_tree(updates[order]), weights[order])
    np.testing.assert_allclose(as_rows(one), as_rows(other), atol=1e-4)


@pytest.mark.parametrize("mean", [weighted, uniform])
@given(updates=updates_of, weights=weights_of)
def test_a_mean_lies_among_the_updates(mean, updates, weights):
    weights[0] += 1
    result = as_rows(mean(as_tree(updates), weights))
    assert (updates.min(0) - 1e-4 <= result).all() and (result <= updates.max(0) + 1e-4).all()


@given(updates=updates_of, weights=weights_of, scale=st.sampled_from([2.0**-6, 0.5, 3.0, 1e3]))
def test_only_the_ratios_of_weights_count(updates, weights, scale):
    one, other = weighted(as_tree(updates), weights), weighted(as_tree(updates), weights * np.float32(scale))
    np.testing.assert_allclose(as_rows(one), as_rows(other), atol=1e-4)


def test_a_client_of_weight_zero_changes_the_uniform_mean_only():
    updates, weights = as_tree(np.ones((CLIENTS, 7), np.float32)), np.array([1, 1, 1, 1, 0], np.float32)
    updates["a"][4] = 6.0
    assert weighted(updates, weights)["a"] == 1 and uniform(updates, weights)["a"] == 2


@pytest.mark.parametrize("aggregator", [weighted_mean(), uniform_mean()])
def test_a_contribution_of_zeros_is_that_of_nobody(aggregator):
    contribution = aggregator.contribution({"a": jnp.array([2.0, 4.0])}, jnp.float32(3), ())
    nobody = jax.tree.map(jnp.zeros_like, contribution)
    total = jax.tree.map(jnp.add, contribution, nobody)
    assert aggregator.finish(total, (), None)[0]["a"].tolist() == [2.0, 4.0]
    assert aggregator.finish(nobody, (), None)[0]["a"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("aggregator", [weighted_mean(), uniform_mean()])
def test_contributions_are_summed_not_stacked(aggregator):
    assert not aggregator.stacked and aggregator.accountant is None
    assert jax.tree.leaves(aggregator.init({"a": jnp.zeros(2)})) == []


@settings(max_examples=20)
@given(shapes=st.lists(hnp.array_shapes(min_dims=0, max_side=4, min_side=0), max_size=3))
def test_structure_and_shapes_are_kept(shapes):
    updates = {"p": [jax.ShapeDtypeStruct((CLIENTS, *shape), jnp.float32) for shape in shapes]}
    weights = jax.ShapeDtypeStruct((CLIENTS,), jnp.float32)
    for mean in (weighted, uniform):
        result = jax.eval_shape(mean, updates, weights)
        assert [(leaf.shape, leaf.dtype) for leaf in result["p"]] == [(shape, jnp.float32) for shape in shapes]


def test_equal_narrow_updates_average_to_themselves():
    updates = {"w": jnp.full((3, 2), 1.5, jnp.bfloat16)}
    for weights in ([1.0, 1.0, 1.0], [257.0, 0.0, 0.0], [1.0, 300.0, 5.0]):
        mean = weighted(updates, jnp.array(weights))
        np.testing.assert_allclose(np.asarray(mean["w"], np.float32), 1.5, rtol=2.0**-7)
