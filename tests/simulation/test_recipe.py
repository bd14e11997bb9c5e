import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_edge as fe
from fedjax_edge.simulation.recipe import Recipe, split_hyperparameters


@pytest.fixture
def run(linear):
    return functools.partial(
        fe.run, params=linear.params, population=linear.population, sampler=linear.sampler, rounds=5,
        evaluation=linear.evaluation, key=jax.random.key(0), progress=False, delta=1e-3,
    )  # fmt: skip


def make_private(linear, learning_rate, server_learning_rate, clip_norm, noise_multiplier, bits):
    return fe.algorithms.fedavg(
        linear.loss_fn,
        optax.sgd(learning_rate),
        optax.sgd(server_learning_rate, momentum=0.5),
        batch_size=4,
        epochs=1,
        aggregator=fe.privacy.gaussian_mean(clip_norm, noise_multiplier, denominator=5.0),
        uplink=fe.compression.stochastic_uniform(bits),
    )


def test_traced_hyperparameters_give_what_concrete_ones_give(linear, run):
    given = dict(learning_rate=0.1, server_learning_rate=0.7, clip_norm=0.4, noise_multiplier=1.5, bits=6)
    make = functools.partial(make_private, linear)
    traced, concrete = run(make, hyperparameters=given), run(make(**given))
    chex.assert_trees_all_close(traced.params, concrete.params, rtol=1e-5)
    assert traced.claim == concrete.claim
    assert np.isfinite(traced.history["epsilon"]).all()


def test_one_compilation_serves_all_values_of_floats_and_seeds(linear, run, compilations):
    make = functools.partial(make_private, linear)
    given = dict(learning_rate=0.1, server_learning_rate=0.7, clip_norm=0.4, noise_multiplier=1.5, bits=6)
    with compilations("run_segment") as first:
        run(make, hyperparameters=given)
    with compilations("run_segment") as more:
        run(make, hyperparameters={name: value / 2 for name, value in given.items()} | {"bits": 6})
        run(make, hyperparameters=given, key=jax.random.key(3), rounds=7)
    with compilations("run_segment") as other_bits:
        run(make, hyperparameters=given | {"bits": 4})
    assert (len(first), len(more), len(other_bits)) == (1, 0, 1)


def test_floats_are_traced_and_the_rest_is_static():
    recipe, traced = split_hyperparameters(
        dict,
        {"a": 0.5, "b": 2, "c": "x", "d": None, "e": np.float32(3), "f": jnp.float32(4), "g": True, "h": 0.1},
        ["h"],
    )
    assert set(traced) == {"a", "e", "f"} and all(value.dtype == jnp.float32 for value in traced.values())
    assert recipe == Recipe(dict, (("b", 2), ("c", "x"), ("d", None), ("g", True), ("h", 0.1)))


@pytest.mark.parametrize("sweeps", [False, True])
def test_a_number_that_is_needed_while_rounds_are_traced_is_named_too(linear, run, sweeps):
    def make(fraction):
        return linear.fedavg(uplink=fe.compression.error_feedback(fe.compression.top_k(fraction)))

    with pytest.raises(TypeError, match=r"a number is needed .* hyperparameters \['fraction'\], make it static: "):
        if sweeps:
            fe.sweep(
                make, {"fraction": [0.25, 0.5]}, linear.params, linear.population, sampler=linear.sampler, rounds=1,
                progress=False,
            )  # fmt: skip
        else:
            run(make, hyperparameters={"fraction": 0.25})
    assert run(make, hyperparameters={"fraction": 0.25}, static=["fraction"]).history.rounds == 5


def test_static_may_be_one_name():
    recipe, traced = split_hyperparameters(dict, {"a": 0.5, "ab": 0.5}, "ab")
    assert set(traced) == {"a"} and recipe == Recipe(dict, (("ab", 0.5),))


def test_what_cannot_be_is_refused(linear, run):
    class Unhashable:
        __hash__ = None

        def __call__(self):
            return linear.fedavg()

    with pytest.raises(ValueError, match=r"hyperparameters \['learning_rate'\] need a function"):
        run(linear.fedavg(), hyperparameters={"learning_rate": 0.1})
    with pytest.raises(TypeError, match="algorithm must be a FederatedAlgorithm or a function"):
        run(3)
    with pytest.raises(
        TypeError, match=r"algorithm must be hashable, since rounds are compiled for it, got .*Unhashable"
    ):
        run(Unhashable())
    with pytest.raises(TypeError, match="hyperparameter layers must be a float or hashable"):
        run(linear.fedavg, hyperparameters={"layers": [1, 2]})
    with pytest.raises(ValueError, match="clip_norm must be"):
        run(
            functools.partial(make_private, linear),
            hyperparameters=dict(
                learning_rate=0.1, server_learning_rate=0.7, clip_norm=-0.4, noise_multiplier=1.5, bits=6
            ),
        )


def test_a_setup_may_bring_its_own_parameters_sampler_and_evaluation(linear, run):
    def loss(target, params, batch, key):
        return (batch["x"] @ params["w"] - target) ** 2

    def init(key):
        return {"w": jax.random.normal(key, (3,))}

    everyone, key, columns = fe.data.everyone(10), jax.random.key(4), linear.population.columns

    def make(target):
        own = functools.partial(loss, target)
        algorithm = fe.algorithms.fedavg(own, optax.sgd(0.05), batch_size=4, epochs=1)
        return fe.Setup(algorithm, init, everyone, fe.evaluation(own, columns))

    brought = run(make, hyperparameters={"target": 2.0}, key=key)
    made = make(2.0)
    given = run(
        made.algorithm, sampler=everyone, evaluation=made.evaluation, key=key,
        params=init(fe.core.derive(key, fe.core.RunStream.INIT)),
    )  # fmt: skip
    chex.assert_trees_all_close(brought.params, given.params, rtol=1e-5)
    np.testing.assert_allclose(brought.history["test_loss"], given.history["test_loss"], rtol=1e-5)
    np.testing.assert_array_equal(brought.history["clients"], 10)
    with pytest.raises(ValueError, match="the sampler draws from 9 clients; there are 10"):
        run(lambda: fe.Setup(linear.fedavg(), sampler=fe.data.everyone(9)))


def test_a_float_that_must_be_a_number_is_named(linear, run):
    def make(learning_rate, epochs):
        return fe.algorithms.fedavg(linear.loss_fn, optax.sgd(learning_rate), batch_size=4, epochs=int(epochs))

    with pytest.raises(TypeError, match=r"one of the hyperparameters \['epochs', 'learning_rate'\], make it static"):
        run(make, hyperparameters={"learning_rate": 0.1, "epochs": 1.0})
    given = {"learning_rate": 0.1, "epochs": 2.0}
    assert run(make, hyperparameters=given, static=["epochs"]).history.rounds == run(linear.fedavg()).history.rounds


@pytest.mark.parametrize("needs_a_number", [bool, np.sqrt])
def test_whatever_needs_a_number_is_told_to_make_it_static(linear, run, needs_a_number):
    def make(learning_rate):
        needs_a_number(learning_rate if isinstance(learning_rate, jax.Array) else 1)
        return linear.fedavg(learning_rate)

    with pytest.raises(TypeError, match=r"a number is needed where values are traced; .* make it static"):
        run(make, hyperparameters={"learning_rate": 0.1})
