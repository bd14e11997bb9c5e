"""The package as a side of the comparison: `fe.run`, from building the state to the history it returns.

The mode is the number of clients vmapped at once, or nothing, for the package's own choice.
"""

from collections.abc import Callable
from types import ModuleType

import jax
import numpy as np
import optax
from flax import linen as nn
from task import Task

import fedjax_edge as fe
from fedjax_edge.core.executor import on_all_devices

PACKAGES = ("fedjax-edge", "jax", "jaxlib", "flax", "optax")


class CifarCnn(nn.Module):
    """The network of pfl-research's CIFAR-10 benchmark, without dropout."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """From images [batch, 32, 32, 3] to logits [batch, 10]."""
        conv = {"padding": "VALID", "conv_general_dilated": fe.models.conv_general_dilated}
        x = nn.relu(nn.Conv(32, (3, 3), **conv)(images))
        x = nn.relu(fe.models.max_pool(nn.Conv(64, (3, 3), **conv)(x)))
        x = nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


MODELS = {
    "softmax_regression": fe.models.logistic_regression,
    "perceptron": fe.models.mnist_2nn,
    "mnist_cnn": fe.models.mnist_cnn,
    "cifar_cnn": lambda: fe.models.from_linen(CifarCnn(), jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)),
}


def prepare(task: Task, mode: str = "") -> Callable[[int], dict]:
    fe.use_cpu_cores()
    params, population, sampler = parts(task)
    algorithm = maker(task)(task.learning_rate)
    plan = fe.make_plan(int(mode), jax.device_count()) if mode else None
    population = on_all_devices(population, fe.make_plan(devices=jax.device_count()))

    def run(rounds: int) -> dict:
        key = jax.random.key(1)
        result = fe.run(
            algorithm, params, population, sampler=sampler, rounds=rounds, key=key, plan=plan, progress=False
        )
        return flat(result.params)

    return run


def parts(task: Task) -> tuple:
    """Returns the initial parameters, the population and the sampler of a task."""
    columns = {"image": task.images, "label": task.labels}
    population = fe.FederatedDataset(columns=columns, offsets=np.asarray(task.offsets, np.int32))
    everyone = task.takes_everyone
    sampler = fe.data.everyone(task.cohort) if everyone else fe.data.uniform(task.num_clients, task.cohort)
    return nested(task.params), population, sampler


def maker(task: Task) -> Callable[[float], fe.core.FederatedAlgorithm]:
    """Returns `make_algorithm(learning_rate)`."""
    loss_fn = fe.models.classification(MODELS[task.model]())
    return lambda learning_rate: fe.algorithms.fedavg(
        loss_fn, optax.sgd(learning_rate), batch_size=task.batch_size, epochs=1
    )


def nested(params: dict) -> dict:
    """From names such as "Dense_0/kernel" to a dict for each layer."""
    layers = {}
    for name, array in params.items():
        layer, part = name.split("/")
        layers.setdefault(layer, {})[part] = array
    return layers


def flat(params: dict) -> dict:
    """The inverse of `nested`."""
    return {f"{layer}/{part}": np.asarray(a) for layer, own in params.items() for part, a in own.items()}


def sweep(adapter: ModuleType, task: Task, mode: str, rounds: int, rates: list[float]) -> dict:
    """Runs all learning rates in one `fe.sweep`, which keeps histories, not models: returns the last one's loss."""
    params, population, sampler = parts(task)
    images, labels = task.sample()
    loss_fn = fe.models.classification(MODELS[task.model]())
    result = fe.sweep(
        maker(task),
        {"learning_rate": rates},
        params,
        population,
        sampler=sampler,
        rounds=rounds,
        evaluation=fe.evaluation(loss_fn, {"image": images, "label": labels}),
        eval_every=rounds,
        progress=False,
    )
    return {"loss": result.trials[-1].history.last("test_loss")}
