import math
import os
import signal
import sys
import threading
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_edge as fe
from fedjax_edge.core import ClientOutput, ClientUpdate, PrivacyError
from fedjax_edge.simulation.recipe import Recipe
from fedjax_edge.simulation.report import epsilons_of
from fedjax_edge.simulation.segment import LONGEST_SEGMENT, Pace, Program, Variant, next_length, run_segment

SIZES = [1, 5, 2, 8, 3, 4, 6, 7, 2, 2]


def squared_error(params, batch, key):
    residual = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return residual**2, {"accuracy": (abs(residual) < 1).astype(jnp.float32)}


RNG = np.random.default_rng(0)
INPUTS = [RNG.normal(size=(n, 3)).astype(np.float32) for n in SIZES]
POPULATION = fe.data.from_client_arrays([{"x": x, "y": x @ np.array([1, -2, 3], np.float32) + 1} for x in INPUTS])
PARAMS = {"w": jnp.zeros(3), "b": jnp.zeros(())}
FEDAVG = fe.algorithms.fedavg(squared_error, optax.sgd(0.05), batch_size=4, epochs=2)
PRIVATE = fe.algorithms.fedavg(
    squared_error,
    optax.sgd(0.05),
    batch_size=4,
    epochs=2,
    aggregator=fe.privacy.gaussian_mean(1.0, 2.0, denominator=5.0),
    uplink=fe.compression.stochastic_uniform(8),
)
ON_TRAINING_DATA = fe.evaluation(squared_error, POPULATION.columns)
TWO_DEVICES = fe.make_plan(width=1, devices=2)


def run(algorithm=FEDAVG, rounds=6, seed=0, **options):
    options = {
        "sampler": fe.data.poisson(10, 0.5),
        "key": jax.random.key(seed),
        "plan": TWO_DEVICES,
        "progress": False,
        "evaluation": ON_TRAINING_DATA,
        **options,
    }
    return fe.run(algorithm, PARAMS, POPULATION, rounds=rounds, **options)


def test_it_learns_and_reports_every_round():
    result = run(rounds=30)
    history = result.history
    assert history["test_loss"][-1] < 0.8 * history["test_loss"][0]
    np.testing.assert_array_equal(history["round"], np.arange(1, 31))
    np.testing.assert_array_equal(history["bits_up"], history["clients"] * 4 * 32)
    np.testing.assert_array_equal(history["bits_down"], history["bits_up"])
    assert set(history) == {
        "round", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "epsilon", "bits_up", "bits_down",
        "clients", "rejected", "seconds",
    }  # fmt: skip
    losses, _ = squared_error(result.params, POPULATION.columns, None)
    np.testing.assert_allclose(history["test_loss"][-1], losses.mean(), rtol=1e-5)
    assert not result.interrupted


def test_it_is_the_rounds_of_the_algorithm_one_after_another():
    result = run(rounds=4)
    key, sampler = jax.random.key(0), fe.data.poisson(10, 0.5)
    state, one_round = FEDAVG.init(PARAMS, key, POPULATION), jax.jit(FEDAVG.round, static_argnums=3)
    for number in range(4):
        cohort_key = fe.core.derive(key, fe.core.RunStream.COHORT, number)
        state, _ = one_round(state, sampler.sample(cohort_key, jnp.int32(number)), POPULATION, TWO_DEVICES)
    chex.assert_trees_all_close(result.params, FEDAVG.params(state), rtol=1e-5)


def test_the_same_seed_is_the_same_to_the_bit_and_another_is_not():
    first, again, other = run(PRIVATE), run(PRIVATE), run(PRIVATE, seed=1)
    chex.assert_trees_all_equal(first.params, again.params)
    without_time = [{k: v for k, v in result.history.items() if k != "seconds"} for result in (first, again)]
    chex.assert_trees_all_equal(*without_time)
    assert (first.params["w"] != other.params["w"]).all()


@pytest.mark.parametrize("plan", [(1, 1), (4, 2), (1, 8)])
def test_the_plan_changes_nothing(plan):
    chex.assert_trees_all_close(run(plan=fe.make_plan(*plan)).params, run().params, rtol=1e-4, atol=1e-6)


def test_evaluation_every_few_rounds_and_at_the_end():
    history = run(rounds=7, eval_every=3).history
    np.testing.assert_array_equal(history["round"][~np.isnan(history["test_loss"])], [3, 6, 7])
    every = run(rounds=7).history
    np.testing.assert_array_equal(history["test_loss"][[2, 5, 6]], every["test_loss"][[2, 5, 6]])


def test_without_evaluation_there_are_no_test_columns():
    assert not [name for name in run(evaluation=fe.simulation.NO_EVALUATION).history if name.startswith("test_")]


def test_rounds_past_one_segment():
    rounds = 2 * LONGEST_SEGMENT
    often, once = run(rounds=rounds), run(rounds=rounds, eval_every=rounds)
    assert often.history.rounds == rounds
    chex.assert_trees_all_equal(often.params, once.params)


def test_one_compilation_serves_rounds_seeds_data_and_schedules(compilations):
    run(rounds=3)
    params = {"w": jnp.ones(3), "b": jnp.ones(())}
    other = fe.data.from_client_arrays(
        [{"x": np.ones((n, 3), np.float32), "y": np.ones(n, np.float32)} for n in SIZES[::-1]]
    )
    before = run_segment._cache_size()
    with compilations() as messages:
        run(rounds=9, seed=5, eval_every=2)
        fe.run(
            FEDAVG, params, other, sampler=fe.data.poisson(10, 0.5), rounds=2,
            key=jax.random.key(9), plan=TWO_DEVICES, progress=False, evaluation=ON_TRAINING_DATA,
        )  # fmt: skip
    assert run_segment._cache_size() == before
    assert not messages


@pytest.mark.parametrize("plan", [fe.make_plan(width=1, devices=1), TWO_DEVICES, fe.make_plan(width=3, devices=2)])
def test_what_a_client_does_is_traced_once(plan):
    traces = []

    def update(params, examples, state, key):
        traces.append(plan)
        return ClientOutput(params, examples.size.astype(jnp.float32), state, {})

    algorithm = fe.federated(ClientUpdate(lambda params: (), update), optax.sgd(1.0), fe.aggregation.weighted_mean())
    run(algorithm, plan=plan)
    assert len(traces) == 1


def test_a_segment_moves_nothing_between_host_and_device():
    program = Program(Recipe(FEDAVG), fe.data.poisson(10, 0.5), TWO_DEVICES, squared_error, 250)
    population, columns, variant, schedule = fe.core.on_all_devices(
        (POPULATION, POPULATION.columns, Variant(jax.random.key(0), {}), Pace(3, 1).schedule(0, 3)), TWO_DEVICES
    )
    state = jax.tree.map(jnp.copy, fe.core.on_all_devices(FEDAVG.init(PARAMS, variant.key, population), TWO_DEVICES))
    compiled = run_segment.lower(state, schedule, population, columns, variant, program=program).compile()
    with jax.transfer_guard("disallow"):
        state, _ = compiled(state, schedule, population, columns, variant)
        jax.block_until_ready(state)


def test_the_callers_parameters_are_not_consumed():
    run()
    assert not PARAMS["w"].is_deleted()


def test_epsilon_is_that_of_the_rounds_really_run():
    result = run(PRIVATE, rounds=5, delta=1e-2)
    accountant = fe.privacy.gaussian_accountant(2.0)
    claims = [accountant(fe.data.poisson(10, 0.5).sampling, r, 1e-2).epsilon for r in range(1, 6)]
    np.testing.assert_array_equal(result.history["epsilon"], claims)
    assert result.claim.epsilon == claims[-1]
    assert np.isnan(run(PRIVATE).history["epsilon"]).all()
    assert np.isinf(run().history["epsilon"]).all()
    assert run().claim is None


def test_a_fixed_size_cohort_never_has_the_poisson_epsilon():
    result = run(PRIVATE, rounds=2, delta=1e-2, sampler=fe.data.uniform(10, 5))
    assert result.claim.relation == "replace one client"
    assert result.claim.epsilon > run(PRIVATE, rounds=2, delta=1e-2).claim.epsilon


def test_a_guarantee_that_cannot_be_given_is_refused_before_training():
    with pytest.raises(PrivacyError, match="nothing can be claimed for sampling"):
        run(PRIVATE, delta=1e-2, sampler=fe.data.uniform(10, 5)._replace(sampling=None))


def test_only_what_is_accounted_is_released():
    history = run(PRIVATE, delta=1e-2, accounted_only=True).history
    private = {"train_loss", "train_accuracy", "bits_up", "bits_down", "clients", "rejected", "seconds"}
    assert all(np.isnan(history[name]).all() for name in private)
    assert np.isfinite(history["test_loss"]).all()
    assert np.isfinite(history["epsilon"]).all()


def test_ctrl_c_in_the_last_segment_is_told():
    def loss(params, batch, key):
        jax.debug.callback(lambda: os.kill(os.getpid(), signal.SIGINT))
        return squared_error(params, batch, key)

    algorithm = fe.algorithms.fedavg(loss, optax.sgd(0.05), batch_size=None, steps=1)
    result = run(algorithm, rounds=1, plan=fe.make_plan(), sampler=fe.data.uniform(10, 1))
    assert result.interrupted and result.history.rounds == 1


@pytest.mark.parametrize("side", ["client", "server"])
def test_hyperparameters_leave_an_optimizers_narrow_state_narrow(side):
    def make(momentum):
        both = {"client": optax.sgd(0.05), "server": optax.sgd(1.0)} | {side: optax.sgd(0.05, momentum=momentum)}
        return fe.algorithms.fedavg(narrow_error, both["client"], both["server"], batch_size=4, epochs=1)

    def narrow_error(params, batch, key):
        return squared_error(optax.tree.cast(params, jnp.float32), batch, key)

    params = optax.tree.cast(PARAMS, jnp.bfloat16)
    options = {"sampler": fe.data.everyone(10), "rounds": 3, "key": jax.random.key(0), "progress": False}
    with jax.numpy_dtype_promotion("standard"):
        traced = fe.run(make, params, POPULATION, hyperparameters={"momentum": 0.5}, **options)
        fixed = fe.run(make(0.5), params, POPULATION, **options)
    chex.assert_trees_all_close(traced.params, fixed.params, rtol=0.02)


@pytest.mark.parametrize("population", [POPULATION, fe.data.on_host(POPULATION)], ids=["resident", "hosted"])
def test_cohorts_of_fixed_size_have_no_claim_where_clients_remember(population):
    remembering = fe.algorithms.fedavg(
        squared_error, optax.sgd(0.05), batch_size=4, epochs=2, aggregator=fe.privacy.gaussian_mean(1.0, 2.0, 5.0),
        uplink=fe.compression.error_feedback(fe.compression.top_k(0.5)),
    )  # fmt: skip

    def options(sampler, rounds=2, delta=1e-2, algorithm=remembering):
        return {"algorithm": algorithm, "params": PARAMS, "population": population, "sampler": sampler} | {
            "rounds": rounds, "delta": delta
        }  # fmt: skip

    unproved = options(fe.data.uniform(10, 5))
    with pytest.raises(PrivacyError, match="nothing can be claimed where clients keep something"):
        fe.run(**unproved, key=jax.random.key(0), progress=False)
    with pytest.raises(PrivacyError, match="nothing can be claimed where clients keep something"):
        fe.describe(**unproved)
    assert fe.describe(**options(fe.data.uniform(10, 5), delta=None)).claim is None
    for proved in (
        options(fe.data.poisson(10, 0.5)),
        options(fe.data.uniform(10, 10)),
        options(fe.data.uniform(10, 5), rounds=1),
        options(fe.data.uniform(10, 5), algorithm=PRIVATE),
    ):
        assert fe.run(**proved, key=jax.random.key(0), progress=False).claim.epsilon > 0
        assert fe.describe(**proved).claim.epsilon > 0


def test_ctrl_c_keeps_what_was_done():
    before = signal.getsignal(signal.SIGINT)

    def interrupt_once_it_runs():
        while signal.getsignal(signal.SIGINT) is before:
            time.sleep(0.01)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt_once_it_runs)
    thread.start()
    result = run(PRIVATE, rounds=10_000_000, delta=1e-2, eval_every=1_000_000, sampler=fe.data.everyone(10))
    thread.join()
    done = result.history.rounds
    assert result.interrupted
    assert 0 < done < 10_000_000
    assert result.state.round == done
    assert (
        result.claim.epsilon == fe.privacy.gaussian_accountant(2.0)(fe.data.everyone(10).sampling, done, 1e-2).epsilon
    )


def test_segments_are_shorter_where_accounting_takes_long(monkeypatch):
    lengths = []

    def slow(*arguments):
        time.sleep(0.3)
        return epsilons_of(*arguments)

    def recorded(seconds):
        lengths.append(next_length(seconds))
        return lengths[-1]

    module = sys.modules[fe.run.__module__]
    monkeypatch.setattr(module, "epsilons_of", slow)
    monkeypatch.setattr(module, "next_length", recorded)
    run(FEDAVG, rounds=3)
    assert lengths == [1, 1, 1]


def test_the_progress_bar_shows_what_matters(capsys):
    run(PRIVATE, rounds=3, delta=1e-2, progress=True)
    shown = capsys.readouterr().err
    for part in ("3/3", "loss=", "accuracy=", "epsilon="):
        assert part in shown


def test_the_progress_bar_counts_the_megabytes_of_all_rounds(tmp_path, capsys):
    run(FEDAVG, rounds=3, checkpoints=fe.checkpoints(tmp_path))
    result = run(FEDAVG, rounds=5, checkpoints=fe.checkpoints(tmp_path, resume=True), progress=True)
    assert f"MB up={result.history['bits_up'].sum() / 8e6:.4g}]" in capsys.readouterr().err.split("5/5")[-1]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(rounds=0), "rounds must be an integer of at least 1, got 0"),
        (dict(eval_every=0), "eval_every must be an integer of at least 1, got 0"),
        (dict(sampler=fe.data.everyone(9)), "the sampler draws from 9 clients; there are 10"),
    ],
)
def test_bad_arguments(bad, message):
    with pytest.raises(ValueError, match=message):
        run(**bad)


def test_a_number_is_no_key_and_a_raw_key_is_one():
    with pytest.raises(TypeError, match=r"key must be a key of jax.random, such as jax.random.key\(0\), got 0"):
        run(key=0)
    chex.assert_trees_all_equal(run(rounds=2, key=jax.random.PRNGKey(3)).params, run(rounds=2, seed=3).params)


def test_a_sampler_must_be_of_the_population_wherever_it_is_given():
    false = fe.data.uniform(10, 2)._replace(sampling=fe.data.uniform(600, 2).sampling)
    for call in (
        lambda: run(PRIVATE, sampler=false, delta=1e-2),
        lambda: fe.describe(PRIVATE, PARAMS, POPULATION, sampler=false, rounds=3, delta=1e-2),
    ):
        with pytest.raises(PrivacyError, match="draws at most 2 of 10 clients, and describes itself as"):
            call()
    for call in (
        lambda: fe.describe(FEDAVG, PARAMS, POPULATION, sampler=fe.data.everyone(9), rounds=3),
        lambda: fe.tune_plan(FEDAVG, PARAMS, POPULATION, fe.data.everyone(9)),
    ):
        with pytest.raises(ValueError, match="the sampler draws from 9 clients; there are 10"):
            call()


@pytest.mark.parametrize("hosted", [False, True])
def test_clients_that_there_are_not_are_rejected(hosted):
    population = fe.data.on_host(POPULATION) if hosted else POPULATION

    def with_ids(*ids):
        cohort = fe.core.Cohort(jnp.array(ids, jnp.int32), jnp.ones(len(ids), bool))
        sampler = fe.core.Sampler(lambda key, number: cohort, len(ids), 10, len(ids))
        algorithm = fe.algorithms.scaffold(
            squared_error, 0.05, num_clients=10, batch_size=4, epochs=2,
            downlink=fe.compression.delta_broadcast(fe.compression.stochastic_uniform(4)),
        )  # fmt: skip
        options = dict(sampler=sampler, rounds=2, key=jax.random.key(0), progress=False, plan=TWO_DEVICES)
        return fe.run(algorithm, PARAMS, population, **options)

    expected, result = with_ids(4, 5), with_ids(4, 10, 5, -1)
    chex.assert_trees_all_close(result.params, expected.params, rtol=1e-6)
    chex.assert_trees_all_close(*(jax.device_get(one.state.clients) for one in (result, expected)), rtol=1e-6)
    chex.assert_trees_all_equal(*(jax.device_get(one.state.received) for one in (result, expected)))
    assert result.history["clients"].tolist() == [4, 4] and result.history["rejected"].tolist() == [2, 2]


def test_weak_types_are_compiled_for_once(compilations):
    weak = {"w": jnp.full(3, 0.0), "b": 0.0}
    algorithm = fe.algorithms.fedavg(squared_error, optax.sgd(0.05), batch_size=4, epochs=1)
    with compilations("run_segment") as messages:
        fe.run(
            algorithm, weak, POPULATION, sampler=fe.data.everyone(10), rounds=9, key=jax.random.key(0), progress=False,
            plan=TWO_DEVICES,
        )  # fmt: skip
    assert len(messages) == 1


def test_states_may_begin_as_numbers_of_python():
    server = fe.core.ServerUpdate(
        init=lambda params: (params, 0),
        broadcast=lambda state: state[0],
        update=lambda state, aggregate: (jax.tree.map(jnp.add, state[0], aggregate), state[1] + 1),
        params=lambda state: state[0],
    )
    client = fe.clients.local_sgd(squared_error, optax.sgd(0.05), batch_size=4, epochs=1)
    for plan in (fe.make_plan(), TWO_DEVICES):
        result = run(fe.federated(client, server, fe.aggregation.weighted_mean()), rounds=3, plan=plan)
        assert result.state.server[1] == 3


RATE_OF_LOSS = 1.0


def global_loss(params, batch, key):
    return RATE_OF_LOSS * squared_error(params, batch, key)[0]


def global_update(params, examples, state, key):
    return ClientOutput(jax.tree.map(lambda leaf: leaf + RATE_OF_LOSS, params), jnp.float32(1), state, {})


@pytest.mark.parametrize("own", [False, True])
def test_an_algorithm_made_anew_sees_globals_anew(monkeypatch, own):
    def trained():
        client = fe.clients.local_sgd(global_loss, optax.sgd(0.01), batch_size=4, epochs=1)
        client = ClientUpdate(lambda params: (), global_update) if own else client
        return run(fe.federated(client, optax.sgd(1.0), fe.aggregation.weighted_mean()), rounds=1).params["b"]

    first = trained()
    monkeypatch.setattr(sys.modules[__name__], "RATE_OF_LOSS", 5.0)
    assert trained() != first


def test_a_diverged_client_is_counted_in_the_history():
    spoilt = jax.tree.map(np.copy, POPULATION.columns)
    spoilt["y"][1] = np.nan  # an example of client 1
    population = fe.FederatedDataset(columns=spoilt, offsets=POPULATION.offsets)
    result = fe.run(
        FEDAVG, PARAMS, population, sampler=fe.data.everyone(10), rounds=3, key=jax.random.key(0), progress=False,
        plan=TWO_DEVICES,
    )  # fmt: skip
    np.testing.assert_array_equal(result.history["rejected"], [1, 1, 1])
    assert all(math.isfinite(loss) for loss in result.history["train_loss"])
    assert np.isfinite(result.params["w"]).all()
