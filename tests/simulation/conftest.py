"""A linear problem with clients of one to eight examples, and a count of what XLA compiles."""

import logging
from contextlib import contextmanager
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_edge as fe

SIZES = [1, 5, 2, 8, 3, 4, 6, 7, 2, 2]


def squared_error(params, batch, key):
    residual = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return residual**2, {"accuracy": (abs(residual) < 1).astype(jnp.float32)}


def fedavg(learning_rate=0.05, **options):
    return fe.algorithms.fedavg(squared_error, optax.sgd(learning_rate), batch_size=4, epochs=2, **options)


def scaffold(**options):
    return fe.algorithms.scaffold(squared_error, 0.05, num_clients=10, batch_size=4, epochs=2, **options)


@pytest.fixture(scope="session")
def linear():
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(n, 3)).astype(np.float32) for n in SIZES]
    population = fe.data.from_client_arrays([{"x": x, "y": x @ np.array([1, -2, 3], np.float32) + 1} for x in inputs])
    return SimpleNamespace(
        population=population,
        params={"w": jnp.zeros(3), "b": jnp.zeros(())},
        loss_fn=squared_error,
        fedavg=fedavg,
        scaffold=scaffold,
        evaluation=fe.evaluation(squared_error, population.columns),
        sampler=fe.data.poisson(10, 0.5),
    )


@pytest.fixture
def compilations(caplog):
    """`with compilations("name") as messages`: one message for each time XLA compiles the function of that name.

    Without a name, for each time it compiles anything.
    """

    @contextmanager
    def counted(name=None):
        messages = []
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            yield messages
        about = "" if name is None else f" of jit({name})"
        messages += [m for m in caplog.messages if f"Finished XLA compilation{about}" in m]

    return counted
