import functools
import importlib
import os
import signal
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_edge as fe
from fedjax_edge.simulation.report import epsilons_of

sweep_module = importlib.import_module("fedjax_edge.simulation.sweep")
RATES = [0.02, 0.05, 0.1]


def without_seconds(history):
    return {name: column for name, column in history.items() if name != "seconds"}


@pytest.fixture
def sweep(linear):
    return functools.partial(
        fe.sweep, params=linear.params, population=linear.population, sampler=linear.sampler, rounds=4,
        evaluation=linear.evaluation, progress=False,
    )  # fmt: skip


def make_private(linear, learning_rate, noise_multiplier=1.0, bits=8):
    return linear.fedavg(
        learning_rate,
        aggregator=fe.privacy.gaussian_mean(1.0, noise_multiplier, denominator=5.0),
        uplink=fe.compression.stochastic_uniform(bits),
    )


PRIVATE_GRID = {"learning_rate": RATES, "noise_multiplier": [0.5, 2.0]}


@pytest.fixture(scope="module")
def make(linear):
    def make(learning_rate, noise_multiplier):
        return make_private(linear, learning_rate, noise_multiplier)

    return make


@pytest.fixture(scope="module")
def histories_alone(linear, make):
    return [
        fe.run(
            make, linear.params, linear.population, sampler=linear.sampler, rounds=4, evaluation=linear.evaluation,
            key=jax.random.key(seed), delta=1e-3, progress=False, plan=fe.make_plan(),
            hyperparameters={"learning_rate": learning_rate, "noise_multiplier": noise_multiplier},
        ).history
        for learning_rate in RATES for noise_multiplier in (0.5, 2.0) for seed in (0, 5)
    ]  # fmt: skip


@pytest.mark.parametrize("plan", [None, (2, 1), (3, 2), (4, 2)])
def test_every_trial_is_what_it_is_alone(make, sweep, histories_alone, plan):
    result = sweep(make, PRIVATE_GRID, seeds=[0, 5], delta=1e-3, plan=plan and fe.make_plan(*plan))
    assert len(result.trials) == 12 and not result.interrupted
    for trial, alone in zip(result.trials, histories_alone, strict=True):
        assert list(trial.history) == list(alone)
        chex.assert_trees_all_close(without_seconds(trial.history), without_seconds(alone), rtol=2e-5)


def test_each_static_combination_compiles_once(linear, sweep, compilations):
    def make(learning_rate, bits, cohort):
        algorithm = make_private(linear, learning_rate, bits=bits)
        return fe.Setup(algorithm, sampler=fe.data.uniform(10, cohort))

    grid = {"learning_rate": RATES, "bits": [4, 8], "cohort": [2, 5]}
    with compilations("sweep_segment") as first:
        result = sweep(make, grid, seeds=[0, 1], plan=fe.make_plan(1, 8))
    with compilations("sweep_segment") as second:
        sweep(
            make, {"learning_rate": [0.03], "bits": [4], "cohort": [5]}, seeds=[7, 8], plan=fe.make_plan(1, 8), rounds=9
        )
    assert (len(first), len(second)) == (4, 0)
    with compilations() as anything:
        sweep(make, {"learning_rate": RATES, "bits": [4], "cohort": [5]}, seeds=[2, 3], plan=fe.make_plan(1, 8))
    assert not anything
    assert [trial.history["clients"][0] for trial in result.trials[:4]] == [2, 2, 5, 5]


def test_a_configuration_may_bring_its_own_model(sweep, linear):
    def loss_fn(width, params, batch, key):
        hidden = jnp.tanh(batch["x"] @ params["in"])
        assert hidden.shape[1] == width
        return (hidden @ params["out"] - batch["y"]) ** 2

    def make(width, learning_rate):
        def init(key):
            return {"in": jax.random.normal(key, (3, width)), "out": jnp.zeros(width)}

        loss = functools.partial(loss_fn, width)
        algorithm = fe.algorithms.fedavg(loss, optax.sgd(learning_rate), batch_size=4, epochs=1)
        return fe.Setup(algorithm, params=init, evaluation=fe.evaluation(loss, linear.population.columns))

    result = sweep(make, {"width": [2, 4], "learning_rate": [0.01, 0.02]}, seeds=[0, 1])
    losses = {trial.history["test_loss"][-1] for trial in result.trials}
    assert len(losses) == 8  # widths, rates and the seeds' initial parameters all differ


def test_what_is_evaluated_may_depend_on_a_traced_hyperparameter(sweep, linear, compilations):
    def loss_fn(target, params, batch, key):
        return (params - target) ** 2 + 0 * batch["y"]

    def make(target):
        loss = functools.partial(loss_fn, target)
        algorithm = fe.algorithms.fedavg(loss, optax.sgd(0.5), batch_size=None, steps=1)
        return fe.Setup(algorithm, evaluation=fe.evaluation(loss, linear.population.columns))

    with compilations("sweep_segment") as messages:
        result = sweep(make, {"target": [0.0, 5.0]}, params=jnp.float32(1))
    np.testing.assert_allclose([trial.history["test_loss"][-1] for trial in result.trials], 0, atol=1e-6)
    assert len(messages) == 1


def test_trials_are_evaluated_on_their_own_examples(sweep, linear):
    def make(shift):
        columns = {**linear.population.columns, "y": linear.population.columns["y"] + shift}
        return fe.Setup(linear.fedavg(), evaluation=fe.evaluation(linear.loss_fn, columns))

    near, far = sweep(make, {"shift": [0.0, 99.0]}).trials
    assert far.history["test_loss"][-1] > 100 * near.history["test_loss"][-1]


def test_a_float_may_be_static(linear, sweep):
    def make(learning_rate, probability):
        return fe.Setup(linear.fedavg(learning_rate), sampler=fe.data.poisson(10, probability))

    grid = {"learning_rate": [0.1], "probability": [0.3, 1.0]}
    result = sweep(make, grid, static=["probability"])
    np.testing.assert_array_equal(result.trials[1].history["clients"], 10)
    with pytest.raises(TypeError, match=r"a number is needed where values are traced; .* make it static"):
        sweep(make, grid)


def test_a_list_of_configurations(linear, sweep):
    result = sweep(linear.fedavg, [{"learning_rate": 0.1}, {}])
    assert [trial.hyperparameters for trial in result.trials] == [{"learning_rate": 0.1}, {}]
    table = result.table()
    np.testing.assert_array_equal(table["learning_rate"], [0.1] * 4 + [np.nan] * 4)


def test_the_table_has_a_row_for_each_evaluation(linear, sweep, tmp_path):
    result = sweep(linear.fedavg, {"learning_rate": RATES}, seeds=[3, 4], eval_every=3)
    frame = result.to_pandas()
    assert frame[["learning_rate", "seed", "round"]].to_numpy().tolist() == [
        [rate, seed, number] for rate in RATES for seed in (3, 4) for number in (3, 4)
    ]
    assert frame["test_loss"].notna().all()
    nothing = dict.fromkeys(("test_loss", "test_accuracy"), np.full(4, np.nan))
    trials = [one._replace(history=fe.History({**one.history, **nothing})) for one in result.trials]
    diverged = result._replace(trials=(*trials[:2], *result.trials[2:])).table()
    assert diverged["round"].tolist() == [3, 4] * 6 and np.isnan(diverged["test_loss"][:4]).all()
    result.to_csv(tmp_path / "sweep.csv")
    lines = (tmp_path / "sweep.csv").read_text().splitlines()
    assert len(lines) == 13 and lines[0].startswith("learning_rate,seed,round,train_accuracy")


def test_functions_and_components_are_words_in_the_table(linear, sweep):
    trial = sweep(linear.fedavg, [{}], rounds=1).trials[0]
    given = {"uplink": fe.compression.top_k(0.1), "model": fe.models.mnist_2nn}
    table = fe.simulation.SweepResult((trial._replace(hyperparameters=given),), interrupted=False).table()
    assert table["uplink"].tolist() == ["Codec(top_k.<locals>.encode(fraction=0.1), top_k.<locals>.decode)"]
    assert table["model"].tolist() == ["mnist_2nn"]


def test_words_and_numbers_of_one_hyperparameter_stay_what_they_are(linear, sweep):
    result = sweep(lambda bits: linear.fedavg(), {"bits": ["none", 4]}, rounds=1)
    assert result.table()["bits"].tolist() == ["none", 4]


@pytest.mark.parametrize("layers", [[(200,), (200, 200)], [(3, 4), (5, 6)], ["none", (4,)]])
def test_a_hyperparameter_may_be_a_tuple(linear, sweep, tmp_path, layers):
    result = sweep(lambda layers: linear.fedavg(len(layers) / 100), {"layers": layers}, rounds=1)
    assert result.table()["layers"].tolist() == layers
    assert result.to_pandas()["layers"].tolist() == layers
    result.to_csv(tmp_path / "sweep.csv")
    assert str(layers[1]) in (tmp_path / "sweep.csv").read_text()


def test_a_model_may_be_one_plain_number(linear):
    def loss(params, batch, key):
        return (params - batch["y"]) ** 2

    def make(learning_rate):
        return fe.algorithms.fedavg(loss, optax.sgd(learning_rate), batch_size=2, epochs=1)

    options = dict(sampler=linear.sampler, rounds=2, evaluation=fe.evaluation(loss, linear.population.columns))
    result = fe.sweep(make, {"learning_rate": [0.05, 0.1]}, 0.0, linear.population, progress=False, **options)
    alone = fe.run(make(0.1), 0.0, linear.population, key=jax.random.key(0), progress=False, **options)
    np.testing.assert_allclose(result.trials[1].history["test_loss"], alone.history["test_loss"], rtol=1e-6)


def test_on_an_accelerator_trials_have_room_for_what_clients_keep(linear, monkeypatch):
    def width(algorithm):
        jobs = [sweep_module._job(lambda: algorithm, {}, 0, setup, (), 10, sweep_module.Pace(1, 1), None)]
        (_, plan, _), *_ = sweep_module._batches([0] * 100, jobs, linear.population, None)
        return plan.width

    setup = fe.Setup(None, linear.params, fe.data.uniform(10, 2), linear.evaluation)
    monkeypatch.setattr("fedjax_edge.core.plan.accelerator_bytes", lambda: 2 * 6 * 16 * 1000)  # of 1,000 models
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert width(linear.fedavg()) == 100
    assert width(linear.scaffold()) == 1000 // (2 + 10)


def test_summaries_by_hand(linear):
    def history(values):
        return fe.History({"round": np.arange(1, 4), "test_accuracy": np.array(values)})

    nan = np.nan
    trials = (
        fe.simulation.Trial({"lr": 0.1}, 0, history([0.1, nan, 0.5])),
        fe.simulation.Trial({"lr": 0.1}, 1, history([0.3, nan, 0.4])),
        fe.simulation.Trial({"lr": 0.2}, 0, history([0.6, nan, 0.2])),
        fe.simulation.Trial({"lr": 0.2}, 1, history([0.1, nan, 0.2])),
        fe.simulation.Trial({"lr": 0.3}, 0, history([0.9, nan, nan])),  # diverged
    )
    result = fe.simulation.SweepResult(trials, interrupted=False)
    first, second, third = result.summaries()
    assert first == ({"lr": 0.1}, pytest.approx(0.45), pytest.approx(0.05 * np.sqrt(2)), (0.5, 0.4))
    assert second.mean == pytest.approx(0.2) and second.std == 0
    assert np.isnan(third.mean) and np.isnan(third.std)
    assert result.best().hyperparameters == {"lr": 0.1}
    assert result.best(largest_is_best=False).hyperparameters == {"lr": 0.2}
    reached = result.rounds_to_target(0.4)
    assert [summary.values for summary in reached] == [(3, 3), (1, np.inf), (1,)]
    assert [summary.values for summary in result.rounds_to_target(0.15, largest_is_best=False)][1] == (np.inf, 1)
    for question in (result.best, functools.partial(result.rounds_to_target, 1)):
        with pytest.raises(ValueError, match=r"metric must be one of .*, got 'test_loss'"):
            question(metric="test_loss")
    with pytest.raises(ValueError, match="no trial was finished"):
        fe.simulation.SweepResult((), interrupted=True).best()


def test_a_sweep_refuses_what_cannot_be_claimed_before_it_trains(linear, sweep, monkeypatch):
    def make(learning_rate, remembers):
        uplink = fe.compression.error_feedback(fe.compression.top_k(0.5)) if remembers else fe.chain()
        return linear.fedavg(learning_rate, aggregator=fe.privacy.gaussian_mean(1.0, 2.0, 5.0), uplink=uplink)

    monkeypatch.setattr(sweep_module, "_run_together", None)  # would be called for the first group
    with pytest.raises(fe.core.PrivacyError, match="nothing can be claimed where clients keep something"):
        sweep(make, {"learning_rate": RATES, "remembers": [False, True]}, sampler=fe.data.uniform(10, 5), delta=1e-2)


def test_what_some_trials_do_not_have_is_not_a_number():
    def trial(hyperparameters, **columns):
        columns = {"round": [1, 2], **columns}
        return fe.simulation.Trial(
            hyperparameters, 0, fe.History({name: np.array(one) for name, one in columns.items()})
        )

    result = fe.simulation.SweepResult(
        (
            trial({"lr": 0.1, "bits": 4, "rule": "mean", "clip": None}, test_loss=[3.0, 2.0]),
            trial({"lr": 0.2, "clip": 1.0}, test_loss=[3.0, 1.0], test_accuracy=[0.25, 0.5]),
            trial({"rule": "median", "prune": True}, test_loss=[3.0, 4.0]),
        ),
        interrupted=False,
    )
    nan = np.nan
    np.testing.assert_array_equal([summary.values for summary in result.summaries()], [(nan,), (0.5,), (nan,)])
    reached = [summary.values for summary in result.rounds_to_target(0.5)]
    np.testing.assert_array_equal(reached, [(nan,), (2,), (nan,)])
    assert result.best().hyperparameters == {"lr": 0.2, "clip": 1.0}
    with pytest.raises(ValueError, match=r"metric must be one of .*'test_accuracy'\], got 'test_top5'"):
        result.summaries("test_top5")

    table = result.table()
    np.testing.assert_array_equal(table["test_accuracy"], [nan, nan, 0.25, 0.5, nan, nan])
    np.testing.assert_array_equal(table["lr"], [0.1, 0.1, 0.2, 0.2, nan, nan])
    np.testing.assert_array_equal(table["bits"], [4, 4, nan, nan, nan, nan])
    assert {table[name].dtype for name in ("test_accuracy", "lr", "bits")} == {np.dtype(float)}
    assert table["rule"].tolist() == ["mean"] * 2 + [None] * 2 + ["median"] * 2
    assert table["clip"].tolist() == [None] * 2 + [1.0] * 2 + [None] * 2
    assert table["prune"].tolist() == [None] * 4 + [True] * 2


def test_finished_trials_are_not_run_again(linear, sweep, tmp_path, monkeypatch):
    grid = {"learning_rate": RATES}
    whole = sweep(linear.fedavg, grid, seeds=[0, 1], directory=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 6
    files[2].unlink()
    run_trials = []
    original = sweep_module._run_together

    def recording(jobs, *rest):
        run_trials.extend(jobs)
        return original(jobs, *rest)

    monkeypatch.setattr(sweep_module, "_run_together", recording)
    again = sweep(linear.fedavg, grid, seeds=[0, 1], directory=tmp_path)
    assert len(run_trials) == 1
    for one, other in zip(whole.trials, again.trials, strict=True):
        assert one.hyperparameters == other.hyperparameters and one.seed == other.seed
        chex.assert_trees_all_equal(without_seconds(one.history), without_seconds(other.history))
        assert all(one.history[name].dtype.kind == other.history[name].dtype.kind for name in one.history)
    sweep(linear.fedavg, grid, seeds=[0, 1], directory=tmp_path, rounds=5)  # another sweep: nothing found
    assert len(run_trials) == 7
    fewer = fe.evaluation(lambda *arguments: linear.loss_fn(*arguments)[0], linear.population.columns)
    reversed_ = jax.tree.map(lambda column: column[::-1], linear.population.columns)
    elsewhere = fe.FederatedDataset(columns=reversed_, offsets=linear.population.offsets)
    changes = ({"config": {"skew": 0.3}}, {"evaluation": fewer}, {"population": elsewhere}, {"accounted_only": True})
    for option in changes:
        other = sweep(linear.fedavg, {"learning_rate": RATES[:1]}, directory=tmp_path, **option)
        assert len(run_trials) == 8
        run_trials.pop()
    assert (
        np.isnan(other.trials[0].history["clients"]).all() and np.isfinite(other.trials[0].history["test_loss"]).all()
    )


def test_trials_that_are_described_alike_have_no_directory(linear, sweep, tmp_path):
    def make(loss_fn):
        return fe.algorithms.fedavg(loss_fn, optax.sgd(0.05), batch_size=4, epochs=1)

    once, twice = (
        lambda params, batch, key: linear.loss_fn(params, batch, key)[0],
        lambda params, batch, key: linear.loss_fn(params, batch, key)[0] * 2,
    )
    with pytest.raises(ValueError, match="are described alike, so that directory cannot tell their trials apart"):
        sweep(make, {"loss_fn": [once, twice]}, directory=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_hyperparameter_is_not_named_as_a_metric(linear, sweep, tmp_path):
    with pytest.raises(ValueError, match=r"must not be named as one of the table's columns .*, got 'test_loss'"):
        sweep(lambda test_loss: linear.fedavg(test_loss), {"test_loss": RATES[:1]}, rounds=1, directory=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_trial_is_named(linear, sweep, tmp_path):
    sweep(linear.fedavg, {"learning_rate": RATES[:1]}, rounds=1, directory=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=f"{path} is damaged: remove it, and its trial will be run again"):
        sweep(linear.fedavg, {"learning_rate": RATES[:1]}, rounds=1, directory=tmp_path)


def test_trials_are_found_again_only_for_what_they_were_trained_and_evaluated_on(linear, sweep, tmp_path):
    def last(rate=0.1, batch_size=4, evaluation=linear.evaluation, directory=tmp_path):
        def make(schedule):
            return fe.algorithms.fedavg(linear.loss_fn, optax.sgd(schedule), batch_size=batch_size, epochs=1)

        schedules = [optax.piecewise_constant_schedule(rate)]
        found = sweep(make, {"schedule": schedules}, rounds=2, evaluation=evaluation, directory=directory)
        return found.trials[0].history["test_loss"].tolist()

    moved = fe.evaluation(linear.loss_fn, jax.tree.map(lambda column: column + 1, linear.population.columns))
    for other in (dict(), dict(rate=0.2), dict(batch_size=2), dict(evaluation=moved)):
        assert last(**other) == last(**other) == last(**other, directory=None)
    assert len(list(tmp_path.iterdir())) == 4


def test_what_makes_algorithms_may_be_any_callable(linear, sweep, tmp_path):
    class Maker:
        def __call__(self, learning_rate):
            return linear.fedavg(learning_rate)

    def make(batch_size, learning_rate):
        return fe.algorithms.fedavg(linear.loss_fn, optax.sgd(learning_rate), batch_size=batch_size, epochs=1)

    for callable_ in (Maker(), functools.partial(make, 2), functools.partial(make, 4)):
        sweep(callable_, {"learning_rate": RATES[:1]}, rounds=1, directory=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_numbers_of_arrays_are_plain_ones(linear, sweep):
    result = sweep(linear.fedavg, {"learning_rate": jnp.array([0.25, 0.5])}, rounds=1)
    assert [type(trial.hyperparameters["learning_rate"]) for trial in result.trials] == [float, float]
    assert [summary.hyperparameters["learning_rate"] for summary in result.summaries()] == [0.25, 0.5]


def test_ctrl_c_keeps_the_finished_trials(linear, sweep, tmp_path, monkeypatch):
    original, run_together, calls, begun = sweep_module.sweep_segment, sweep_module._run_together, [], []

    def counting(*arguments):
        begun.append(1)
        return run_together(*arguments)

    def interrupting(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(sweep_module, "next_length", lambda seconds: 4)
    monkeypatch.setattr(sweep_module, "sweep_segment", interrupting)
    monkeypatch.setattr(sweep_module, "_run_together", counting)
    grid = [*({"learning_rate": rate} for rate in RATES[:2]), {}]  # the last one is compiled for itself
    options = dict(directory=tmp_path, plan=fe.make_plan(1, 1))
    partial = sweep(linear.fedavg, grid, **options)
    assert partial.interrupted and len(partial.trials) == 1 and len(begun) == 2
    resumed = sweep(linear.fedavg, grid, **options)
    assert len(resumed.trials) == 3 and not resumed.interrupted


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(grid={"learning_rate": []}), "a sweep needs configurations and seeds"),
        (dict(grid={"learning_rate": 0.1}), r"grid\['learning_rate'\] must be a list, a tuple or an array .*, got 0.1"),
        (dict(grid={"learning_rate": "sgd"}), r"grid\['learning_rate'\] must be a list, .*, got 'sgd'"),
        (dict(seeds=3), r"seeds must be a list, a tuple or an array of values, got 3"),
        (dict(grid=[]), "a sweep needs configurations and seeds"),
        (dict(seeds=[]), "a sweep needs configurations and seeds"),
        (dict(seeds=[0, 0]), "a seed comes twice"),
        (dict(seeds=[-1]), "seed must be an integer from 0 to 4294967295, got -1"),
        (dict(seeds=[2**32]), "seed must be an integer from 0 to 4294967295, got 4294967296"),
        (dict(grid={"seconds": [0.1]}), "must not be named as one of the table's columns .*, got 'seconds'"),
        (dict(grid={"learning_rate": [0.1, 0.1]}), "a configuration comes twice"),
        (dict(rounds=0), "rounds must be"),
        (dict(sampler=fe.data.everyone(3)), "the sampler draws from 3 clients; there are 10"),
    ],
)
def test_bad_arguments(linear, sweep, bad, message):
    with pytest.raises(ValueError, match=message):
        sweep(linear.fedavg, **({"grid": {"learning_rate": RATES}} | bad))


def test_a_claim_that_cannot_be_made_is_refused_before_training(make, sweep):
    with pytest.raises(fe.core.PrivacyError, match="no noise"):
        sweep(make, {"learning_rate": [0.1], "noise_multiplier": [1.0, 0.0]}, delta=1e-3)


def test_an_array_is_no_hyperparameter(linear, sweep):
    with pytest.raises(TypeError, match=r"learning_rate must be a float or hashable, got array\(\[0\.1, 0\.2\]\)"):
        sweep(linear.fedavg, [{"learning_rate": rates} for rates in np.array([[0.1, 0.2], [0.1, 0.2]])])


@pytest.mark.parametrize("config", [{"a": np.float32(1)}, {"a": float("nan")}])
def test_a_config_is_what_json_has(linear, sweep, tmp_path, config):
    with pytest.raises(TypeError, match=r"config must hold only what JSON has \(no NaN, no infinity\), got \{'a': "):
        sweep(linear.fedavg, {"learning_rate": RATES}, directory=tmp_path, config=config)


def test_a_population_on_the_host_is_refused(linear, sweep):
    with pytest.raises(TypeError, match="a sweep needs its population on the devices"):
        sweep(linear.fedavg, {"learning_rate": RATES}, population=fe.data.on_host(linear.population))


def test_the_progress_bar_counts_the_rounds_of_all_trials(linear, sweep, capsys):
    sweep(linear.fedavg, {"learning_rate": RATES}, progress=True)
    assert "12/12" in capsys.readouterr().err


def test_segments_are_shorter_where_accounting_takes_long(linear, sweep, monkeypatch):
    lengths, next_length = [], sweep_module.next_length

    def recorded(seconds):
        lengths.append(next_length(seconds))
        return lengths[-1]

    def slow(*arguments):
        time.sleep(0.3)
        return epsilons_of(*arguments)

    monkeypatch.setattr(sweep_module, "epsilons_of", slow)
    monkeypatch.setattr(sweep_module, "next_length", recorded)
    sweep(linear.fedavg, {"learning_rate": RATES[:1]}, rounds=3)
    assert lengths == [1, 1, 1]
