"""FedAvg, and its generalization to any server optimizer."""

import optax

from fedjax_edge.aggregation import weighted_mean
from fedjax_edge.clients import local_sgd
from fedjax_edge.core.protocols import Aggregator, Codec, Downlink, FederatedAlgorithm, LossFn, UpdateTransform
from fedjax_edge.core.round import federated
from fedjax_edge.core.transforms import IDENTITY


def fedavg(
    loss_fn: LossFn,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    batch_size: int | None,
    epochs: int | None = None,
    steps: int | None = None,
    aggregator: Aggregator | None = None,
    uplink: UpdateTransform | Codec = IDENTITY,
    downlink: Downlink | UpdateTransform | Codec = IDENTITY,
) -> FederatedAlgorithm:
    """Returns federated averaging.

    Each client of the cohort trains the broadcast parameters on its own examples; the server takes the mean of what
    changed, weighted by the numbers of examples, as its optimizer's negated gradient.

    Args:
      loss_fn: `loss_fn(params, batch, key)` gives one loss per example.
      client_optimizer: any optax optimizer; its state is made fresh each round.
      server_optimizer: any optax optimizer; by default `optax.sgd(1.0)`, which is plain FedAvg.
      batch_size, epochs, steps: as in `clients.local_training`.
      aggregator: in the place of `aggregation.weighted_mean()`, such as `privacy.gaussian_mean(...)`.
      uplink: what happens to each update on its way, such as `compression.stochastic_uniform(8)`.
      downlink: what happens to the broadcast on its way, such as `compression.delta_broadcast(...)`.

    Source: McMahan et al. 2017 (arXiv:1602.05629), Algorithm 1; with a server optimizer, Reddi et al. 2021
    (arXiv:2003.00295), Algorithm 1.
    """
    return federated(
        client=local_sgd(loss_fn, client_optimizer, batch_size=batch_size, epochs=epochs, steps=steps),
        server=optax.sgd(1.0) if server_optimizer is None else server_optimizer,
        aggregator=weighted_mean() if aggregator is None else aggregator,
        uplink=uplink,
        downlink=downlink,
    )
