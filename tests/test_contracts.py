"""One contract suite for the package's components, written with `fedjax_edge.testing`: a new component adds a row.

A row says what a component promises, and what it does not: each property that it lacks is shown to be noticed. A
public function that returns a component and has no row fails the last test.
"""

import inspect
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
from fedjax_edge.compression import (
    compose,
    count_sketch,
    drive,
    eden,
    entropy_coded,
    error_feedback,
    fetch_sgd,
    fixed_point,
    half_precision,
    low_rank,
    masked,
    natural_compression,
    per_leaf,
    power_sgd,
    qsgd,
    random_k,
    rotated,
    scaled_sign,
    sent_as_sketch,
    sign,
    stochastic_uniform,
    symmetric,
    terngrad,
    top_k,
)
from fedjax_edge.core import Aggregator, ClientUpdate, Codec, Cohort, FederatedAlgorithm, UpdateTransform, as_transform
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
SMALL = like(
    {"a": np.zeros((4, 3), np.float32), "b": np.zeros((), np.float32), "narrow": np.zeros(4, jnp.bfloat16)}, 0.3
)
SIZES = (12, 1, 4)  # of its leaves: 17 numbers


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
    "majority_vote": AggregatorRow(
        fe.aggregation.majority_vote(), ALWAYS | {"mirror"}, lacks=frozenset({"translation", "scale", "linear"})
    ),
    "fetch_sgd": AggregatorRow(  # leaves share its cells: times 0.37, a bfloat16 leaf's rounding shows in float32 ones
        fetch_sgd(3, 40, fraction=0.2), ALWAYS | {"mirror"}, lacks=frozenset({"translation", "linear"})
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


def masked_by_turns():
    """`masked`, with a mask that keeps every other number of whatever form an update has."""

    def of(structure, shapes):
        return masked(structure.unflatten([np.arange(np.prod(s, dtype=int)).reshape(s) % 2 == 0 for s in shapes]))

    def encode(update, key):
        leaves, structure = jax.tree.flatten(update)
        return of(structure, [leaf.shape for leaf in leaves]).encode(update, key)

    return Codec(encode, lambda payload: of(payload.shape.structure, payload.shape.shapes).decode(payload))


VARIES = "with the numbers"


class CodecRow(NamedTuple):
    """What a codec, or a transform made of one, promises of every finite update."""

    codec: Codec | UpdateTransform
    bits: object  # of the payload of SMALL, int; VARIES; or None where the payload's form is left alone
    unbiased: bool | None = False  # None: up to what vanishes with the size, tested where the codec is
    random: bool | None = True  # None: in a way that the kit's vectors do not show, tested where the codec is
    standard_errors: float = 6.0  # of correlations, by which draws may be related: more where few numbers draw
    error: Callable | None = None  # of an update, in float64: the bound of E ||received - update||^2
    tight: bool = False  # whether that is the error itself
    contracts: bool = False  # what is lost is always less than the update: error feedback makes up for it
    remembers: Callable | None = None  # of the state: what is still to be sent
    zero: bool = True  # whether zeros come back as they are


def whole_bytes(bits):
    return 8 * -(-bits // 8)


def each_leaf(bits, extra):
    return sum(whole_bytes(size * bits) + extra for size in SIZES)


def leaves_of(update):
    return [np.ravel(leaf) for leaf in jax.tree.leaves(update) if np.size(leaf)]


def squared(update):
    return sum((leaf**2).sum() for leaf in leaves_of(update))


def share(factor):
    return lambda update: factor * squared(update)


def of_a_grid(bits):
    return lambda update: sum(x.size * (np.ptp(x) / (2**bits - 1) / 2) ** 2 for x in leaves_of(update))


def of_levels(levels):
    return lambda update: sum(min(x.size / levels**2, x.size**0.5 / levels) * (x**2).sum() for x in leaves_of(update))


def of_terngrad(update):
    return sum(np.abs(x).max() * np.abs(x).sum() - (x**2).sum() for x in leaves_of(update))


def of_powers(update):
    x = np.abs(np.concatenate(leaves_of(update)))
    low = 2.0 ** np.floor(np.log2(x))
    return ((x - low) * (2 * low - x)).sum()


def of_mean_magnitudes(update):
    return sum((x**2).sum() - np.abs(x).sum() ** 2 / x.size for x in leaves_of(update))


QUARTER = 0.25 - 1e-9  # of 17 numbers: 4
CODECS = {
    "fixed_point": CodecRow(
        fixed_point(4), whole_bytes(17 * 5), random=False, error=lambda update: 17 / (2 * (2**4 - 1)) ** 2
    ),
    "stochastic_uniform": CodecRow(stochastic_uniform(2), each_leaf(2, 64), unbiased=True, error=of_a_grid(2)),
    "top_k": CodecRow(top_k(QUARTER), 4 * 32 + whole_bytes(4 * 5), random=False, error=share(13 / 17), contracts=True),
    "per_leaf(top_k)": CodecRow(
        per_leaf(top_k(0.5)), (6 + 1 + 2) * 32 + 24 + 8 + 8, random=False, error=share(0.5), contracts=True
    ),
    "random_k": CodecRow(random_k(QUARTER), 4 * 32 + 32, unbiased=True, error=share(13 / 4), tight=True),
    "random_k, not multiplied": CodecRow(
        random_k(QUARTER, unbiased=False), 4 * 32 + 32, error=share(13 / 17), tight=True, contracts=True
    ),
    "qsgd, 1 level": CodecRow(qsgd(1), each_leaf(2, 32), unbiased=True, error=of_levels(1)),
    "qsgd, 3 levels": CodecRow(qsgd(3), each_leaf(3, 32), unbiased=True, error=of_levels(3)),
    "terngrad": CodecRow(terngrad(), each_leaf(2, 32), unbiased=True, error=of_terngrad, tight=True),
    "natural_compression": CodecRow(
        natural_compression(), whole_bytes(17 * 9), unbiased=True, error=of_powers, tight=True
    ),
    "sign": CodecRow(sign(), whole_bytes(17) + 8, random=False, zero=False),
    "scaled_sign": CodecRow(
        scaled_sign(), each_leaf(1, 32), random=False, error=of_mean_magnitudes, tight=True, contracts=True
    ),
    "rotated(stochastic_uniform)": CodecRow(
        rotated(stochastic_uniform(3)), 32 * 3 + 64 + 32, unbiased=True, error=share((2 * np.log(32) + 2) / 49)
    ),
    "drive": CodecRow(drive(), 32 + 32 + 32, unbiased=None, error=share(np.pi / 2 - 1), contracts=True),
    "eden": CodecRow(eden(3), 32 * 3 + 32 + 32, unbiased=None, error=share(0.0358), contracts=True),
    "half_precision": CodecRow(half_precision(), 17 * 16, random=False, error=share(2.0**-18), contracts=True),
    "half_precision, 8 bits": CodecRow(
        half_precision(jnp.float8_e4m3fn), 17 * 8, random=False, error=share(2.0**-8), contracts=True
    ),
    "compose(top_k, stochastic_uniform)": CodecRow(
        compose(top_k(QUARTER), stochastic_uniform(8)),
        4 * 8 + whole_bytes(4 * 5) + 64,
        standard_errors=12.0,
        contracts=True,
    ),
    "compose(random_k, qsgd)": CodecRow(
        compose(random_k(QUARTER), qsgd(127)),
        4 * 8 + 32 + 32,
        unbiased=True,
        error=share(17 / 4 * (1 + 4 / 127**2) - 1),
    ),
    "count_sketch": CodecRow(count_sketch(3, 7), 3 * 7 * 32 + 32, unbiased=True, error=share(16 / (3 * 7)), tight=True),
    "count_sketch, median": CodecRow(count_sketch(5, 7, median=True), 5 * 7 * 32 + 32, unbiased=True),
    "low_rank": CodecRow(
        low_rank(1),
        (4 + 3 + 1) * 32 + 4 * 16,
        random=None,
        error=lambda x: (1 - 1 / 3) * (x["a"] ** 2).sum(),
        contracts=True,
    ),
    "power_sgd": CodecRow(
        power_sgd(1),
        (4 + 3 + 1) * 32 + 4 * 16,
        random=None,
        error=lambda x: (1 - 1 / 3) * (x["a"] ** 2).sum(),
        remembers=lambda state: state.memory,
    ),
    "masked": CodecRow(masked_by_turns(), (6 + 1 + 2) * 32, random=False, error=squared),
    "symmetric": CodecRow(
        symmetric(4),
        each_leaf(4, 32),
        random=False,
        error=lambda update: sum(x.size * (np.abs(x).max() / 14) ** 2 for x in leaves_of(update)),
    ),
    "entropy_coded(qsgd)": CodecRow(entropy_coded(qsgd(1)), VARIES, unbiased=True, error=of_levels(1)),
    "error_feedback(top_k)": CodecRow(
        error_feedback(top_k(QUARTER)), 4 * 32 + 24, random=False, error=share(13 / 17), remembers=lambda state: state
    ),
    "error_feedback(stochastic_uniform)": CodecRow(
        error_feedback(stochastic_uniform(1)), each_leaf(1, 64), unbiased=True, remembers=lambda state: state
    ),
    "sent_as_sketch": CodecRow(sent_as_sketch(3, 7), 3 * 7 * 32, unbiased=True, random=False),
    "clip": CodecRow(fe.privacy.clip(0.5), None, random=False, contracts=True),
}

EXAMPLES = [1, 6, 2, 4, 3]
POPULATION = fe.data.from_client_arrays(
    [{"x": RNG.normal(size=(n, 3)).astype(np.float32), "y": RNG.normal(size=n).astype(np.float32)} for n in EXAMPLES]
)
COHORT = Cohort(jnp.array([3, 0, 4, 1, 1], jnp.int32), jnp.array([True, True, True, True, False]))
PARAMS = {"w": jnp.zeros(3), "b": jnp.zeros(())}


def squared_error(params, batch, key):
    return (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2


LOCAL_SGD = fe.clients.local_sgd(squared_error, optax.sgd(0.1), batch_size=2, epochs=2)
CLIENTS: dict[str, ClientUpdate] = {
    "local_sgd": LOCAL_SGD,
    "local_sgd, all examples a step": fe.clients.local_sgd(
        squared_error, optax.sgd(0.1, 0.9), batch_size=None, steps=2
    ),
    "with_weights": fe.clients.with_weights(LOCAL_SGD, np.arange(5.0)),
}
ALGORITHMS: dict[str, FederatedAlgorithm] = {
    "fedavg": fe.algorithms.fedavg(
        squared_error,
        optax.sgd(0.1),
        optax.sgd(1.0, momentum=0.9),
        batch_size=2,
        epochs=1,
        uplink=error_feedback(stochastic_uniform(4)),
    ),
    "fedavg_dp_sgd": fe.algorithms.fedavg_dp_sgd(
        squared_error, optax.sgd(0.1), clip_norm=1.0, noise_multiplier=0.5, batch_size=2, epochs=1
    ),
    "scaffold": fe.algorithms.scaffold(squared_error, 0.1, num_clients=len(EXAMPLES), batch_size=2, epochs=1),
}

each_aggregator = pytest.mark.parametrize("name", AGGREGATORS)
each_codec = pytest.mark.parametrize("name", CODECS)
each_client = pytest.mark.parametrize("name", CLIENTS)
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
    row = CODECS[name]
    testing.assert_round_trip(row.codec, ONE, KEY)
    testing.assert_round_trip(row.codec, jax.tree.map(lambda leaf: np.full_like(leaf, 0.3), ONE), KEY)
    testing.assert_round_trip(row.codec, jax.tree.map(np.zeros_like, ONE), KEY, exact=row.zero)
    testing.assert_rejects_non_finite(row.codec, ONE, KEY)


@settings(max_examples=8)
@given(update=trees_like(FORMS, magnitude=2.0**100))
def test_codecs_keep_the_form_of_whatever_update_hypothesis_finds(update):
    for row in CODECS.values():
        testing.assert_round_trip(row.codec, update, KEY)


@each_codec
def test_a_codec_costs_the_bits_that_are_documented_and_nothing_for_nothing(name):
    transform = as_transform(CODECS[name].codec)

    def bits(update):
        counted = []

        def through(update, key):
            received, _, sent = transform.apply(update, transform.init(update), key)
            counted.append(sent)
            return received

        testing.assert_same_kind("what is received", jax.eval_shape(through, update, KEY), update)
        return counted[0]

    assert tuple(leaf.size for leaf in jax.tree.leaves(SMALL)) == SIZES
    counted = bits(SMALL)
    documented = CODECS[name].bits
    assert counted.dtype == jnp.int32 if documented is VARIES else counted == documented
    for empty in ({}, jnp.zeros((0, 2), jnp.bfloat16)):
        bits(empty)


@each_codec
def test_a_codecs_bias_and_error_are_those_it_documents(name):
    row = CODECS[name]
    if row.unbiased:
        testing.assert_unbiased(row.codec, SMALL, KEY)
    elif row.unbiased is False:
        with pytest.raises(AssertionError, match="biased: "):
            testing.assert_unbiased(row.codec, SMALL, KEY)
    if row.error:
        testing.assert_variance_bounded(row.codec, SMALL, row.error, KEY)
    if row.tight:
        with pytest.raises(AssertionError, match="the bound is"):
            testing.assert_variance_bounded(row.codec, SMALL, lambda update: 0.75 * row.error(update), KEY)
    if row.contracts:
        testing.assert_variance_bounded(row.codec, SMALL, lambda update: 0.999 * squared(update), KEY)


@each_codec
def test_a_codecs_draws_are_drawn_once(name):
    row = CODECS[name]
    if row.random:
        testing.assert_keys_independent(row.codec, KEY, leaves=2, standard_errors=row.standard_errors)
    elif row.random is False:
        with pytest.raises(AssertionError, match="nothing is random"):
            testing.assert_keys_independent(row.codec, KEY, rounds=1, clients=2, leaves=1, size=32)


@each_codec
def test_a_codec_is_pure(name):
    codec, vector = as_transform(CODECS[name].codec), SMALL["a"]

    def send(update, key):  # traced anew at each call, and compiled whole also where nothing else compiles
        return jax.jit(lambda update, key: codec.apply(update, codec.init(update), key)[0])(update, key)

    testing.assert_pure(send, vector, KEY)
    testing.assert_preserves_state(lambda memory: codec.apply(SMALL, memory, KEY)[1], codec.init(SMALL))


@pytest.mark.parametrize("name", rows_with(CODECS, lambda row: row.remembers or row.contracts))
def test_a_memory_holds_what_was_not_sent(name):
    row = CODECS[name]
    if row.remembers:
        testing.assert_error_feedback_conserves(row.codec, rows_like(FORMS, clients=3), KEY, memory=row.remembers)
    elif isinstance(row.codec, Codec):
        testing.assert_error_feedback_conserves(error_feedback(row.codec), rows_like(FORMS, clients=3), KEY)


@each_client
def test_a_client_sees_its_own_examples_and_nothing_else(name):
    update = jax.jit(CLIENTS[name].update)
    state = CLIENTS[name].init(PARAMS)
    for client, size in enumerate(EXAMPLES):
        examples = POPULATION.examples(jnp.int32(client))
        output = update(PARAMS, examples, state, KEY)
        testing.assert_same_kind("the update", output.update, PARAMS)
        testing.assert_same_kind("the client's state", output.state, state)
        testing.assert_same_kind("the weight", output.weight, jnp.float32(0))
        start = int(examples.start)
        spoilt = jax.tree.map(
            lambda column, rows=slice(start, start + size): jnp.full_like(column, jnp.nan).at[rows].set(column[rows]),
            examples.columns,
        )
        again = update(PARAMS, examples._replace(columns=spoilt), state, KEY)
        testing.assert_close("among clients whose numbers are all NaN", again, output, rtol=0.0)
        nothing = update(PARAMS, examples._replace(size=jnp.int32(0)), state, KEY)
        testing.assert_close("without examples", nothing.update, jax.tree.map(jnp.zeros_like, PARAMS), rtol=0.0)


@each_client
def test_a_client_update_is_pure_and_compiles_once(name):
    client = CLIENTS[name]
    calls = [(PARAMS, POPULATION.examples(jnp.int32(i)), client.init(PARAMS), jax.random.key(i)) for i in (1, 4)]
    testing.assert_pure(client.update, *calls[0])
    testing.assert_compiles_once(jax.jit(client.update), *calls)


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


TABLES = {
    Aggregator: AGGREGATORS,
    Codec: CODECS,
    UpdateTransform: CODECS,
    ClientUpdate: CLIENTS,
    FederatedAlgorithm: ALGORITHMS,
}


def without_rows(functions):
    """The names of those that return a component and have no row in its table."""
    missing = set()
    for name, function in functions.items():
        returned = inspect.signature(function).return_annotation
        assert returned is not inspect.Signature.empty, f"{name} does not say what it returns"
        rows = {row.split(",")[0].split("(")[0] for row in TABLES.get(returned, ())}
        missing |= {name} if returned in TABLES and name not in rows else set()
    return missing


def test_every_public_component_has_a_row_and_every_row_names_one():
    parts = (fe.aggregation, fe.algorithms, fe.clients, fe.compression, fe.privacy)
    public = {name: getattr(part, name) for part in parts for name in part.__all__ if name.islower()}
    assert not without_rows(public)
    named = {row.split(",")[0].split("(")[0] for table in TABLES.values() for row in table}
    assert named <= set(public)


def test_a_component_without_a_row_is_noticed():
    def new_codec() -> Codec:
        pass

    assert without_rows({"new_codec": new_codec, "top_k": top_k}) == {"new_codec"}
    with pytest.raises(AssertionError, match="does not say what it returns"):
        without_rows({"unclear": lambda: None})
