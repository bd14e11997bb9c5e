"""One contract suite for the package's components, written with `fedjax_edge.testing`: a new component adds a row.

A row says what a component promises, and what it does not: each property that it lacks is shown to be noticed.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings

import fedjax_edge as fe
from fedjax_edge import testing
from fedjax_edge.core import Aggregator, Codec, Cohort, FederatedAlgorithm, UpdateTransform
from fedjax_edge.testing.strategies import AWKWARD, client_updates, trees_like, weights

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
CLIP, MULTIPLIER, DENOMINATOR = 0.8, 1.5, 4.0


def like(tree, scale=1.0):
    """Random numbers of the form of `tree`."""
    return jax.tree.map(lambda leaf: (scale * RNG.normal(size=leaf.shape)).astype(leaf.dtype), tree)


def rows_like(tree, clients=5):
    return like(jax.tree.map(lambda leaf: np.zeros((clients, *leaf.shape), leaf.dtype), tree))


UPDATES, OTHERS = rows_like(AWKWARD), rows_like(AWKWARD)
WEIGHTS = np.array([1, 4, 0, 7, 2.5], np.float32)
FORMS = {name: AWKWARD[name] for name in ("one", "scalar", "empty", "narrow")}  # each leaf is compiled for
ONE = like(FORMS)


class AggregatorRow(NamedTuple):
    """What an aggregator promises of every cohort of finite updates."""

    aggregator: Aggregator
    has: frozenset[str]
    lacks: frozenset[str] = frozenset()
    sensitivity: float | None = None
    noise: float | None = None  # standard deviation in the aggregate


ALWAYS = frozenset({"permutation", "padding"})
AGGREGATORS = {
    "weighted_mean": AggregatorRow(
        fe.aggregation.weighted_mean(), ALWAYS | {"translation", "scale", "mirror", "convex", "linear"}
    ),
    "uniform_mean": AggregatorRow(
        fe.aggregation.uniform_mean(), ALWAYS | {"translation", "scale", "mirror", "convex", "linear"}
    ),
    "coordinate_median": AggregatorRow(
        fe.aggregation.coordinate_median(),
        ALWAYS | {"translation", "scale", "mirror", "convex"},
        lacks=frozenset({"linear"}),
    ),
    "gaussian_mean": AggregatorRow(
        fe.privacy.gaussian_mean(CLIP, MULTIPLIER, DENOMINATOR),
        ALWAYS,
        lacks=frozenset({"translation", "scale", "convex", "linear"}),
        sensitivity=CLIP,
        noise=MULTIPLIER * CLIP / DENOMINATOR,
    ),
    "gaussian_mean, without noise": AggregatorRow(
        fe.privacy.gaussian_mean(CLIP, 0.0, DENOMINATOR, max_weight=2.0),
        ALWAYS,
        lacks=frozenset({"translation", "scale", "linear"}),
        sensitivity=2 * CLIP,
    ),
    "correlated_mean": AggregatorRow(
        fe.privacy.correlated_mean(fe.privacy.tree_noise(4), CLIP, MULTIPLIER, DENOMINATOR),
        ALWAYS,
        lacks=frozenset({"translation", "scale"}),
        sensitivity=CLIP,
        noise=MULTIPLIER * CLIP / DENOMINATOR,  # of the first round
    ),
    "adaptive_clip_mean": AggregatorRow(
        fe.privacy.adaptive_clip_mean(CLIP, 0.0, DENOMINATOR), ALWAYS, lacks=frozenset({"translation", "scale"})
    ),
}
PROPERTIES: dict[str, Callable] = {
    "permutation": testing.assert_permutation_invariant,
    "padding": testing.assert_padding_invariant,
    "translation": testing.assert_translation_equivariant,
    "scale": testing.assert_scale_equivariant,
    "mirror": partial(testing.assert_scale_equivariant, factors=(-1.0,)),
    "convex": testing.assert_convex,
    "linear": lambda aggregator, updates, weights: testing.assert_linear(aggregator, updates, OTHERS, weights),
}


class CodecRow(NamedTuple):
    """What a codec, or a transform made of one, promises of every finite update."""

    codec: Codec | UpdateTransform
    unbiased: bool
    random: bool
    variance: Callable | None = None  # of an update, in float64: the bound of E ||received - update||^2
    remembers: bool = False


def of_a_grid(bits):
    """`stochastic_uniform`: at most a quarter of the squared step, for every number."""

    def bound(update):
        leaves = [leaf for leaf in jax.tree.leaves(update) if leaf.size]
        return sum(leaf.size * (np.ptp(leaf) / (2**bits - 1)) ** 2 / 4 for leaf in leaves)

    return bound


def of_dropping(fraction):
    """`top_k`: what is not kept is at most its share of the whole."""
    return lambda update: (1 - fraction) * sum(np.sum(leaf**2) for leaf in jax.tree.leaves(update))


def of_rounding(bits):
    """`fixed_point`: half a step for every number, in [-1, 1]."""
    return lambda update: sum(leaf.size for leaf in jax.tree.leaves(update)) / (2 * (2**bits - 1)) ** 2


CODECS = {
    "fixed_point": CodecRow(fe.compression.fixed_point(4), unbiased=False, random=False, variance=of_rounding(4)),
    "stochastic_uniform": CodecRow(
        fe.compression.stochastic_uniform(2), unbiased=True, random=True, variance=of_a_grid(2)
    ),
    "top_k": CodecRow(fe.compression.top_k(0.3), unbiased=False, random=False, variance=of_dropping(0.3)),
    "error_feedback(top_k)": CodecRow(
        fe.compression.error_feedback(fe.compression.top_k(0.3)), unbiased=False, random=False, remembers=True
    ),
    "error_feedback(stochastic_uniform)": CodecRow(
        fe.compression.error_feedback(fe.compression.stochastic_uniform(1)), unbiased=True, random=True, remembers=True
    ),
}

SIZES = [1, 6, 2, 4, 3]
POPULATION = fe.data.from_client_arrays(
    [{"x": RNG.normal(size=(n, 3)).astype(np.float32), "y": RNG.normal(size=n).astype(np.float32)} for n in SIZES]
)
COHORT = Cohort(jnp.array([3, 0, 4, 1, 1], jnp.int32), jnp.array([True, True, True, True, False]))
PARAMS = {"w": jnp.zeros(3), "b": jnp.zeros(())}


def squared_error(params, batch, key):
    return (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2


ALGORITHMS: dict[str, FederatedAlgorithm] = {
    "fedavg": fe.algorithms.fedavg(
        squared_error,
        optax.sgd(0.1),
        optax.sgd(1.0, momentum=0.9),
        batch_size=2,
        epochs=1,
        uplink=fe.compression.error_feedback(fe.compression.stochastic_uniform(4)),
    ),
    "scaffold": fe.algorithms.scaffold(squared_error, 0.1, num_clients=len(SIZES), batch_size=2, epochs=1),
}

each_aggregator = pytest.mark.parametrize("name", AGGREGATORS)
each_codec = pytest.mark.parametrize("name", CODECS)
each_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


def rows_with(table, condition):
    return [name for name, row in table.items() if condition(row)]


@each_aggregator
def test_an_aggregator_has_what_it_promises_and_lacks_what_it_does_not(name):
    row = AGGREGATORS[name]
    assert row.has | row.lacks <= set(PROPERTIES)
    for property_ in sorted(row.has):
        PROPERTIES[property_](row.aggregator, UPDATES, WEIGHTS)
    for property_ in sorted(row.lacks):
        with pytest.raises(AssertionError, match="leaf"):
            PROPERTIES[property_](row.aggregator, UPDATES, WEIGHTS)


@settings(max_examples=8)
@given(updates=client_updates(5), weights=weights(5))
def test_the_promises_hold_for_whatever_updates_hypothesis_finds(updates, weights):
    for row in AGGREGATORS.values():
        for property_ in sorted(row.has - {"linear"}):
            PROPERTIES[property_](row.aggregator, updates, weights)


@each_aggregator
def test_an_aggregator_is_pure_and_keeps_its_state(name):
    aggregator = AGGREGATORS[name].aggregator
    one = jax.tree.map(
        lambda leaf: leaf[:, :1].ravel()[:5], {"nested": UPDATES["nested"][0], "matrix": UPDATES["matrix"]}
    )

    def once(updates, weights, key):
        return testing.aggregate(aggregator, updates, weights, key)[0]

    testing.assert_compiles_once(once, (one, WEIGHTS, KEY), (one, 2 * WEIGHTS, jax.random.key(1)))
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), one)
    state = aggregator.init(first)
    testing.assert_pure(aggregator.contribution, first, jnp.float32(2), state)
    testing.assert_preserves_state(lambda s: testing.aggregate(aggregator, one, WEIGHTS, KEY, state=s)[1], state)


@pytest.mark.parametrize("name", rows_with(AGGREGATORS, lambda row: row.sensitivity))
def test_a_private_aggregator_keeps_its_sensitivity_and_claims_nothing_without_noise(name):
    row = AGGREGATORS[name]
    testing.assert_sensitivity(row.aggregator, UPDATES, WEIGHTS, row.sensitivity, rtol=0)
    with pytest.raises(AssertionError, match="the sensitivity is claimed to be"):
        testing.assert_sensitivity(row.aggregator, UPDATES, WEIGHTS, 0.99 * row.sensitivity)


def test_the_private_mean_claims_nothing_without_noise():
    testing.assert_no_claim_without_noise(lambda z: fe.privacy.gaussian_mean(CLIP, z, DENOMINATOR))


@pytest.mark.parametrize("name", rows_with(AGGREGATORS, lambda row: row.noise))
def test_a_private_aggregator_adds_the_noise_that_is_accounted_for(name):
    row = AGGREGATORS[name]
    small = {"a": jnp.zeros(3), "b": jnp.zeros(3)}
    testing.assert_noise_scale(row.aggregator, small, row.noise, KEY)
    for factor in (2 / 3, 3 / 2):
        with pytest.raises(AssertionError, match="has a standard deviation of"):
            testing.assert_noise_scale(row.aggregator, small, factor * row.noise, KEY)
    testing.assert_keys_independent(row.aggregator, KEY, leaves=2)


@each_codec
def test_a_codec_keeps_the_form_and_lets_nothing_infinite_pass(name):
    codec = CODECS[name].codec
    testing.assert_round_trip(codec, ONE, KEY)
    for kind in (np.zeros_like, lambda leaf: np.full_like(leaf, 0.3)):
        testing.assert_round_trip(codec, jax.tree.map(kind, ONE), KEY)
    testing.assert_rejects_non_finite(codec, ONE, KEY)


@settings(max_examples=8)
@given(update=trees_like(FORMS))
def test_codecs_keep_the_form_of_whatever_update_hypothesis_finds(update):
    for row in CODECS.values():
        testing.assert_round_trip(row.codec, update, KEY)


SMALL = like(
    {"a": np.zeros((4, 3), np.float32), "b": np.zeros((), np.float32), "narrow": np.zeros(5, jnp.bfloat16)}, 0.3
)


@each_codec
def test_a_codecs_bias_and_variance_are_those_it_documents(name):
    row = CODECS[name]
    if row.unbiased:
        testing.assert_unbiased(row.codec, SMALL, KEY)
    else:
        with pytest.raises(AssertionError, match="biased: "):
            testing.assert_unbiased(row.codec, SMALL, KEY)
    if row.variance:
        testing.assert_variance_bounded(row.codec, SMALL, row.variance, KEY)


@each_codec
def test_a_codecs_draws_are_drawn_once(name):
    row = CODECS[name]
    if row.random:
        testing.assert_keys_independent(row.codec, KEY, leaves=2)
    else:
        with pytest.raises(AssertionError, match="nothing is random"):
            testing.assert_keys_independent(row.codec, KEY, leaves=2)


@each_codec
def test_a_codec_is_pure(name):
    codec, vector = fe.core.as_transform(CODECS[name].codec), SMALL["a"]
    testing.assert_pure(lambda update, key: codec.apply(update, codec.init(update), key)[0], vector, KEY)
    testing.assert_preserves_state(lambda memory: codec.apply(SMALL, memory, KEY)[1], codec.init(SMALL))


@pytest.mark.parametrize("name", rows_with(CODECS, lambda row: row.remembers))
def test_a_memory_holds_what_was_not_sent(name):
    testing.assert_error_feedback_conserves(CODECS[name].codec, rows_like(FORMS, clients=3), KEY)


@each_algorithm
def test_an_algorithm_depends_on_neither_plan_nor_order(name):
    given = ALGORITHMS[name], PARAMS, POPULATION, COHORT
    testing.assert_plan_invariant(*given, [fe.make_plan(2, 1)], key=KEY)
    testing.assert_order_invariant(*given, key=KEY)


@each_algorithm
def test_an_algorithm_is_pure_compiles_once_and_keeps_its_state(name):
    algorithm = ALGORITHMS[name]
    round_ = partial(algorithm.round, plan=fe.make_plan())
    first = algorithm.init(PARAMS, KEY, POPULATION)
    other = algorithm.init(jax.tree.map(lambda leaf: leaf + 1, PARAMS), jax.random.key(1), POPULATION)
    reversed_ = Cohort(COHORT.ids[::-1], COHORT.present[::-1])
    compiled = jax.jit(round_)
    second, _ = compiled(first, COHORT, POPULATION)
    calls = [(state, cohort, POPULATION) for state, cohort in ((first, COHORT), (second, COHORT), (other, reversed_))]
    testing.assert_compiles_once(compiled, *calls)
    testing.assert_preserves_state(lambda state: round_(state, COHORT, POPULATION)[0], first)


def test_every_row_names_a_component_that_exists():
    parts = (fe.aggregation, fe.privacy, fe.compression, fe.algorithms)
    public = {name for part in parts for name in part.__all__}
    named = {name.split(",")[0].split("(")[0] for name in (*AGGREGATORS, *CODECS, *ALGORITHMS)}
    assert named <= public
    assert set(fe.aggregation.__all__) | {"gaussian_mean", "fedavg", "scaffold"} <= named
