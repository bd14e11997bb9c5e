from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_edge as fe
from fedjax_edge.compression import (
    apply_mask,
    compose,
    magnitude_mask,
    masked,
    sparse_optimizer,
    stochastic_uniform,
    stored_bits,
    symmetric,
)
from fedjax_edge.core.trees import size_in_bits

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def test_the_largest_of_each_matrix_stay_and_vectors_are_kept_whole():
    params = {
        "kernel": jnp.array([[1.0, -3.0, 0.5], [2.0, 0.0, -0.1]], jnp.bfloat16),
        "equal": jnp.ones((2, 2, 1)),
        "bias": jnp.zeros(3),
        "scalar": jnp.float32(0),
        "empty": jnp.zeros((0, 2)),
        "one": jnp.zeros((1, 1)),
    }
    mask = magnitude_mask(params, 0.5)
    assert mask["kernel"].tolist() == [[True, True, False], [True, False, False]]
    assert mask["equal"].ravel().tolist() == [True, True, False, False]
    assert all(mask[name].all() for name in ("bias", "scalar", "empty", "one"))
    assert all(leaf.all() for leaf in jax.tree.leaves(magnitude_mask(params, 0)))
    assert int(magnitude_mask(params, 0.99)["kernel"].sum()) == 1
    pruned = apply_mask(params, mask)
    assert pruned["kernel"].tolist() == [[1, -3, 0], [2, 0, 0]] and pruned["kernel"].dtype == jnp.bfloat16


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.5, np.nan])
def test_impossible_sparsities_are_refused(sparsity):
    with pytest.raises(ValueError, match="sparsity must be"):
        magnitude_mask({}, sparsity)


def test_a_model_that_is_not_finite_is_not_pruned():
    with pytest.raises(ValueError, match="params must be finite"):
        magnitude_mask(jnp.full((2, 2), jnp.nan), 0.5)


def test_the_schedule_of_zhu_and_gupta_is_that_of_optax():
    schedule = optax.polynomial_schedule(0.2, 0.8, power=3, transition_steps=10, transition_begin=5)
    for step in (0, 5, 9, 15, 30):
        t = np.clip((step - 5) / 10, 0, 1)
        assert float(schedule(step)) == pytest.approx(0.8 + (0.2 - 0.8) * (1 - t) ** 3)


SIZES = [5, 8, 3]
POPULATION = fe.data.from_client_arrays(
    [{"x": RNG.normal(size=(n, 6)).astype(np.float32), "y": RNG.normal(size=(n, 4)).astype(np.float32)} for n in SIZES]
)
PARAMS = {"w": jnp.asarray(RNG.normal(size=(6, 4)).astype(np.float32)), "b": jnp.zeros(4)}
MASK = magnitude_mask(PARAMS, 0.7)


def loss_fn(params, batch, key):
    return ((batch["x"] @ params["w"] + params["b"][None] - batch["y"]) ** 2).sum(1)


OPTIMIZERS = {
    "momentum": optax.sgd(0.02, momentum=0.9, nesterov=True),
    "weight decay and sign": optax.chain(optax.add_decayed_weights(0.1), optax.scale_by_sign(), optax.scale(-0.01)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_pruned_stays_zero_through_training_compression_noise_and_server_momentum(name):
    start = apply_mask(PARAMS, MASK)
    algorithm = fe.federated(
        client=fe.clients.local_sgd(loss_fn, sparse_optimizer(OPTIMIZERS[name], MASK), batch_size=2, epochs=2),
        uplink=compose(masked(MASK), stochastic_uniform(8)),
        aggregator=fe.privacy.gaussian_mean(clip_norm=1.0, noise_multiplier=0.1, denominator=3),
        server=sparse_optimizer(optax.sgd(1.0, momentum=0.9), MASK),
    )
    state = algorithm.init(start, KEY, POPULATION)
    cohort = fe.core.Cohort(jnp.arange(3), jnp.ones(3, bool))
    round_ = jax.jit(partial(algorithm.round, plan=fe.make_plan(1)))
    for _ in range(3):
        state, record = round_(state, cohort, POPULATION)
    trained = algorithm.params(state)
    assert not np.asarray(trained["w"])[~MASK["w"]].any()
    assert (np.asarray(trained["w"])[MASK["w"]] != np.asarray(start["w"])[MASK["w"]]).all() and trained["b"].all()
    kept = 24 - 17 + 4
    assert int(record.bits_up.value()) == 3 * (kept * 8 + 64)
    assert int(record.rejected) == 0


def test_only_what_is_kept_is_sent_and_a_nan_anywhere_is_seen():
    codec = masked(MASK)
    payload = codec.encode(PARAMS, None)
    assert size_in_bits(payload) == 32 * (7 + 4)
    received = codec.decode(payload)
    jax.tree.map(np.testing.assert_array_equal, received, apply_mask(PARAMS, MASK))
    spoilt = {**PARAMS, "w": jnp.where(MASK["w"], PARAMS["w"], jnp.nan)}
    assert not np.isfinite(codec.decode(codec.encode(spoilt, None))["b"]).any()
    for other in ({"w": PARAMS["w"]}, {**PARAMS, "b": jnp.zeros(5)}):
        with pytest.raises(ValueError, match="the mask is for updates of shapes"):
            codec.encode(other, None)
    nothing = masked({"a": np.zeros(3, bool)})
    assert nothing.decode(nothing.encode({"a": jnp.ones(3)}, None))["a"].tolist() == [0, 0, 0]


def test_sizes_worked_by_hand():
    params = {"w": jax.ShapeDtypeStruct((16, 8), jnp.float32), "b": jax.ShapeDtypeStruct((8,), jnp.bfloat16)}
    mask = {"w": np.arange(128).reshape(16, 8) < 20, "b": np.ones(8, bool)}
    assert stored_bits(params) == (128 * 32 + 8 * 16, 128 * 33 + 8 * 17, 128 * 39 + 8 * 19)
    assert stored_bits(params, mask) == (4224, 20 * 32 + 128 + 8 * 17, 20 * (32 + 7) + 8 * (16 + 3))
    assert stored_bits(params, mask, bits=8) == (136 * 8 + 64, 28 * 8 + 136 + 64, 20 * 15 + 8 * 11 + 64)


def test_a_pruned_model_in_8_bits_stays_as_accurate_and_takes_a_tenth():
    train, test = fe.data.mnist_sample()
    model = fe.models.logistic_regression()
    loss = fe.models.classification(model)
    population = fe.data.from_client_arrays([{name: column[:2000] for name, column in train.items()}])

    @jax.jit
    def trained(params, mask):
        client = fe.clients.local_sgd(loss, sparse_optimizer(optax.sgd(0.1), mask), batch_size=20, epochs=2)
        return optax.tree.add(params, client.update(params, population.examples(jnp.int32(0)), (), KEY).update)

    def accuracy(params):
        return float(loss(params, test, None)[1]["accuracy"].mean())

    everything = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), model.init(KEY))
    dense = trained(model.init(KEY), everything)
    mask = magnitude_mask(dense, 0.8)
    sparse = trained(apply_mask(dense, mask), mask)
    stored = symmetric(8).decode(symmetric(8).encode(sparse, None))
    before, after = accuracy(dense), accuracy(stored)
    assert before > 0.8 and after > before - 0.02
    jax.tree.map(lambda leaf, keep: np.testing.assert_array_equal(np.asarray(leaf)[~keep], 0), stored, mask)
    assert stored_bits(stored, mask, bits=8).bitmap < 0.1 * stored_bits(dense).dense
