from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.core import Plan
from fedjax_edge.simulation import evaluation
from fedjax_edge.simulation.evaluation import NO_EVALUATION, measure


def loss(params, batch, key):
    assert key is None
    return params * batch["y"], {"big": (batch["y"] > 50).astype(jnp.float32)}


@pytest.mark.parametrize("batch_size", [1, 7, 100, 250])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_every_example_counts_once(batch_size, devices):
    columns = {"y": np.arange(100, dtype=np.float32)}
    sums = measure(jnp.float32(2), columns, loss, batch_size, Plan(1, devices))
    np.testing.assert_allclose(sums["loss"], (2 * columns["y"].sum(), 100))
    np.testing.assert_allclose(sums["big"], (49, 100))


def test_no_evaluation_measures_nothing():
    assert measure((), NO_EVALUATION.columns, NO_EVALUATION.loss_fn, NO_EVALUATION.batch_size, Plan()) == {}


def test_bad_columns():
    with pytest.raises(ValueError, match=r"all columns must be arrays .* of one length"):
        evaluation(loss, {"x": np.ones(20), "y": np.ones(5)})
    with pytest.raises(ValueError, match="columns: no examples"):
        evaluation(loss, {"y": np.ones(0)})


def test_a_bad_batch_size():
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got 0"):
        evaluation(loss, {"y": np.ones(3)}, batch_size=0)


def test_a_loss_that_nothing_can_be_compiled_for():
    @dataclass
    class Unhashable:
        def __call__(self, params, batch, key):
            return batch["x"]

    for bad in (Unhashable(), None, 3.0):
        with pytest.raises(TypeError, match="loss_fn must be a function, or an object that can be called and hashed"):
            evaluation(bad, {"x": np.zeros(3)})
