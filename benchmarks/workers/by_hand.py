"""The hand-written loop as a side of the comparison; mode "padded" gives unequal clients equal numbers of steps."""

from collections.abc import Callable
from types import ModuleType

import handwritten
import handwritten_unequal
import jax
import numpy as np
from plain_models import MODELS
from task import Task

import fedjax_edge as fe

PACKAGES = ("jax", "jaxlib", "optax")


def prepare(task: Task, mode: str = "") -> Callable[[int], dict]:
    run = prepared(task, mode)
    return lambda rounds: run(rounds, task.learning_rate)


def sweep(adapter: ModuleType, task: Task, mode: str, rounds: int, rates: list[float]) -> dict:
    """Runs one learning rate after another; they are arguments of what is compiled once."""
    run = prepared(task, mode)
    for rate in rates:
        trained = run(rounds, rate)
    return trained


def prepared(task: Task, mode: str) -> Callable[[int, float], dict]:
    """Returns `run(rounds, learning_rate) -> params`, the data on the devices already."""
    fe.use_cpu_cores()
    mesh = handwritten.make_mesh()
    one_round = _equal(task, mesh) if len(set(task.sizes)) == 1 else _unequal(task, mesh, mode)

    def run(rounds: int, rate: float) -> dict:
        params = handwritten.everywhere(task.params, mesh)
        for number in range(rounds):
            params = one_round(params, rate, jax.random.fold_in(jax.random.key(1), number))
        return jax.tree.map(np.asarray, params)

    return run


def _equal(task: Task, mesh: jax.sharding.Mesh) -> Callable:
    cohort = None if task.takes_everyone else task.cohort
    round_ = handwritten.make_round(MODELS[task.model], task.batch_size, cohort, mesh)
    shape = (task.num_clients, task.sizes[0])
    data = (task.images.reshape(*shape, *task.images.shape[1:]), task.labels.reshape(shape))
    data = handwritten.spread(data, mesh) if cohort is None else handwritten.everywhere(data, mesh)
    return lambda params, rate, key: round_(params, *data, rate, key)[0]


def _unequal(task: Task, mesh: jax.sharding.Mesh, mode: str) -> Callable:
    padded_to = int(task.sizes.max()) if mode == "padded" else None
    round_ = handwritten_unequal.make_round(MODELS[task.model], task.batch_size, mesh, padded_to)
    data = handwritten_unequal.dealt(task.images, task.labels, task.offsets, task.batch_size, mesh.size)
    data = handwritten.spread(data, mesh)
    return lambda params, rate, key: round_(params, data, rate, key)
