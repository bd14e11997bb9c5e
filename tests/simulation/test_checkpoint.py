"""Checkpoints, with processes that are really killed."""

import random
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import optax
import pytest

import fedjax_edge as fe
from fedjax_edge.simulation import checkpoint as checkpoint_module
from fedjax_edge.simulation.evaluation import NO_EVALUATION

TWO_DEVICES = fe.make_plan(width=1, devices=2)


def run(linear, rounds, checkpoints=None, algorithm=None, population=None, **options):
    common = dict(
        sampler=linear.sampler, evaluation=linear.evaluation, plan=TWO_DEVICES, progress=False, key=jax.random.key(1)
    )
    return fe.run(
        algorithm or stateful(linear),
        linear.params,
        population or linear.population,
        rounds=rounds,
        checkpoints=checkpoints,
        **(common | options),
    )


def stateful(linear):
    return linear.scaffold(uplink=fe.compression.error_feedback(fe.compression.top_k(0.5)))


def without_seconds(history):
    return {name: column for name, column in history.items() if name != "seconds"}


def assert_same(result, expected):
    chex.assert_trees_all_equal(result.params, expected.params)
    chex.assert_trees_all_equal(jax.device_get(result.state), jax.device_get(expected.state))
    chex.assert_trees_all_equal(without_seconds(result.history), without_seconds(expected.history))
    assert list(result.history) == list(expected.history)
    assert result.claim == expected.claim


def test_a_resumed_run_ends_as_if_it_had_not_stopped(linear, tmp_path):
    expected = run(linear, 9, eval_every=2)
    run(linear, np.int64(4), fe.checkpoints(tmp_path, every=2), eval_every=np.int64(2))
    assert_same(run(linear, 9, fe.checkpoints(tmp_path, every=2, resume=True), eval_every=2), expected)


def test_a_run_without_checkpoints_does_not_wait_for_orbax(linear, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)  # importing it fails
    assert run(linear, 1).history.rounds == 1


def test_a_finished_run_resumes_to_what_it_was(linear, tmp_path):
    finished = run(linear, 5, fe.checkpoints(tmp_path))
    again = run(linear, 5, fe.checkpoints(tmp_path, resume=True))
    assert_same(again, finished)
    np.testing.assert_array_equal(again.history["seconds"], finished.history["seconds"])


def test_states_on_the_host_are_saved_too(linear, tmp_path):
    def hosted(name):
        return fe.data.on_host(linear.population, tmp_path / name)

    expected = run(linear, 6, population=hosted("a"))
    run(linear, 3, fe.checkpoints(tmp_path / "saved"), population=hosted("b"))
    resumed = run(linear, 6, fe.checkpoints(tmp_path / "saved", resume=True), population=hosted("c"))
    assert_same(resumed, expected)
    assert isinstance(resumed.state.clients["w"], np.memmap)


def test_a_run_may_go_on_elsewhere_than_it_began(linear, tmp_path):
    hosted = fe.data.on_host(linear.population)
    memory = fe.compression.error_feedback(fe.compression.top_k(0.5))
    delta = fe.compression.delta_broadcast(fe.compression.stochastic_uniform(4))
    algorithm = linear.scaffold(uplink=memory, downlink=delta)
    expected = run(linear, 6, algorithm=algorithm)
    for first, second in ((linear.population, hosted), (hosted, linear.population)):
        folder = tmp_path / type(first).__name__
        run(linear, 3, fe.checkpoints(folder), algorithm, first)
        assert_same(run(linear, 6, fe.checkpoints(folder, resume=True), algorithm, second), expected)


def test_states_of_clients_that_never_took_part_take_no_room(tmp_path):
    clients = fe.data.from_client_arrays([{"x": np.ones((1, 1), np.float32)}] * 2_000)
    population, saved = fe.data.on_host(clients, tmp_path / "states"), tmp_path / "saved"
    algorithm = fe.algorithms.scaffold(
        lambda params, batch, key: batch["x"][:, 0] * params.sum(), 0.05, num_clients=2_000, batch_size=1, epochs=1
    )

    def controls(rounds):
        result = fe.run(
            algorithm, np.zeros(5_000, np.float32), population, sampler=fe.data.uniform(2_000, 3), rounds=rounds,
            key=jax.random.key(0), checkpoints=fe.checkpoints(saved, resume=True), progress=False,
        )  # fmt: skip
        kept = result.state.clients
        return {int(client): kept[client].copy() for client in np.flatnonzero(kept[:, 0])}

    first, resumed = controls(1), controls(2)
    assert len(first) == 3 and len(resumed) == 6
    chex.assert_trees_all_equal(first, {client: resumed[client] for client in first})
    for folder in (saved, population.state_dir):
        assert sum(512 * path.stat().st_blocks for path in folder.rglob("*")) < 1e6  # of 40 MB


def test_privacy_spent_resumes_with_the_rounds(linear, tmp_path):
    algorithm = linear.fedavg(aggregator=fe.privacy.gaussian_mean(1.0, 2.0, denominator=5.0))
    run(linear, 3, fe.checkpoints(tmp_path), algorithm, delta=1e-3)
    resumed = run(linear, 6, fe.checkpoints(tmp_path, resume=True), algorithm, delta=1e-3)
    assert_same(resumed, run(linear, 6, algorithm=algorithm, delta=1e-3))
    assert resumed.claim.rounds == 6
    noisier = linear.fedavg(aggregator=fe.privacy.gaussian_mean(1.0, 3.0, denominator=5.0))
    with pytest.raises(ValueError, match=r"of another run: noise multiplier was 2\.0, is 3\.0$"):
        run(linear, 9, fe.checkpoints(tmp_path, resume=True), noisier, delta=1e-3)


def test_another_mechanism_with_states_of_the_same_shapes_is_refused(linear, tmp_path):
    def epochs(number):
        return fe.algorithms.fedavg_dp_sgd(
            linear.loss_fn, optax.sgd(0.05), batch_size=4, epochs=number, clip_norm=1.0, noise_multiplier=8.0
        )

    def correlated(rounds):
        strategy = fe.privacy.banded_toeplitz_noise(rounds, 2)
        return linear.fedavg(aggregator=fe.privacy.correlated_mean(strategy, 1.0, 4.0, denominator=5.0))

    everyone = dict(delta=1e-3, sampler=fe.data.everyone(10))
    for name, make, first, second in (("epochs", epochs, 5, 1), ("rounds", correlated, 3, 6)):
        run(linear, 3, fe.checkpoints(tmp_path / name), make(first), **everyone)
        with pytest.raises(ValueError, match=f"of another run: .* {first} .*, is .* {second} "):
            run(linear, 6, fe.checkpoints(tmp_path / name, resume=True), make(second), **everyone)
        assert run(linear, 3, fe.checkpoints(tmp_path / name, resume=True), make(first), **everyone).claim.rounds == 3


def test_only_the_last_ones_are_kept(linear, tmp_path):
    run(linear, 9, fe.checkpoints(tmp_path, every=2, keep=3))
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [6, 8, 9]


def test_a_checkpoint_of_another_run_is_refused_and_the_difference_named(linear, tmp_path):
    run(linear, 2, fe.checkpoints(tmp_path, config={"skew": 0.3}))
    with pytest.raises(ValueError, match=r"holds a checkpoint \(round 2\): resume it or choose another"):
        run(linear, 2, fe.checkpoints(tmp_path, config={"skew": 0.3}))

    def refused(message, config=0.3, **options):
        with pytest.raises(ValueError, match=message):
            run(linear, 4, fe.checkpoints(tmp_path, resume=True, config={"skew": config}), **options)

    refused("config skew was 0.3, is 0.5$", config=0.5)
    refused(r"key was \[0, 1\], is \[0, 2\]$", key=jax.random.key(2))
    refused("eval_every was 1, is 2", eval_every=2)
    columns, offsets = linear.population.columns, np.array(linear.population.offsets)
    reordered = {"x": columns["x"][::-1], "y": columns["y"]}
    shifted = np.concatenate([[0, 2], offsets[2:]]).astype(np.int32)
    for other in ((reordered, offsets), (columns, shifted)):
        other = fe.FederatedDataset(columns=other[0], offsets=other[1])
        for population in (other, fe.data.on_host(other)):
            refused("another run: examples was '[0-9a-f]+', is '[0-9a-f]+'$", population=population)
    refused("accounted only was False, is True$", accounted_only=True)
    refused(r"evaluation was 'squared_error', is 'None'; .*evaluation\['x'\] was .*, is None", evaluation=NO_EVALUATION)
    other = fe.evaluation(linear.loss_fn, jax.tree.map(lambda column: column[:7], linear.population.columns))
    refused(r"evaluation\['x'\] was 'float32\[40, 3\]', is 'float32\[7, 3\]'", evaluation=other)
    moved = fe.evaluation(linear.loss_fn, jax.tree.map(lambda column: column + 1, linear.population.columns))
    refused("another run: evaluation examples was '[0-9a-f]+', is '[0-9a-f]+'$", evaluation=moved)
    refused("sampler was 'PoissonSampling.*', is 'FixedSampling", sampler=fe.data.uniform(10, 5))
    own = fe.core.Sampler(lambda key, number: linear.sampler.sample(key, number), *linear.sampler[1:])
    refused("another run: sampler draws by was .*poisson.*, is .*", sampler=own)
    other = linear.scaffold(uplink=fe.compression.error_feedback(fe.compression.top_k(0.25)))
    refused(r"another run: algorithm was .*fraction=0\.5.*, is .*fraction=0\.25[^;]*$", algorithm=other)
    refused("state.*was.*is None", algorithm=linear.fedavg())
    refused(
        r"another run: hyperparameter learning_rate was None, is '0\.1'",
        algorithm=lambda learning_rate: stateful(linear),
        hyperparameters={"learning_rate": 0.1},
    )
    assert run(linear, 2, fe.checkpoints(tmp_path, resume=True, config={"skew": 0.3})).history.rounds == 2
    with pytest.raises(ValueError, match=r"rounds must be at least the 2 that .* holds, got 1"):
        run(linear, 1, fe.checkpoints(tmp_path, resume=True, config={"skew": 0.3}))


def test_a_config_is_what_json_makes_of_it(linear, tmp_path):
    for thing in (object(), np.float32(1), float("nan"), [float("-inf")]):
        with pytest.raises(
            TypeError, match=r"config must hold only what JSON has \(no NaN, no infinity\), got .*thing"
        ):
            fe.checkpoints(tmp_path, config={"thing": thing})
    config = {"layers": (1, 2)}
    run(linear, 1, fe.checkpoints(tmp_path, config=config), delta=np.float32(0.5))
    again = run(linear, 2, fe.checkpoints(tmp_path, config=config, resume=True), delta=np.float32(0.5))
    assert again.history.rounds == 2


@pytest.mark.parametrize("at_once", [1, 2**20])
def test_rows_that_changed_are_found_to_the_bit(at_once, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "COMPARED_BYTES", at_once)
    rows = np.array([[0, 0], [0, -0.0], [0, 0], [np.nan, 0], [0, 1e-45]], np.float32)
    assert checkpoint_module._changed(rows, rows[0]).tolist() == [0, 1, 3, 4]
    assert checkpoint_module._changed(rows[:, 1], rows[2, 1]).tolist() == [0, 1, 4]
    assert checkpoint_module._changed(rows[:, None], rows[3, None]).tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("bad", [{"every": 0}, {"keep": 0}, {"every": 1.5}])
def test_bad_numbers_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be an integer of at least 1"):
        fe.checkpoints(tmp_path, **bad)


PROGRAM = """
import sys, jax, jax.numpy as jnp, numpy as np, optax, fedjax_edge as fe
jax.config.update("jax_compilation_cache_dir", sys.argv[2])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
def loss_fn(params, batch, key):
    return (batch["x"] @ params["w"] - 1) ** 2
rng = np.random.default_rng(0)
data = fe.data.from_client_arrays([{"x": rng.normal(size=(n, 50)).astype(np.float32)} for n in (3, 9, 1, 5)])
uplink = fe.compression.error_feedback(fe.compression.stochastic_uniform(4))
algorithm = fe.algorithms.scaffold(loss_fn, 0.01, num_clients=4, batch_size=2, epochs=2, uplink=uplink)
result = fe.run(
    algorithm, {"w": jnp.zeros(50), "empty": jnp.zeros((0,))}, data, sampler=fe.data.poisson(4, 0.6), rounds=40,
    key=jax.random.key(7), evaluation=fe.evaluation(loss_fn, data.columns), progress=False,
    checkpoints=fe.checkpoints(sys.argv[1], every=1, resume=True),
)
np.savez(sys.argv[3], *map(np.asarray, jax.tree.leaves((result.params, result.state.clients, result.state.uplink))),
         **{k: v for k, v in result.history.items() if k != "seconds"})
"""


def test_a_run_killed_at_random_moments_ends_bit_identical(tmp_path):
    def start(folder):
        out = tmp_path / f"{folder}.npz"
        arguments = [sys.executable, "-c", PROGRAM, tmp_path / folder, tmp_path / "cache", out]
        return subprocess.Popen(arguments)

    def rounds_saved(folder):
        return sum(1 for path in (tmp_path / folder).glob("*") if path.name.isdigit())

    whole = start("whole")
    assert whole.wait(300) == 0
    rng, killed_while_writing = random.Random(0), 0
    for _ in range(4):
        process, before = start("killed"), set((tmp_path / "killed").glob("*"))
        while process.poll() is None and set((tmp_path / "killed").glob("*")) == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        process.kill()
        process.wait()
        killed_while_writing += any("tmp" in path.name for path in (tmp_path / "killed").glob("*"))
    assert killed_while_writing and rounds_saved("killed") > 0
    last = start("killed")
    assert last.wait(300) == 0
    expected, resumed = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "killed.npz")
    chex.assert_trees_all_equal(dict(resumed), dict(expected))
