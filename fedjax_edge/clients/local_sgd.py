"""Local SGD: the client update of FedAvg."""

import jax
import jax.numpy as jnp
import optax

from fedjax_edge.clients.training import BatchGradientFn, local_training
from fedjax_edge.core.protocols import ClientOutput, ClientUpdate, Examples, LossFn, PyTree


def local_sgd(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int | None,
    epochs: int | None = None,
    steps: int | None = None,
    gradient: BatchGradientFn | None = None,
) -> ClientUpdate:
    """Returns the client update that trains on the client's own examples and sends what changed.

    The update is trained minus broadcast parameters, the weight is the number of examples, and the metrics are the
    loss and whatever `loss_fn` reports. `batch_size=None, steps=1` with `optax.sgd` is FedSGD.

    Arguments and errors are those of `clients.local_training`.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017
    (arXiv:1602.05629), Algorithm 1, ClientUpdate.
    """
    train = local_training(loss_fn, optimizer, batch_size=batch_size, epochs=epochs, steps=steps, gradient=gradient)

    def update(params: PyTree, examples: Examples, state: PyTree, key: jax.Array) -> ClientOutput:
        trained = train(params, examples, key)
        weight = examples.size.astype(jnp.float32)
        return ClientOutput(optax.tree.sub(trained.params, params), weight, state, trained.metrics)

    return ClientUpdate(init=lambda params: (), update=update)
