"""FedAvg whose clients train by DP-SGD: what a client sends is private for each of its examples."""

import jax
import optax

from fedjax_edge.aggregation import weighted_mean
from fedjax_edge.clients import local_sgd
from fedjax_edge.core.protocols import (
    Aggregator,
    Codec,
    Downlink,
    FederatedAlgorithm,
    LossFn,
    PyTree,
    UpdateTransform,
)
from fedjax_edge.core.round import federated
from fedjax_edge.core.transforms import IDENTITY
from fedjax_edge.privacy import dp_sgd


def fedavg_dp_sgd(
    loss_fn: LossFn,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    clip_norm: PyTree,
    noise_multiplier: float | jax.Array,
    batch_size: int,
    epochs: int,
    chunk: int = 16,
    aggregator: Aggregator | None = None,
    uplink: UpdateTransform | Codec = IDENTITY,
    downlink: Downlink | UpdateTransform | Codec = IDENTITY,
) -> FederatedAlgorithm:
    """Returns federated averaging in which every client clips each example's gradient and adds noise to each step.

    The claim is about examples, not clients, and holds whatever the server does: see `privacy.dp_sgd`.

    Args:
      loss_fn, client_optimizer, server_optimizer, uplink, downlink: as in `algorithms.fedavg`.
      clip_norm, noise_multiplier, batch_size, epochs, chunk: as in `privacy.dp_sgd`.
      aggregator: in the place of `aggregation.weighted_mean()`; one without a claim of its own.

    Raises:
      ValueError: an argument is out of range, or the aggregator, or the mechanism that it is half of, has an
        accountant: one run states one epsilon.

    Source: McMahan et al. 2017 (arXiv:1602.05629), Algorithm 1; Abadi et al. 2016 (arXiv:1607.00133), Algorithm 1.
    """
    mechanism = dp_sgd(clip_norm, noise_multiplier, batch_size=batch_size, epochs=epochs, chunk=chunk)
    algorithm = federated(
        client=local_sgd(
            loss_fn,
            client_optimizer,
            batch_size=mechanism.batch_size,
            epochs=mechanism.epochs,
            gradient=mechanism.gradient,
        ),
        server=optax.sgd(1.0) if server_optimizer is None else server_optimizer,
        aggregator=weighted_mean() if aggregator is None else aggregator,
        uplink=uplink,
        downlink=downlink,
    )
    if algorithm.accountant is not None:
        raise ValueError(
            "the aggregator has an accountant of its own, for whole clients: an algorithm states one epsilon, so "
            "compose `federated(...)` by hand and ask both accountants"
        )
    return algorithm._replace(accountant=mechanism.accountant)
