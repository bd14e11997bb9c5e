"""What the package as a whole promises: plans change nothing, and a client moves a private sum by at most the clip."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_edge as fe
from fedjax_edge.core import ClientOutput, ClientUpdate, Cohort, Plan

pytestmark = pytest.mark.usefixtures("optimized")

RNG = np.random.default_rng(0)
SIZES = [1, 30, 2, 17, 5, 60, 1, 9, 12]
POPULATION = fe.data.from_client_arrays(
    [
        {"image": RNG.integers(0, 256, (n, 6, 6)).astype(np.uint8), "label": RNG.integers(0, 3, n).astype(np.uint8)}
        for n in SIZES
    ]
)
MODEL = fe.models.mnist_2nn(num_classes=3, input_shape=(6, 6))
LOSS = fe.models.classification(MODEL)

ALGORITHMS = {
    "fedavg": fe.algorithms.fedavg(LOSS, optax.sgd(0.1), batch_size=5, epochs=2),
    "fedavg, momentum, full batch": fe.algorithms.fedavg(
        LOSS, optax.sgd(0.1, momentum=0.9), batch_size=None, epochs=3, aggregator=fe.aggregation.uniform_mean()
    ),
    "scaffold": fe.algorithms.scaffold(LOSS, 0.1, num_clients=len(SIZES), batch_size=5, epochs=1),
    "median": fe.algorithms.fedavg(
        LOSS, optax.sgd(0.1), batch_size=5, steps=4, aggregator=fe.aggregation.coordinate_median()
    ),
    "private": fe.algorithms.fedavg(
        LOSS, optax.sgd(0.1), batch_size=5, epochs=1, aggregator=fe.privacy.gaussian_mean(0.1, 1.0, denominator=5.0)
    ),
    "top-k": fe.algorithms.fedavg(
        LOSS, optax.sgd(0.1), batch_size=5, epochs=1, uplink=fe.compression.error_feedback(fe.compression.top_k(0.1))
    ),
}
PLANS = [Plan(width, devices) for width, devices in [(9, 1), (1, 2), (2, 4), (1, 8)]]


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_plan_and_no_order_of_the_cohort_changes_a_round(name, params):
    algorithm = ALGORITHMS[name]
    state = algorithm.init(params, jax.random.key(1), POPULATION)
    one_round = jax.jit(algorithm.round, static_argnums=3)
    cohort = Cohort(jnp.array([0, 1, 2, 3, 5, 6, 8, 4], jnp.int32), jnp.arange(8) < 7)
    expected, _ = one_round(state, cohort, POPULATION, Plan(1, 1))

    shuffled = jax.tree.map(lambda leaf: leaf[jnp.array([5, 7, 0, 3, 1, 6, 2, 4])], cohort)
    for plan, members in [(plan, cohort) for plan in PLANS] + [(Plan(1, 1), shuffled)]:
        state_after, _ = one_round(state, members, POPULATION, plan)
        difference = optax.tree.norm(optax.tree.sub(algorithm.params(state_after), algorithm.params(expected)))
        assert difference <= 1e-6 * optax.tree.norm(algorithm.params(expected)), plan
        chex.assert_trees_all_close(state_after.clients, expected.clients, rtol=1e-4, atol=1e-5)


CLIP = 0.5
UPLINKS = {
    "none": fe.chain(),
    "fixed point": fe.compression.fixed_point(8),
    "2 bits": fe.compression.stochastic_uniform(2),
    "8 bits": fe.compression.stochastic_uniform(8),
    "top-k": fe.compression.top_k(0.2),
    "error feedback": fe.compression.error_feedback(fe.compression.stochastic_uniform(1)),
    "clipped, then 3 bits": fe.chain(fe.privacy.clip(CLIP), fe.compression.stochastic_uniform(3)),
}
HOSTILE = {
    "huge": np.full(40, 1e30, np.float32),
    "largest": np.full(40, np.finfo(np.float32).max, np.float32),
    "spike": np.eye(1, 40, dtype=np.float32)[0] * 7,
    "just over the clip": np.full(40, 1.0001 * CLIP / np.sqrt(40), np.float32),
    "alternating": np.resize([CLIP, -CLIP], 40).astype(np.float32),
    "tiny": np.full(40, 1e-38, np.float32),
    "zero": np.zeros(40, np.float32),
    "NaN": np.full(40, np.nan, np.float32),
    "infinite": np.resize([0, np.inf], 40).astype(np.float32),
}


@pytest.mark.parametrize("uplink", UPLINKS)
def test_a_hostile_client_behind_any_codec_moves_a_private_sum_by_at_most_the_clip(uplink):
    honest = RNG.normal(size=(4, 40)).astype(np.float32)
    population = fe.data.from_client_arrays([{"update": row[None]} for row in [*honest, np.zeros(40, np.float32)]])

    def update(params, examples, state, key):
        sent = examples.columns["update"][examples.start]
        return ClientOutput(sent, examples.size.astype(jnp.float32), state, {})

    algorithm = fe.federated(
        ClientUpdate(lambda params: (), update),
        optax.sgd(1.0),
        fe.privacy.gaussian_mean(CLIP, 0.0, denominator=1.0),
        UPLINKS[uplink],
    )
    state = algorithm.init(jnp.zeros(40), jax.random.key(0), population)
    one_round = jax.jit(algorithm.round, static_argnums=3)
    ids = jnp.arange(5, dtype=jnp.int32)
    without, _ = one_round(state, Cohort(ids, ids < 4), population, Plan(1, 1))

    for name, hostile in HOSTILE.items():
        columns = {"update": np.stack([*honest, hostile])}
        attacked = fe.FederatedDataset(columns=columns, offsets=population.offsets)
        after, record = one_round(state, Cohort(ids, ids < 5), attacked, Plan(1, 1))
        moved = np.asarray(algorithm.params(after), np.float64) - np.asarray(algorithm.params(without), np.float64)
        assert np.linalg.norm(moved) <= CLIP * (1 + 1e-6), name
        if name in ("NaN", "infinite"):
            assert record.rejected == 1
            assert not moved.any()


def temporary_bytes(cohort_size, width=1):
    """What a round of a 199,210-parameter perceptron takes beside its inputs and outputs; nothing is allocated."""
    model = fe.models.mnist_2nn()
    loss_fn = fe.models.classification(model)
    algorithm = fe.algorithms.fedavg(loss_fn, optax.sgd(0.1), batch_size=10, epochs=1)
    columns = {"image": np.zeros((cohort_size, 28, 28), np.uint8), "label": np.zeros(cohort_size, np.uint8)}
    population = fe.data.from_arrays(columns, np.arange(cohort_size))
    state = jax.eval_shape(lambda key: algorithm.init(model.init(key), key, population), jax.random.key(0))
    cohort = fe.data.everyone(cohort_size).sample(jax.random.key(0), jnp.int32(0))
    round_ = jax.jit(lambda *arguments: algorithm.round(*arguments, fe.make_plan(width, 2)))
    return round_.lower(state, cohort, population).compile().memory_analysis().temp_size_in_bytes


def test_ten_thousand_clients_take_the_memory_of_a_hundred():
    assert temporary_bytes(10_000) < 1.2 * temporary_bytes(100)
    assert temporary_bytes(100, width=10) > 2 * temporary_bytes(100)  # the number measured is the one that would grow
