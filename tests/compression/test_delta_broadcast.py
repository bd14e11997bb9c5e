import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_edge as fe
from fedjax_edge.compression import delta_broadcast, stochastic_uniform, top_k
from fedjax_edge.core import Cohort, Plan

MODEL_BITS = 40 * 32
PAYLOAD_BITS = 8 * 32 + 8 * 6  # of top-k: 8 of 40 numbers, each with an index of 6 bits


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    return {"w": jnp.asarray(rng.normal(size=(6, 6)), jnp.float32), "b": jnp.asarray(rng.normal(size=4), jnp.float32)}


def test_the_first_broadcast_is_the_initial_model(model):
    downlink = delta_broadcast(top_k(0.1))
    received, state, _ = downlink.apply(model, downlink.init(model), jax.random.key(0))
    chex.assert_trees_all_equal(received, model)
    assert state.number == 1


@pytest.mark.parametrize("codec", [top_k(0.1), stochastic_uniform(8)], ids=["biased", "unbiased"])
def test_clients_come_to_know_a_model_that_stands_still(model, codec):
    downlink = delta_broadcast(codec)
    state, moved = downlink.init(model), jax.tree.map(lambda leaf: leaf + 1 + jnp.sin(leaf), model)
    errors = []
    for key in jax.random.split(jax.random.key(0), 11):
        received, state, _ = downlink.apply(moved, state, key)
        errors.append(float(optax.tree.norm(optax.tree.sub(received, moved))))
    assert errors[0] > 0.01
    assert errors[-1] < 1e-5


@pytest.mark.parametrize("plan", [Plan(1, 1), Plan(2, 2)])
def test_a_client_is_sent_what_it_lacks_or_the_model(plan):
    population = fe.data.from_client_arrays([{"x": np.ones((2, 40), np.float32)}] * 3)
    algorithm = fe.algorithms.fedavg(
        lambda params, batch, key: (batch["x"] @ params - 1) ** 2,
        optax.sgd(0.001),
        batch_size=1,
        epochs=1,
        downlink=delta_broadcast(top_k(8 / 40)),
    )
    advance = jax.jit(algorithm.round, static_argnames="plan")
    state = algorithm.init(jnp.zeros(40), jax.random.key(0), population)
    sent = []
    for beside in [1, 2, 2, 2, 1, 2, 2, 2, 2, 1]:  # client 0 takes part in every round, one of the others too
        cohort = Cohort(jnp.array([0, beside], jnp.int32), jnp.ones(2, bool))
        state, record = advance(state, cohort, population, plan=plan)
        sent.append(int(record.bits_down.value()))
    p, m = PAYLOAD_BITS, MODEL_BITS
    assert 4 * p < m < 5 * p
    assert sent == [m + m] + [p + other for other in [m, p, p, 4 * p, 2 * p, p, p, p, m]]
    np.testing.assert_array_equal(state.received, [10, 10, 9])


def test_it_trains_as_the_exact_broadcast_does():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=64).astype(np.float32)
    inputs = [rng.normal(size=(20, 64)).astype(np.float32) / 8 for _ in range(8)]
    population = fe.data.from_client_arrays([{"x": x, "y": x @ truth} for x in inputs])

    def loss_fn(params, batch, key):
        return (batch["x"] @ params - batch["y"]) ** 2

    def run(**options):
        algorithm = fe.algorithms.fedavg(loss_fn, optax.sgd(0.5), batch_size=4, epochs=2, **options)
        history = fe.run(
            algorithm, jnp.zeros(64), population, sampler=fe.data.uniform(8, 4), rounds=40, key=jax.random.key(0),
            evaluation=fe.evaluation(loss_fn, population.columns), eval_every=40, progress=False,
        ).history  # fmt: skip
        return history.last("test_loss"), history["bits_down"].sum()

    exact_loss, exact_bits = run()
    loss, bits = run(downlink=delta_broadcast(stochastic_uniform(4)))
    assert loss == pytest.approx(exact_loss, rel=0.2)
    assert bits < exact_bits / 2


def test_an_update_transform_is_refused():
    with pytest.raises(TypeError, match="delta_broadcast takes a Codec, got UpdateTransform"):
        delta_broadcast(fe.compression.error_feedback(top_k(0.1)))
