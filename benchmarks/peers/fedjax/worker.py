"""FedJAX: its federated averaging on its `jit` backend, with the models as plain JAX functions.

FedJAX works on one device, whose matrix products XLA spreads over the cores.
"""

from collections.abc import Callable

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
from fedjax.algorithms import fed_avg
from plain_models import MODELS
from task import Task

PACKAGES = ("fedjax", "jax", "jaxlib")


def prepare(task: Task, mode: str = "") -> Callable[[int], dict]:
    apply = MODELS[task.model]

    def loss(params: dict, batch: dict, key: jax.Array) -> jax.Array:
        log_probabilities = jax.nn.log_softmax(apply(params, batch["x"]))
        return -jnp.take_along_axis(log_probabilities, batch["y"][:, None], axis=1).mean()

    fedjax.set_for_each_client_backend("jit")
    algorithm = fed_avg.federated_averaging(
        jax.grad(loss),
        fedjax.optimizers.sgd(task.learning_rate),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=task.batch_size, num_epochs=1),
    )
    datasets = [fedjax.ClientDataset({"x": images, "y": labels}) for images, labels in task.clients()]
    rng = np.random.default_rng(1)

    def run(rounds: int) -> dict:
        state = algorithm.init(jax.tree_util.tree_map(jnp.asarray, task.params))
        for number in range(rounds):
            if task.takes_everyone:
                cohort = range(task.num_clients)
            else:
                cohort = rng.choice(task.num_clients, task.cohort, replace=False)
            keys = jax.random.split(jax.random.PRNGKey(number), task.cohort)
            state, _ = algorithm.apply(state, [(i, datasets[i], key) for i, key in zip(cohort, keys, strict=True)])
        return jax.tree_util.tree_map(np.asarray, state.params)

    return run
