import importlib

import chex
import jax
import numpy as np
import pytest

import fedjax_edge as fe

tuning = importlib.import_module("fedjax_edge.simulation.tuning")


def tune(linear, **options):
    return fe.tune_plan(linear.fedavg(), linear.params, linear.population, linear.sampler, devices=2, **options)


def test_the_fastest_is_taken_and_what_was_measured_is_said(linear, monkeypatch):
    seconds = {1: 0.3, 2: 0.1, 4: 0.2}
    monkeypatch.setattr(tuning, "_time", lambda width, *rest: tuning.Timed(width, seconds[width], 1000 * width))
    plan = tune(linear, widths=[1, 2, 4])
    assert (plan.width, plan.devices, plan.memory) == (2, 2, 2000)
    words = "2 clients vmapped (fastest of the widths measured, 1: 0.3 s, 2: 0.1 s, 4: 0.2 s); at its peak about 2.0 kB"
    assert words in plan.explain(10)


def test_it_is_measured_once(linear, tmp_path, monkeypatch):
    plan = tune(linear, widths=[1, 5], repeats=1, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(tuning, "_time", None)
    assert tune(linear, widths=[1, 5], repeats=1, cache_dir=tmp_path) == plan
    monkeypatch.undo()
    other = linear.fedavg(aggregator=fe.aggregation.uniform_mean())
    fe.tune_plan(other, linear.params, linear.population, linear.sampler, devices=2, widths=[1], cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 and path.exists()


def test_widths_may_be_numbers_of_numpy(linear, monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "_time", lambda width, *rest: tuning.Timed(width, 1.0 / width, 0))
    for i, widths in enumerate(([np.int64(1), np.int64(2)], np.array([1, 2]), [1, 2])):
        plan = tune(linear, widths=widths, cache_dir=tmp_path / str(i))
        assert plan.width == 2 and type(plan.width) is int


def test_a_width_that_does_not_fit_is_not_run(linear, monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "available_bytes", lambda: 1)
    with pytest.raises(ValueError, match=r"fits into free memory with none of widths=\[1\]"):
        tune(linear, widths=[1], cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())  # it may fit the next time


def test_tuning_changes_no_result(linear):
    results = [
        fe.run(
            linear.fedavg(), linear.params, linear.population, sampler=linear.sampler, rounds=3, key=jax.random.key(0),
            plan=plan, progress=False,
        ).params
        for plan in (tune(linear, widths=[1, 5], repeats=1), fe.make_plan())
    ]  # fmt: skip
    chex.assert_trees_all_close(*results, rtol=1e-6)


def test_bad_arguments_are_refused(linear):
    with pytest.raises(ValueError, match="width must be an integer from 1 to 5, got 6"):
        tune(linear, widths=[6])
    with pytest.raises(TypeError, match="algorithm must be a FederatedAlgorithm, not a function that makes one, got <"):
        fe.tune_plan(linear.fedavg, linear.params, linear.population, linear.sampler)
    with pytest.raises(TypeError, match="tune_plan needs its population on the devices"):
        fe.tune_plan(linear.fedavg(), linear.params, fe.data.on_host(linear.population), linear.sampler)


def test_parameters_may_be_a_function_of_a_key(linear, monkeypatch):
    monkeypatch.setattr(tuning, "_time", lambda width, *rest: tuning.Timed(width, 1.0, 0))
    plan = fe.tune_plan(linear.fedavg(), lambda key: linear.params, linear.population, linear.sampler, widths=[1])
    assert plan.width == 1


def test_devices_that_share_a_memory_must_fit_together(linear, monkeypatch):
    one, two = (
        fe.tune_plan(linear.fedavg(), linear.params, linear.population, linear.sampler, devices=devices, widths=[1])
        for devices in (1, 2)
    )
    assert 1.5 * one.memory < two.memory < 3 * one.memory
    monkeypatch.setattr(tuning, "available_bytes", lambda: two.memory - 1)
    with pytest.raises(ValueError, match="fits into free memory with none"):
        tune(linear, widths=[1])
