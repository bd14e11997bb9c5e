from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_edge.algorithms import fedavg, scaffold
from fedjax_edge.compression import error_feedback, power_sgd, random_k, stochastic_uniform, top_k
from fedjax_edge.core import chain, make_plan
from fedjax_edge.core.keys import ClientStream, TrainingStream, client_key, derive
from fedjax_edge.core.permutation import permutation
from fedjax_edge.core.protocols import Cohort
from fedjax_edge.data.dataset import from_client_arrays, from_partition
from fedjax_edge.data.samplers import cyclic, everyone, uniform
from fedjax_edge.simulation import run

KEY = jax.random.key(8)
PLAN = make_plan(width=2)
SIZES = [1, 19, 7, 40, 3]
RATE, SERVER_RATE = 0.15, 0.7
COHORTS = [([3, 0, 4], [True, True, True]), ([0, 2, 1], [True, True, False]), ([4, 1, 3], [True, True, True])]


def squared_loss(params, batch, key):
    return (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2 / 2


def gradient(params, x, y):
    error = x @ params["w"] + params["b"] - y
    return {"w": x.T @ error / len(y), "b": error.mean()}


@jax.jit
def shuffled(key, size):
    return permutation(key, size)(jnp.arange(max(SIZES)))


def batches(round_number, client, size, batch_size, epochs=None, steps=None):
    """Returns the rows of each step, in the order that the table of keys documents."""
    if batch_size is None:
        return [np.arange(size)] * steps
    key = derive(client_key(KEY, round_number, client), ClientStream.TRAINING)
    rows = []
    for epoch in range(epochs):
        order = np.asarray(shuffled(derive(key, TrainingStream.BATCHES, epoch), size))[:size]
        rows += np.split(order, range(batch_size, size, batch_size))
    return rows


def combine(function, *trees):
    return {name: function(*(tree[name] for tree in trees)) for name in trees[0]}


def reference(params, data, cohorts, **local):
    """Algorithm 1 with Option II in NumPy, float64; returns x, c and all c_i."""
    x, c = params, combine(np.zeros_like, params)
    controls = [c] * data.num_clients
    for number, (ids, present) in enumerate(cohorts):
        changes, control_changes = [], []
        for client in np.array(ids)[present]:
            own, y, c_i = data.client_columns(client), x, controls[client]
            steps = batches(number, client, len(own["y"]), **local)
            for rows in steps:
                g = gradient(y, own["x"][rows].astype(float), own["y"][rows])
                y = combine(lambda y, g, c_i, c: y - RATE * (g - c_i + c), y, g, c_i, c)
            scale = 1 / (len(steps) * RATE)
            controls[client] = combine(lambda c_i, c, x, y, s=scale: c_i - c + s * (x - y), c_i, c, x, y)
            changes.append(combine(np.subtract, y, x))
            control_changes.append(combine(np.subtract, controls[client], c_i))
        x = combine(lambda x, *dy: x + SERVER_RATE * np.mean(dy, axis=0), x, *changes)
        c = combine(lambda c, *dc: c + sum(dc) / data.num_clients, c, *control_changes)
    return x, c, controls


def problem(sizes=SIZES):
    rng = np.random.default_rng(0)
    columns = {
        "x": rng.normal(size=(sum(sizes), 4)).astype(np.float32),
        "y": rng.normal(size=sum(sizes)).astype(np.float32),
    }
    params = {"w": rng.normal(size=4).astype(np.float32), "b": np.float32(0.3)}
    return params, from_partition(columns, np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]))


def train(algorithm, params, data, cohorts):
    state, round_ = algorithm.init(params, KEY, data), jax.jit(partial(algorithm.round, plan=PLAN))
    for ids, present in cohorts:
        state, record = round_(state, Cohort(jnp.array(ids), jnp.array(present)), data)
    return state, record


def assert_trees_close(one, other, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), one, other)


@pytest.mark.parametrize("local", [{"batch_size": None, "steps": 3}, {"batch_size": 4, "epochs": 2}])
def test_three_rounds_of_partial_participation_equal_algorithm_1_in_numpy(local):
    params, data = problem()
    algorithm = scaffold(squared_loss, RATE, SERVER_RATE, num_clients=5, **local)
    state, _ = train(algorithm, params, data, COHORTS)
    x, c, controls = reference(params, data, COHORTS, **local)
    assert_trees_close(algorithm.params(state), x, atol=2e-5)
    assert_trees_close(state.server.control, c, atol=2e-5)
    assert_trees_close(state.clients, combine(lambda *rows: np.stack(rows), *controls), atol=5e-5)


def test_with_one_client_it_is_sgd():
    params, data = problem([40])
    algorithm = scaffold(squared_loss, RATE, num_clients=1, batch_size=6, epochs=1)
    state, record = train(algorithm, params, data, [([0], [True])] * 3)
    x, y = data.columns["x"].astype(float), data.columns["y"]
    for number in range(3):
        for rows in batches(number, 0, 40, batch_size=6, epochs=1):
            params = combine(lambda p, g: p - RATE * g, params, gradient(params, x[rows], y[rows]))
    assert_trees_close(algorithm.params(state), params, atol=1e-5)
    assert record.metrics["loss"].count == 40


def test_it_finds_the_optimum_of_unlike_quadratics_where_fedavg_is_biased():
    sampler = cyclic(3, 2)
    curvature, optimum = np.array([1, 8, 3], np.float32), np.array([-1, 2, 5], np.float32)
    data = from_partition({"a": curvature, "b": optimum}, [[0], [1], [2]])
    local = {"batch_size": None, "steps": 10}

    def loss(params, batch, key):
        return batch["a"] * (params - batch["b"]) ** 2 / 2

    def error_of(algorithm):
        def one_round(state, number):
            return algorithm.round(state, sampler.sample(KEY, number), data, PLAN)[0], None

        run = jax.jit(lambda state, data: jax.lax.scan(one_round, state, jnp.arange(300))[0])
        found = algorithm.params(run(algorithm.init(jnp.float32(0), KEY, data), data))
        return abs(float(found) - (curvature @ optimum) / curvature.sum())

    assert error_of(fedavg(loss, optax.sgd(0.05), **local)) > 0.3
    assert error_of(scaffold(loss, 0.05, num_clients=3, **local)) < 1e-4


FULL_BATCH = scaffold(squared_loss, RATE, num_clients=5, batch_size=None, steps=2)
FULL_BATCH_ROUND = jax.jit(partial(FULL_BATCH.round, plan=PLAN))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_client_whose_data_are_not_finite_is_rejected_and_keeps_its_control(bad):
    params, data = problem()
    broken_y = data.columns["y"].copy()
    broken_y[data.offsets[2] + 3] = bad
    broken = from_partition(data.columns | {"y": broken_y}, np.split(np.arange(sum(SIZES)), data.offsets[1:-1]))
    round_ = FULL_BATCH_ROUND
    ids = jnp.array([3, 2, 0])
    state, _ = round_(FULL_BATCH.init(params, KEY, data), Cohort(ids, jnp.ones(3, bool)), data)

    with_it, record = round_(state, Cohort(ids, jnp.ones(3, bool)), broken)
    without_it, expected = round_(state, Cohort(ids, ids != 2), broken)
    assert (record.clients, record.rejected, expected.clients, expected.rejected) == (3, 1, 2, 0)
    assert_trees_close(with_it.server, without_it.server, rtol=1e-6)
    assert_trees_close(record.metrics, expected.metrics, rtol=1e-6)
    assert np.isfinite(with_it.server.params["w"]).all()
    np.testing.assert_array_equal(with_it.clients["w"][2], state.clients["w"][2])
    assert state.clients["w"][2].any() and not np.array_equal(with_it.clients["w"][0], state.clients["w"][0])


def test_nobody_changes_nothing():
    params, data = problem()
    ids = jnp.array([3, 2, 0])
    before, _ = FULL_BATCH_ROUND(FULL_BATCH.init(params, KEY, data), Cohort(ids, jnp.ones(3, bool)), data)
    after, record = FULL_BATCH_ROUND(before, Cohort(ids, jnp.zeros(3, bool)), data)
    assert_trees_close(after.server, before.server, rtol=0)
    assert_trees_close(after.clients, before.clients, rtol=0)
    assert (record.clients, after.round) == (0, 2)


@pytest.mark.parametrize("uplink", [stochastic_uniform(4), random_k(0.5), top_k(0.5)])
def test_after_lossy_uplinks_the_servers_control_is_the_mean_of_the_clients(uplink):
    state = after_uplinks(uplink)
    assert_trees_close(mean_over_clients(state.clients), state.server.control, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("uplink", "memory_of"),
    [(error_feedback(top_k(0.5)), lambda state: state), (power_sgd(1), lambda state: state.memory)],
)
def test_what_an_uplink_remembers_is_all_that_the_servers_control_lacks(uplink, memory_of):
    state = after_uplinks(uplink)
    received = optax.tree.sub(state.clients, memory_of(state.uplink).control)
    assert_trees_close(mean_over_clients(received), state.server.control, rtol=1e-4, atol=1e-5)


def after_uplinks(uplink):
    params, data = problem()
    algorithm = scaffold(squared_loss, 0.05, num_clients=5, batch_size=None, steps=3, uplink=uplink)
    return run(algorithm, params, data, sampler=uniform(5, 2), rounds=12, key=KEY, progress=False).state


def mean_over_clients(states):
    return jax.tree.map(lambda leaf: leaf.mean(0), states)


def test_a_lossy_uplink_does_not_move_the_optimum():
    params, data = problem()

    def trained(uplink):
        algorithm = scaffold(squared_loss, 0.05, num_clients=5, batch_size=None, steps=3, uplink=uplink)
        return run(algorithm, params, data, sampler=uniform(5, 3), rounds=300, key=KEY, progress=False).params

    assert_trees_close(trained(stochastic_uniform(4)), trained(chain()), rtol=0, atol=1e-4)


def test_narrow_parameters_stay_narrow():
    params, data = problem()
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)

    def loss(params, batch, key):
        return squared_loss(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), batch, key)

    algorithm = scaffold(loss, RATE, num_clients=5, batch_size=4, epochs=1)
    state = algorithm.init(params, KEY, data)
    cohort = Cohort(jnp.arange(3), jnp.ones(3, bool))
    after, _ = jax.eval_shape(partial(algorithm.round, plan=PLAN), state, cohort, data)
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)


def test_many_narrow_changes_add_up_under_a_traced_rate():
    def loss(params, batch, key):
        return jnp.broadcast_to(-params["w"].sum(), batch["x"].shape).astype(jnp.float32)

    def one_step(server_learning_rate):
        return scaffold(loss, 1.0, server_learning_rate, num_clients=600, batch_size=None, steps=1)

    result = run(
        one_step, {"w": jnp.zeros(3, jnp.bfloat16)}, from_client_arrays([{"x": np.ones(1, np.float32)}] * 600),
        sampler=everyone(600), rounds=1, key=KEY, hyperparameters={"server_learning_rate": 0.5},
        plan=PLAN, progress=False,
    )  # fmt: skip
    assert result.params["w"].tolist() == [0.5] * 3 and result.params["w"].dtype == jnp.bfloat16
    assert result.state.server.control["w"].tolist() == [-1.0] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0, got 0.0"),
        ({"learning_rate": np.inf}, "learning_rate must be a finite number above 0, got inf"),
        ({"server_learning_rate": -1.0}, "server_learning_rate must be a finite number above 0, got -1.0"),
        ({"num_clients": 0}, "num_clients must be an integer of at least 1, got 0"),
        ({"num_clients": 2.5}, "num_clients must be an integer of at least 1, got 2.5"),
        ({"epochs": 1}, "give exactly one of epochs and steps, got epochs=1 and steps=2"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        scaffold(
            **{"loss_fn": squared_loss, "learning_rate": 0.1, "num_clients": 5, "batch_size": 4, "steps": 2} | arguments
        )


def test_another_population_is_refused():
    population = from_partition({"x": np.ones((3, 1), np.float32)}, [np.array([0]), np.array([1, 2])])
    algorithm = scaffold(squared_loss, RATE, num_clients=3, batch_size=None, steps=1)
    with pytest.raises(ValueError, match="num_clients is 3, but the population has 2 clients"):
        algorithm.init({"w": jnp.zeros(1), "b": jnp.zeros(())}, KEY, population)
