from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_edge.aggregation import uniform_mean
from fedjax_edge.algorithms import fedavg
from fedjax_edge.compression import error_feedback, top_k
from fedjax_edge.core import make_plan
from fedjax_edge.core.keys import ClientStream, TrainingStream, client_key, derive
from fedjax_edge.core.permutation import permutation
from fedjax_edge.core.protocols import Cohort
from fedjax_edge.data.dataset import from_partition

KEY = jax.random.key(5)
PLAN = make_plan(width=2)
EXAMPLES, CLIENTS = 170, 5
ROUNDS = [([3, 0, 4, 1], [True, True, True, True]), ([0, 2, 1, 4], [True, True, False, True])]


def softmax_loss(params, batch, key):
    logits = batch["x"] @ params["w"] + params["b"][None, :]
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch["y"])


def gradient(params, x, y):
    """The gradient of the mean cross-entropy, by hand."""
    logits = x @ params["w"] + params["b"]
    error = np.exp(logits - logits.max(1, keepdims=True))
    error /= error.sum(1, keepdims=True)
    error[np.arange(len(y)), y] -= 1
    return {"w": x.T @ error / len(y), "b": error.mean(0)}


def sgd(rate, momentum=0.0):
    velocity = {}

    def step(params, gradient):
        for name in params:
            velocity[name] = gradient[name] + momentum * velocity.get(name, 0)
        return {name: params[name] - rate * velocity[name] for name in params}

    return step


def adam(rate, b1=0.9, b2=0.999, eps=1e-8):
    first, second, count = {}, {}, 0

    def step(params, gradient):
        nonlocal count
        count += 1
        for name in params:
            first[name] = b1 * first.get(name, 0) + (1 - b1) * gradient[name]
            second[name] = b2 * second.get(name, 0) + (1 - b2) * gradient[name] ** 2
        mean = {name: first[name] / (1 - b1**count) for name in params}
        scale = {name: np.sqrt(second[name] / (1 - b2**count)) + eps for name in params}
        return {name: params[name] - rate * mean[name] / scale[name] for name in params}

    return step


@jax.jit
def shuffled(key, size):
    return permutation(key, size)(jnp.arange(EXAMPLES))


def batches(round_number, client, size, batch_size, epochs=None, steps=None):
    """Returns the rows of each step, in the order that the table of keys documents."""
    if batch_size is None:
        return [np.arange(size)] * (steps or epochs)
    key = derive(client_key(KEY, round_number, client), ClientStream.TRAINING)
    per_epoch = -(-size // batch_size)
    rows = []
    for epoch in range(epochs or -(-steps // per_epoch)):
        order = np.asarray(shuffled(derive(key, TrainingStream.BATCHES, epoch), size))[:size]
        rows += np.split(order, range(batch_size, size, batch_size))
    return rows[:steps]


def reference(params, data, cohorts, client_optimizer, server_optimizer, **local):
    """FedAvg in NumPy, float64."""
    for number, (ids, present) in enumerate(cohorts):
        updates, weights = [], []
        for client in np.array(ids)[present]:
            own, trained, step = data.client_columns(client), params, client_optimizer()
            for rows in batches(number, client, len(own["y"]), **local):
                trained = step(trained, gradient(trained, own["x"][rows].astype(float), own["y"][rows]))
            updates.append({name: trained[name] - params[name] for name in params})
            weights.append(len(own["y"]))
        mean = {name: np.average([update[name] for update in updates], axis=0, weights=weights) for name in params}
        params = server_optimizer(params, {name: -mean[name] for name in params})
    return params


def problem(seed, features=4, classes=3, sizes=(1, 70, 13, 2, 84)):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(EXAMPLES, features)).astype(np.float32)
    y = rng.integers(0, classes, EXAMPLES).astype(np.int32)
    params = {"w": rng.normal(size=(features, classes)), "b": rng.normal(size=classes)}
    data = from_partition({"x": x, "y": y}, np.split(rng.permutation(EXAMPLES), np.cumsum(sizes)[:-1]))
    return jax.tree.map(np.float32, params), data


def train(algorithm, round_, params, data, cohorts):
    state = algorithm.init(params, KEY, data)
    for ids, present in cohorts:
        state, record = round_(state, Cohort(jnp.array(ids), jnp.array(present)), data)
    return state, record


def jitted(algorithm):
    return jax.jit(partial(algorithm.round, plan=PLAN))


def assert_trees_close(one, other, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), one, other)


ragged_sizes = st.lists(st.integers(2, EXAMPLES - 1), min_size=3, max_size=3, unique=True).map(
    lambda cuts: np.diff([0, 1, *sorted(cuts), EXAMPLES])
)


@pytest.mark.parametrize(
    ("features", "classes", "local"),
    [
        (4, 3, {"batch_size": None, "steps": 3}),
        (7, 5, {"batch_size": 4, "epochs": 2}),
        (3, 4, {"batch_size": 8, "steps": 23}),
    ],
)
def test_two_rounds_equal_those_in_numpy_on_ragged_clients_down_to_one_example(features, classes, local):
    algorithm = fedavg(softmax_loss, optax.sgd(0.1), **local)
    round_ = jitted(algorithm)

    @settings(max_examples=5)
    @given(sizes=ragged_sizes, seed=st.integers(0, 99))
    def check(sizes, seed):
        params, data = problem(seed, features, classes, sizes)
        state, _ = train(algorithm, round_, params, data, ROUNDS)
        expected = reference(params, data, ROUNDS, lambda: sgd(0.1), sgd(1.0), **local)
        assert_trees_close(algorithm.params(state), expected, atol=1e-5)

    check()


OPTIMIZERS = {
    "momentum on clients, adam on the server": (
        (optax.sgd(0.05, momentum=0.8), lambda: sgd(0.05, 0.8)),
        (optax.adam(0.1), lambda: adam(0.1)),
    ),
    "adam on clients, momentum on the server": (
        (optax.adam(0.01), lambda: adam(0.01)),
        (optax.sgd(0.5, momentum=0.9), lambda: sgd(0.5, 0.9)),
    ),
}


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_the_servers_optimizer_remembers_and_the_clients_begin_anew(case):
    (client, numpy_client), (server, numpy_server) = OPTIMIZERS[case]
    local = {"batch_size": None, "steps": 4}
    algorithm = fedavg(softmax_loss, client, server, **local)
    params, data = problem(1)
    with jax.numpy_dtype_promotion("standard"):  # optax.adam mixes integers and floats
        state, _ = train(algorithm, jitted(algorithm), params, data, ROUNDS * 2)
    expected = reference(params, data, ROUNDS * 2, numpy_client, numpy_server(), **local)
    assert_trees_close(algorithm.params(state), expected, atol=1e-5)


def test_one_full_batch_step_of_everyone_is_gradient_descent_on_the_pooled_data():
    algorithm = fedavg(softmax_loss, optax.sgd(0.3), batch_size=None, steps=1)
    params, data = problem(2)
    everyone = [(list(range(CLIENTS)), [True] * CLIENTS)] * 6
    state, record = train(algorithm, jitted(algorithm), params, data, everyone)
    step = sgd(0.3)
    for _ in everyone:
        params = step(params, gradient(params, data.columns["x"].astype(float), data.columns["y"]))
    assert_trees_close(algorithm.params(state), params, atol=1e-5)
    assert record.metrics["loss"].count == EXAMPLES


def test_many_local_steps_on_unlike_quadratics_end_at_the_mean_weighted_by_how_far_each_client_gets():
    curvature, optimum = np.array([1.0, 8.0], np.float32), np.array([-1.0, 2.0], np.float32)
    data = from_partition({"a": curvature, "b": optimum}, [[0], [1]])
    algorithm = fedavg(
        lambda params, batch, key: batch["a"] * (params - batch["b"]) ** 2 / 2,
        optax.sgd(0.1),
        batch_size=None,
        steps=10,
    )
    both = Cohort(jnp.arange(2), jnp.ones(2, bool))

    @jax.jit
    def run(state, data):
        return jax.lax.scan(lambda state, _: (algorithm.round(state, both, data, PLAN)[0], None), state, length=60)[0]

    found = algorithm.params(run(algorithm.init(jnp.float32(0), KEY, data), data))
    gone = 1 - (1 - 0.1 * curvature) ** 10
    assert found == pytest.approx((gone @ optimum) / gone.sum(), abs=1e-4)
    assert abs(found - (curvature @ optimum) / curvature.sum()) > 0.5


UPLINK = error_feedback(top_k(0.3))
REMEMBERING = {
    "full batch": fedavg(softmax_loss, optax.sgd(0.1), batch_size=None, epochs=2, uplink=UPLINK),
    "mini-batches": fedavg(softmax_loss, optax.sgd(0.1), batch_size=16, epochs=2, uplink=UPLINK),
}
REMEMBERING_ROUND = {name: jitted(algorithm) for name, algorithm in REMEMBERING.items()}


@pytest.mark.parametrize("local", REMEMBERING)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_client_whose_data_are_not_finite_is_rejected_and_counted_and_plays_no_part(bad, local):
    params, data = problem(3)
    broken = data.columns["x"].copy()
    broken[data.offsets[1] : data.offsets[2], 0] = bad
    broken = from_partition(data.columns | {"x": broken}, np.split(np.arange(EXAMPLES), data.offsets[1:-1]))
    ids, algorithm, round_ = jnp.array([0, 2, 1, 4]), REMEMBERING[local], REMEMBERING_ROUND[local]
    state, _ = round_(algorithm.init(params, KEY, data), Cohort(ids, jnp.ones(4, bool)), data)

    with_it, record = round_(state, Cohort(ids, jnp.ones(4, bool)), broken)
    without_it, expected = round_(state, Cohort(ids, ids != 1), broken)
    assert (record.clients, record.rejected, expected.clients, expected.rejected) == (4, 1, 3, 0)
    assert np.isfinite(algorithm.params(with_it)["w"]).all()
    assert_trees_close(algorithm.params(with_it), algorithm.params(without_it), rtol=1e-6)
    assert_trees_close(record.metrics, expected.metrics, rtol=1e-6)
    assert record.metrics["loss"].count == 2 * (1 + 13 + 84)
    assert record.bits_up.value() * 3 == expected.bits_up.value() * 4

    assert_trees_close(with_it.uplink, without_it.uplink, rtol=1e-5)
    before, after = (np.asarray(jax.tree.leaves(tree.uplink)[1]) for tree in (state, with_it))
    np.testing.assert_array_equal(after[[1, 3]], before[[1, 3]])
    assert before[1].any() and not np.array_equal(after[2], before[2])


def test_another_aggregator_takes_the_place_of_the_weighted_mean():
    params, data = problem(4)
    cohorts = [([1, 3], [True, True])]
    equal = fedavg(softmax_loss, optax.sgd(0.1), batch_size=None, steps=1, aggregator=uniform_mean())
    state, _ = train(equal, jitted(equal), params, data, cohorts)
    gradients = [gradient(params, own["x"].astype(float), own["y"]) for own in map(data.client_columns, (1, 3))]
    expected = {name: params[name] - 0.1 * (gradients[0][name] + gradients[1][name]) / 2 for name in params}
    assert_trees_close(equal.params(state), expected, atol=1e-5)


@pytest.mark.parametrize("local", [{}, {"epochs": 1, "steps": 1}])
def test_exactly_one_of_epochs_and_steps_must_be_given(local):
    with pytest.raises(ValueError, match="give exactly one of epochs and steps, got epochs="):
        fedavg(softmax_loss, optax.sgd(0.1), batch_size=4, **local)
