import functools
import importlib
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_edge as fe

pytestmark = pytest.mark.usefixtures("quickly")

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


def test_a_float_may_be_static(linear, sweep):
    def make(learning_rate, probability):
        return fe.Setup(linear.fedavg(learning_rate), sampler=fe.data.poisson(10, probability))

    grid = {"learning_rate": [0.1], "probability": [0.3, 1.0]}
    result = sweep(make, grid, static=["probability"])
    np.testing.assert_array_equal(result.trials[1].history["clients"], 10)
    with pytest.raises(TypeError, match="is needed as a number where it is traced: make it static"):
        sweep(make, grid)


def test_a_list_of_configurations(linear, sweep):
    result = sweep(linear.fedavg, [{"learning_rate": 0.1}, {}])
    assert [trial.hyperparameters for trial in result.trials] == [{"learning_rate": 0.1}, {}]
    table = result.table()
    assert table["learning_rate"].tolist() == [0.1] * 4 + [None] * 4


def test_the_table_has_a_row_for_each_evaluation(linear, sweep, tmp_path):
    result = sweep(linear.fedavg, {"learning_rate": RATES}, seeds=[3, 4], eval_every=3)
    frame = result.to_pandas()
    assert frame[["learning_rate", "seed", "round"]].to_numpy().tolist() == [
        [rate, seed, number] for rate in RATES for seed in (3, 4) for number in (3, 4)
    ]
    assert frame["test_loss"].notna().all()
    result.to_csv(tmp_path / "sweep.csv")
    lines = (tmp_path / "sweep.csv").read_text().splitlines()
    assert len(lines) == 13 and lines[0].startswith("learning_rate,seed,round,train_accuracy")


def test_summaries_by_hand(linear):
    def history(values):
        return fe.History({"round": np.arange(1, 4), "test_accuracy": np.array(values)})

    nan = np.nan
    trials = (
        fe.simulation.Trial({"lr": 0.1}, 0, history([0.1, nan, 0.5])),
        fe.simulation.Trial({"lr": 0.1}, 1, history([0.3, 0.4, nan])),
        fe.simulation.Trial({"lr": 0.2}, 0, history([0.6, nan, 0.2])),
        fe.simulation.Trial({"lr": 0.2}, 1, history([0.1, nan, 0.2])),
        fe.simulation.Trial({"lr": 0.3}, 0, history([nan, nan, nan])),
    )
    result = fe.simulation.SweepResult(trials, interrupted=False)
    first, second, third = result.summaries()
    assert first == ({"lr": 0.1}, pytest.approx(0.45), pytest.approx(0.05 * np.sqrt(2)), (0.5, 0.4))
    assert second.mean == pytest.approx(0.2) and second.std == 0
    assert np.isnan(third.mean) and np.isnan(third.std)
    assert result.best().hyperparameters == {"lr": 0.1}
    assert result.best(largest_is_best=False).hyperparameters == {"lr": 0.2}
    reached = result.rounds_to_target(0.4)
    assert [summary.values for summary in reached] == [(3, 2), (1, np.inf), (np.inf,)]
    assert [summary.values for summary in result.rounds_to_target(0.15, largest_is_best=False)][1] == (np.inf, 1)
    with pytest.raises(ValueError, match=r"metric must be one of .*, got 'test_loss'"):
        result.best("test_loss")
    with pytest.raises(ValueError, match="no trial was finished"):
        fe.simulation.SweepResult((), interrupted=True).best()


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


def test_ctrl_c_keeps_the_finished_trials(linear, sweep, tmp_path, monkeypatch):
    original, calls = sweep_module.sweep_segment, []

    def interrupting(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(sweep_module, "next_length", lambda seconds: 4)
    monkeypatch.setattr(sweep_module, "sweep_segment", interrupting)
    options = dict(directory=tmp_path, plan=fe.make_plan(1, 1))
    partial = sweep(linear.fedavg, {"learning_rate": RATES}, **options)
    assert partial.interrupted and 0 < len(partial.trials) < 3
    resumed = sweep(linear.fedavg, {"learning_rate": RATES}, **options)
    assert len(resumed.trials) == 3 and not resumed.interrupted


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(grid={"learning_rate": []}), "a sweep needs configurations and seeds"),
        (dict(grid=[]), "a sweep needs configurations and seeds"),
        (dict(seeds=[]), "a sweep needs configurations and seeds"),
        (dict(seeds=[0, 0]), "a seed comes twice"),
        (dict(seeds=[-1]), "seed must be an integer of at least 0"),
        (dict(grid={"learning_rate": [0.1, 0.1]}), "a configuration comes twice"),
        (dict(rounds=0), "rounds must be"),
        (dict(sampler=fe.data.everyone(3)), "a sampler draws from 3 clients; there are 10"),
    ],
)
def test_bad_arguments(linear, sweep, bad, message):
    with pytest.raises(ValueError, match=message):
        sweep(linear.fedavg, **({"grid": {"learning_rate": RATES}} | bad))


def test_a_claim_that_cannot_be_made_is_refused_before_training(make, sweep):
    with pytest.raises(fe.core.PrivacyError, match="no noise"):
        sweep(make, {"learning_rate": [0.1], "noise_multiplier": [1.0, 0.0]}, delta=1e-3)


def test_a_population_on_the_host_is_refused(linear, sweep):
    with pytest.raises(TypeError, match="a sweep needs its population on the devices"):
        sweep(linear.fedavg, {"learning_rate": RATES}, population=fe.data.on_host(linear.population))


def test_the_progress_bar_counts_the_rounds_of_all_trials(linear, sweep, capsys):
    sweep(linear.fedavg, {"learning_rate": RATES}, progress=True)
    assert "12/12" in capsys.readouterr().err
