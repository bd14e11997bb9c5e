"""The round, with components written here; the package's own are tested where they live."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_edge.clients import with_weights
from fedjax_edge.core import (
    Aggregator,
    ClientOutput,
    ClientUpdate,
    Cohort,
    Mean,
    Plan,
    RunStream,
    UpdateTransform,
    chain,
    derive,
    federated,
)
from fedjax_edge.core.round import RoundState
from fedjax_edge.data import from_client_arrays
from fedjax_edge.privacy import local_gaussian

pytestmark = pytest.mark.usefixtures("optimized")

SIZES = [1, 4, 2, 7, 3]
PLANS = [Plan(width, devices) for width, devices in [(1, 1), (3, 1), (5, 1), (1, 2), (2, 2), (1, 4), (1, 8)]]


@pytest.fixture(scope="module")
def population():
    return from_client_arrays([{"x": np.full((n, 2), i + 1, np.float32)} for i, n in enumerate(SIZES)])


def sends(make_update, state=()):
    """A client that sends a function of its id and key, weighs its examples, and counts its rounds."""

    def update(params, examples, state, key):
        value = make_update(examples.client, key) + jnp.zeros_like(params)
        metrics = {"loss": Mean(examples.size.astype(jnp.float32), jnp.float32(1))}
        return ClientOutput(value, examples.size.astype(jnp.float32), jax.tree.map(lambda s: s + 1, state), metrics)

    return ClientUpdate(lambda params: state, update)


def summing(stacked=False):
    def finish(total, state, key):
        if stacked:
            return jnp.where(total.present[:, None], total.rows, 0).sum(0), state
        return total, state

    return Aggregator(lambda update: (), lambda update, weight, state: update * weight, finish, stacked)


def one_round(algorithm, population, cohort, plan=PLANS[0], seed=0, state=None):
    state = state or algorithm.init(jnp.zeros(2), jax.random.key(seed), population)
    return jax.jit(algorithm.round, static_argnames="plan")(state, cohort, population, plan=plan)


def cohort_of(*ids, absent=()):
    ids = jnp.array([*ids, *absent], jnp.int32)
    return Cohort(ids, jnp.arange(len(ids)) < len(ids) - len(absent))


def client_number(client, key):
    return (client + 1).astype(jnp.float32)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_the_contributions_of_those_present_are_summed(population, plan, stacked):
    algorithm = federated(sends(client_number), optax.sgd(1.0), summing(stacked))
    state, record = one_round(algorithm, population, cohort_of(3, 0, 2, absent=[1, 1]), plan)
    np.testing.assert_allclose(algorithm.params(state), [4 * 7 + 1 * 1 + 3 * 2] * 2)
    assert record.clients == 3
    assert record.rejected == 0
    assert record.metrics["loss"] == (7 + 1 + 2, 3)
    assert record.bits_up.value() == record.bits_down.value() == 3 * 2 * 32
    assert state.round == 1


@pytest.mark.parametrize("plan", PLANS)
def test_a_clients_draws_depend_on_neither_order_nor_plan_nor_company(population, plan):
    draws = sends(lambda client, key: jax.random.normal(key))
    algorithm = federated(draws, optax.sgd(1.0), summing())
    alone = [algorithm.params(one_round(algorithm, population, cohort_of(i))[0]) for i in range(5)]
    for ids in [(0, 1, 2, 3, 4), (4, 2, 0)]:
        together = algorithm.params(one_round(algorithm, population, cohort_of(*ids), plan)[0])
        chex.assert_trees_all_close(together, sum(alone[i] for i in ids), rtol=1e-6)


def test_draws_differ_between_rounds_clients_and_seeds(population):
    algorithm = federated(sends(lambda client, key: jax.random.normal(key)), optax.sgd(1.0), summing())
    first, _ = one_round(algorithm, population, cohort_of(0))
    again, _ = one_round(algorithm, population, cohort_of(0), state=first)
    values = [algorithm.params(first)[0], (algorithm.params(again) - algorithm.params(first))[0]]
    values += [algorithm.params(one_round(algorithm, population, cohort_of(1))[0])[0] / 4]
    values += [algorithm.params(one_round(algorithm, population, cohort_of(0), seed=1)[0])[0]]
    assert len({round(float(value), 4) for value in values}) == 4


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_client_that_is_not_finite_is_rejected_and_counted(population, bad, stacked):
    client = sends(lambda client, key: jnp.where(client == 3, jnp.float32(bad), client_number(client, key)))
    algorithm = federated(client, optax.sgd(1.0), summing(stacked))
    state, record = one_round(algorithm, population, cohort_of(3, 0, 2))
    np.testing.assert_allclose(algorithm.params(state), [1 * 1 + 3 * 2] * 2)
    assert record.clients == 3
    assert record.rejected == 1
    assert record.metrics["loss"] == (1 + 2, 2)
    assert record.bits_up.value() == 3 * 64


def test_a_contribution_that_overflows_is_rejected(population):
    client = sends(lambda client, key: jnp.where(client == 3, jnp.float32(3e38), 1.0))  # times its weight of 7
    state, record = one_round(federated(client, optax.sgd(1.0), summing()), population, cohort_of(3, 0))
    np.testing.assert_allclose(state.server[0], [1, 1])
    assert record.rejected == 1


def test_states_last_and_stay_with_their_clients(population):
    algorithm = federated(sends(client_number, jnp.int32(0)), optax.sgd(1.0), summing(), counting())
    state, _ = one_round(algorithm, population, cohort_of(3, 0, absent=[1, 2]))
    state, _ = one_round(algorithm, population, cohort_of(3, 4), Plan(1, 2), state=state)
    np.testing.assert_array_equal(state.clients, [1, 0, 0, 2, 1])
    np.testing.assert_array_equal(state.uplink, [1, 0, 0, 2, 1])


def counting():
    return UpdateTransform(lambda update: jnp.int32(0), lambda update, state, key: (update, state + 1, 5))


def test_clients_train_from_what_they_receive_and_the_server_goes_on_from_its_own(population):
    def update(params, examples, state, key):
        return ClientOutput(params, jnp.float32(1), state, {})

    def apply(message, state, key):
        return message + jax.random.normal(key), state + 1, 7

    noisy = UpdateTransform(lambda message: jnp.int32(0), apply)
    algorithm = federated(ClientUpdate(lambda params: (), update), optax.sgd(1.0), summing(), downlink=noisy)
    state = algorithm.init(jnp.zeros(2), jax.random.key(0), population)
    values = [0.0]
    for number in range(2):
        state, record = one_round(algorithm, population, cohort_of(0, 4, absent=[1]), state=state)
        key = derive(jax.random.key(0), RunStream.DOWNLINK, number)
        values.append(values[-1] + 2 * (values[-1] + float(jax.random.normal(key))))
        np.testing.assert_allclose(algorithm.params(state), [values[-1]] * 2, rtol=1e-6)
        assert record.bits_down.value() == 2 * 7
    assert state.downlink == 2


def test_a_rejected_clients_states_stay_as_they_were(population):
    client = sends(lambda client, key: jnp.where(client == 3, jnp.nan, 1.0), jnp.int32(0))
    algorithm = federated(client, optax.sgd(1.0), summing(), counting())
    state, record = one_round(algorithm, population, cohort_of(3, 0))
    np.testing.assert_array_equal(state.clients, [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(state.uplink, [1, 0, 0, 0, 0])
    assert record.bits_up.value() == 10


def test_a_memory_that_is_not_finite_rejects_its_client(population):
    spoilt = UpdateTransform(lambda update: update, lambda update, state, key: (update, state * jnp.nan, None))
    _, record = one_round(federated(sends(client_number), optax.sgd(1.0), summing(), spoilt), population, cohort_of(0))
    assert record.rejected == 1


def test_a_mechanisms_noise_arrives_whatever_a_state_or_a_weight_holds(population):
    mechanism = local_gaussian(1.0, 1.0, denominator=1.0)
    spoilt = UpdateTransform(lambda update: update, lambda update, state, key: (update, state * jnp.nan, None))
    clients = {
        "memory": (sends(client_number), chain(spoilt, mechanism.uplink)),
        "state": (sends(client_number, jnp.float32(0))._replace(settle=lambda *_: jnp.nan), mechanism.uplink),
        "weight": (with_weights(sends(client_number), [1, 1, 1]), mechanism.uplink),  # not for client 3
    }
    for client, uplink in clients.values():
        algorithm = federated(client, optax.sgd(1.0), mechanism.aggregator, uplink)
        state, record = one_round(algorithm, population, cohort_of(3))
        assert record.rejected == 0 and (state.server[0] != 0).all()
        before = algorithm.init(jnp.zeros(2), jax.random.key(0), population)
        chex.assert_trees_all_equal((state.clients, state.uplink), (before.clients, before.uplink))


def test_a_client_may_settle_for_what_the_server_received(population):
    client = sends(client_number, jnp.zeros(2))._replace(settle=lambda state, received: state + received)
    half = UpdateTransform(lambda update: (), lambda update, state, key: (update / 2, state, None))
    state, _ = one_round(federated(client, optax.sgd(1.0), summing(), half), population, cohort_of(3, 0))
    np.testing.assert_array_equal(state.clients[:, 0], [1 + 1 / 2, 0, 0, 1 + 4 / 2, 0])


def test_nobody_present_changes_nothing(population):
    algorithm = federated(sends(client_number, jnp.int32(0)), optax.sgd(1.0), summing())
    state, record = one_round(algorithm, population, cohort_of(absent=[0, 3]))
    np.testing.assert_array_equal(algorithm.params(state), [0, 0])
    np.testing.assert_array_equal(state.clients, np.zeros(5))
    assert record.clients == record.rejected == record.bits_up.value() == 0


def test_an_absent_client_is_given_no_examples():
    """Its work would be lost: the only trace of it is in what the loop over its examples costs."""
    seen = []

    def update(params, examples, state, key):
        jax.debug.callback(lambda size: seen.append(int(size)), examples.size)
        return ClientOutput(params, examples.size.astype(jnp.float32), state, {})

    population = from_client_arrays([{"x": np.zeros((n, 2), np.float32)} for n in SIZES])
    algorithm = federated(ClientUpdate(lambda params: (), update), optax.sgd(1.0), summing())
    one_round(algorithm, population, cohort_of(3, absent=[4]))
    jax.effects_barrier()
    assert sorted(seen) == [0, 7]


def test_the_state_keeps_its_structure_and_dtypes(population):
    algorithm = federated(sends(client_number, jnp.int32(0)), optax.sgd(1.0, momentum=0.9), summing(), counting())
    state = algorithm.init(jnp.zeros(2), jax.random.key(0), population)
    after, _ = one_round(algorithm, population, cohort_of(0, 1), state=state)
    assert isinstance(after, RoundState)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def test_ten_rounds_compile_once(population):
    algorithm = federated(sends(client_number), optax.sgd(1.0, momentum=0.9), summing())
    state = algorithm.init(jnp.zeros(2), jax.random.key(0), population)
    traced = jax.jit(chex.assert_max_traces(n=1)(algorithm.round), static_argnames="plan")
    for _ in range(10):
        state, _ = traced(state, cohort_of(0, 1), population, plan=PLANS[0])


def test_integer_parameters_are_refused(population):
    algorithm = federated(sends(client_number), optax.sgd(1.0), summing())
    with pytest.raises(TypeError, match=r"params\['steps'\] has dtype int32; every leaf must be floating point"):
        algorithm.init({"w": jnp.zeros(2), "steps": jnp.int32(0)}, jax.random.key(0), population)


def test_a_metric_that_is_not_finite_is_left_out_alone(population):
    client = sends(client_number)

    def update(broadcast, examples, state, key):
        output = client.update(broadcast, examples, state, key)
        bad = Mean(jnp.where(examples.client == 3, jnp.inf, 1.0), jnp.float32(1))
        return output._replace(metrics={**output.metrics, "bad": bad})

    algorithm = federated(client._replace(update=update), optax.sgd(1.0), summing())
    _, record = one_round(algorithm, population, cohort_of(3, 0))
    assert record.rejected == 0
    assert record.metrics["bad"] == (1, 1)
    assert record.metrics["loss"] == (7 + 1, 2)


@pytest.mark.parametrize(
    ("state", "changed", "message"),
    [
        (jnp.int32(0), {"state": jnp.float32(0)}, r"kind .*int32\[\].* got .*float32"),
        (jnp.zeros(3), {"state": jnp.float32(0)}, r"kind .*float32\[3\].* got .*float32\[\]"),
        ((), {"state": (1.0,)}, "what a client keeps between rounds must be of the kind"),
        ((), {"weight": jnp.ones(2)}, r"must return a ClientOutput with a weight \[\], got"),
        ((), {"metrics": {"steps": jnp.float32(1)}}, r"a client's metrics must be Means by name, of a total \[\] and"),
        ((), {"metrics": {"steps": Mean(jnp.ones(2), jnp.float32(1))}}, r"of a total \[\] and a count \[\], got"),
        ((), {"metrics": {"steps": Mean(jnp.float32(1), jnp.ones(2))}}, r"of a total \[\] and a count \[\], got"),
        ((), {"metrics": ()}, r"a client's metrics must be Means by name, .* got \(\)"),
    ],
)
def test_what_a_client_returns_is_checked_before_the_first_round(population, state, changed, message):
    client = sends(client_number, state)

    def update(*arguments):
        return client.update(*arguments)._replace(**changed)

    algorithm = federated(client._replace(update=update), optax.sgd(1.0), summing())
    with pytest.raises(TypeError, match=message):
        one_round(algorithm, population, cohort_of(0))


def test_what_an_uplink_remembers_is_checked_too(population):
    uplink = UpdateTransform(lambda update: jnp.zeros(2), lambda update, state, key: (update, state.sum(), None))
    algorithm = federated(sends(client_number), optax.sgd(1.0), summing(), uplink)
    with pytest.raises(TypeError, match=r"what a client keeps .*float32\[2\].*, got .*float32\[\]"):
        one_round(algorithm, population, cohort_of(0))


def test_a_client_must_return_a_client_output(population):
    algorithm = federated(ClientUpdate(lambda params: (), lambda *_: jnp.zeros(2)), optax.sgd(1.0), summing())
    with pytest.raises(TypeError, match="must return a ClientOutput with a weight"):
        algorithm.init(jnp.zeros(2), jax.random.key(0), population)


def test_an_aggregate_of_another_shape_than_the_parameters_is_refused(population):
    total = summing()._replace(finish=lambda total, state, key: (total.sum(), state))
    algorithm = federated(sends(client_number), optax.sgd(1.0), total)
    with pytest.raises(TypeError, match=r"the aggregate must be of the kind .*\[2\].*, got .*\[\]"):
        one_round(algorithm, population, cohort_of(0))


def test_parts_of_the_wrong_kind_are_refused():
    with pytest.raises(TypeError, match="client must be of type ClientUpdate, got"):
        federated(optax.sgd(0.1), optax.sgd(1.0), summing())
    with pytest.raises(TypeError, match="aggregator must be of type Aggregator, got"):
        federated(sends(client_number), optax.sgd(1.0), summing)


def test_the_default_plan_is_chosen(population):
    algorithm = federated(sends(client_number), optax.sgd(1.0), summing())
    chosen, _ = one_round(algorithm, population, cohort_of(3, 0, 2), plan=None)
    given, _ = one_round(algorithm, population, cohort_of(3, 0, 2))
    chex.assert_trees_all_close(algorithm.params(chosen), algorithm.params(given))


def test_a_stack_says_how_much_memory_it_takes_before_it_takes_it(population, monkeypatch, caplog):
    algorithm, cohort = federated(sends(client_number), optax.sgd(1.0), summing(stacked=True)), cohort_of(0, 1, 2)
    with caplog.at_level("INFO", "fedjax_edge.core.round"):
        one_round(algorithm, population, cohort)
    assert "stacking the contributions of 3 clients takes 24 bytes" in caplog.messages
    monkeypatch.setattr("fedjax_edge.core.round.available_bytes", lambda: 23)
    algorithm = federated(sends(client_number), optax.sgd(1.0), summing(stacked=True))  # not compiled yet
    message = "takes 24 bytes, and 23 bytes are free: draw a smaller cohort, or use an aggregator that sums"
    with pytest.raises(MemoryError, match=message):
        one_round(algorithm, population, cohort)
    one_round(federated(sends(client_number), optax.sgd(1.0), summing()), population, cohort)
    monkeypatch.setattr("fedjax_edge.core.round.available_bytes", lambda: 47)
    algorithm = federated(sends(client_number), optax.sgd(1.0), summing(stacked=True))
    with pytest.raises(MemoryError, match="takes 48 bytes"):  # two CPU devices have a copy each
        one_round(algorithm, population, cohort, Plan(1, 2))


def test_a_round_of_more_clients_than_can_be_counted_is_refused(population):
    algorithm, cohort = federated(sends(client_number), optax.sgd(1.0), summing()), jnp.zeros(2**20 + 1, jnp.int32)
    state = algorithm.init(jnp.zeros(2), jax.random.key(0), population)
    with pytest.raises(ValueError, match="the number of clients of a round must be an integer from 1 to 1048576"):
        jax.eval_shape(algorithm.round, state, Cohort(cohort, cohort == 0), population)


def test_a_contribution_may_hold_plain_numbers(population):
    aggregator = Aggregator(
        init=lambda update: (),
        contribution=lambda update, weight, state: (update, 1.0),
        finish=lambda total, state, key: (total[0] / total[1], state),
    )
    algorithm = federated(sends(lambda client, key: client.astype(jnp.float32)), optax.sgd(1.0), aggregator)
    state = algorithm.init(jnp.zeros(2), jax.random.key(0), population)
    cohort = Cohort(jnp.arange(5, dtype=jnp.int32), jnp.ones(5, bool))
    state, _ = algorithm.round(state, cohort, population)
    np.testing.assert_allclose(algorithm.params(state), [2, 2])
