from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_edge as fe
from fedjax_edge import testing
from fedjax_edge.compression import fetch_sgd, sent_as_sketch
from fedjax_edge.compression.count_sketch import hashes
from fedjax_edge.testing import aggregate

KEY, SIZE = jax.random.key(0), 60
RNG = np.random.default_rng(0)


def dense(rows, columns):
    """Every row's sketch as a matrix, [rows, columns, SIZE]."""
    matrices = np.zeros((rows, columns, SIZE))
    for row in range(rows):
        buckets, signs = map(np.asarray, hashes(jnp.uint32(row), jnp.uint32(0), SIZE, columns))
        matrices[row, buckets, np.arange(SIZE)] = signs
    return matrices


def test_rounds_are_those_of_algorithm_1():
    rows, columns, kept, rate, momentum = 3, 25, 6, 0.5, 0.8
    aggregator = fetch_sgd(rows, columns, kept / SIZE, rate, momentum)
    matrices = dense(rows, columns)
    state, u, e = aggregator.init(jnp.zeros(SIZE)), 0, 0
    for number in range(4):
        updates = RNG.normal(size=(3, SIZE)) * 10.0 ** -np.arange(SIZE)[None, ::-1].clip(0, 2)
        updates = updates.astype(np.float32)
        weights = np.array([1, 2, 5], np.float32) + number
        aggregate_, state = aggregate(aggregator, updates, weights, KEY, state=state)
        u = momentum * u + matrices @ np.average(updates.astype(np.float64), axis=0, weights=weights)
        e = e + rate * u
        readings = np.median(np.einsum("rcn,rc->rn", matrices, e), axis=0)
        applied = np.where(np.abs(readings) >= np.sort(np.abs(readings))[-kept], readings, 0)
        e = e - matrices @ applied
        np.testing.assert_allclose(aggregate_, applied, atol=1e-4)
        np.testing.assert_allclose(state.momentum, u, atol=1e-4)
        np.testing.assert_allclose(state.error, e, atol=1e-4)


def test_nobodys_round_applies_what_is_left_of_the_error():
    aggregator = fetch_sgd(5, 200, 1 / SIZE, momentum=0.0)
    updates = jnp.zeros((1, SIZE)).at[0, :2].set(jnp.array([2.0, -1.0]))
    first, state = aggregate(aggregator, updates, [1], KEY)
    second, state = aggregate(aggregator, updates, [0], KEY, state=state)
    third, _ = aggregate(aggregator, updates, [-3], KEY, state=state)
    assert first[0] == 2 and jnp.flatnonzero(first).tolist() == [0]
    assert second[1] == -1 and jnp.flatnonzero(second).tolist() == [1]
    np.testing.assert_allclose(third, 0, atol=1e-6)


def loss_fn(params, batch, key):
    return (batch["x"] @ params - batch["y"]) ** 2


def test_a_run_learns_a_sparse_model_counts_the_sketch_and_rejects_what_is_not_finite():
    size, kept = 300, 2
    truth = np.zeros(size, np.float32)
    truth[[4, 30]] = 2, -3
    clients = []
    for client in range(6):
        x = RNG.normal(size=(size, size)).astype(np.float32)
        clients.append({"x": x, "y": x @ truth if client else np.full(size, np.nan, np.float32)})
    population = fe.data.from_client_arrays(clients)
    algorithm = fe.federated(
        client=fe.clients.local_sgd(loss_fn, optax.sgd(0.05), batch_size=None, steps=1),
        uplink=sent_as_sketch(3, 50),  # half as many numbers as the update has
        aggregator=fetch_sgd(3, 50, kept / size, learning_rate=0.3, momentum=0.5),
        server=optax.sgd(1.0),
    )
    cohort = fe.core.Cohort(jnp.arange(6), jnp.ones(6, bool))
    state = algorithm.init(jnp.zeros(size), KEY, population)
    round_ = jax.jit(partial(algorithm.round, plan=fe.make_plan(6)))
    for _ in range(60):
        state, record = round_(state, cohort, population)
    assert int(record.bits_up.value()) == 6 * 32 * 3 * 50 and int(record.rejected) == 1
    learned = np.asarray(algorithm.params(state))
    assert sorted(np.argsort(-np.abs(learned))[:2].tolist()) == [4, 30]
    assert np.linalg.norm(learned - truth) < 0.7 * np.linalg.norm(truth)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": 0}, "rows must be"),
        ({"columns": -1}, "columns must be"),
        ({"fraction": 0}, r"fraction must be a number in \(0, 1\], got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0"),
        ({"momentum": -0.1}, "momentum must be a finite number of at least 0"),
        ({"seed": -1}, "seed must be an integer"),
    ],
)
def test_impossible_arguments_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        fetch_sgd(**({"rows": 3, "columns": 9, "fraction": 0.5} | changed))
    if set(changed) <= {"rows", "columns"}:
        with pytest.raises(ValueError, match=message):
            sent_as_sketch(**({"rows": 3, "columns": 9} | changed))


def test_it_scales_with_updates_of_one_dtype():
    updates = jnp.asarray(np.random.default_rng(3).normal(size=(5, 60)), jnp.float32)
    testing.assert_scale_equivariant(fetch_sgd(3, 40, fraction=0.2), updates, np.ones(5, np.float32))
