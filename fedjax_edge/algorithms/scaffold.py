"""SCAFFOLD: control variates that keep local steps from drifting apart on unlike data."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_edge.clients import local_training
from fedjax_edge.core import checks
from fedjax_edge.core.protocols import (
    Aggregator,
    ClientOutput,
    ClientUpdate,
    Codec,
    Downlink,
    Examples,
    FederatedAlgorithm,
    LossFn,
    Population,
    PyTree,
    ServerUpdate,
    UpdateTransform,
)
from fedjax_edge.core.round import federated
from fedjax_edge.core.transforms import IDENTITY, as_transform
from fedjax_edge.core.trees import at_least_float32


class ParamsAndControl(NamedTuple):
    """The two things that travel: broadcast as they are, sent back as their changes."""

    params: PyTree
    control: PyTree


def scaffold(
    loss_fn: LossFn,
    learning_rate: float,
    server_learning_rate: float = 1.0,
    *,
    num_clients: int,
    batch_size: int | None,
    epochs: int | None = None,
    steps: int | None = None,
    uplink: UpdateTransform | Codec = IDENTITY,
    downlink: Downlink | UpdateTransform | Codec = IDENTITY,
) -> FederatedAlgorithm:
    """Returns SCAFFOLD with plain SGD steps, corrected by `server control - client control`.

    Each client keeps its control variate between its rounds (Option II of the algorithm); two things are broadcast
    and two aggregated, the parameters' changes over the cohort, the controls' changes over the population. After a
    lossy uplink a client's control moves by what the server received of its change, or, where the uplink has a memory
    (`error_feedback`), by all of it. So the server's control stays the mean of the clients', but for what they have yet
    to send; otherwise the model would end elsewhere than without loss.

    Args:
      loss_fn: `loss_fn(params, batch, key)` gives one loss per example.
      learning_rate: of the local steps.
      server_learning_rate: of the server's step along the mean change.
      num_clients: of the whole population.
      batch_size, epochs, steps: as in `clients.local_training`.
      uplink: what happens to each update on its way.
      downlink: what happens to the broadcast, parameters and control, on its way.

    Raises:
      ValueError: for rates that are not positive, or fewer than one client; by `init` for another population.

    Source: Karimireddy et al., "SCAFFOLD", ICML 2020 (arXiv:1910.06378), Algorithm 1, Option II; lines in comments.
    """
    checks.positive("learning_rate", learning_rate)
    checks.positive("server_learning_rate", server_learning_rate)
    checks.integer("num_clients", num_clients)
    train = local_training(loss_fn, optax.sgd(learning_rate), batch_size=batch_size, epochs=epochs, steps=steps)
    uplink = as_transform(uplink)

    def client_update(server: ParamsAndControl, examples: Examples, control: PyTree, key: jax.Array) -> ClientOutput:
        def corrected(gradient: PyTree, params: PyTree) -> PyTree:  # line 10
            return jax.tree.map(lambda g, c_i, c: g - c_i + c, gradient, control, server.control)

        trained = train(server.params, examples, key, corrected)
        change = optax.tree.sub(trained.params, server.params)
        rate = 1 / (jnp.maximum(trained.steps, 1).astype(jnp.float32) * learning_rate)
        new_control = jax.tree.map(  # line 12 (ii)
            lambda c_i, c, dy: jnp.where(trained.steps > 0, c_i - c - rate.astype(dy.dtype) * dy, c_i),
            control,
            server.control,
            change,
        )
        update = ParamsAndControl(change, optax.tree.sub(new_control, control))
        return ClientOutput(update, examples.size.astype(jnp.float32), (control, new_control), trained.metrics)

    def settle(controls: tuple[PyTree, PyTree], received: ParamsAndControl) -> PyTree:  # line 13
        before, after = controls
        if jax.tree.leaves(jax.eval_shape(uplink.init, received)):  # what was lost is remembered, and sent later
            return after
        moved = optax.tree.add(at_least_float32(before), at_least_float32(received.control))
        return optax.tree.cast_like(moved, before)

    def server_update(server: ParamsAndControl, aggregate: ParamsAndControl) -> ParamsAndControl:  # line 17
        wide = at_least_float32(server)
        params = optax.tree.add_scale(wide.params, server_learning_rate, aggregate.params)
        return optax.tree.cast_like(ParamsAndControl(params, optax.tree.add(wide.control, aggregate.control)), server)

    algorithm = federated(
        client=ClientUpdate(optax.tree.zeros_like, client_update, settle),
        server=ServerUpdate(
            init=lambda params: ParamsAndControl(params, optax.tree.zeros_like(params)),
            broadcast=lambda server: server,
            update=server_update,
            params=lambda server: server.params,
        ),
        aggregator=_cohort_and_population_mean(num_clients),
        uplink=uplink,
        downlink=downlink,
    )

    def init(params: PyTree, key: jax.Array, population: Population) -> PyTree:
        if population.num_clients != num_clients:
            raise ValueError(f"num_clients is {num_clients}, but the population has {population.num_clients} clients")
        return algorithm.init(params, key, population)

    return algorithm._replace(init=init)


def _cohort_and_population_mean(num_clients: int) -> Aggregator:
    """Line 16: the parameters' change averaged over the cohort, the controls' over the population."""

    def contribution(update: ParamsAndControl, weight: jax.Array, state: tuple) -> tuple[ParamsAndControl, jax.Array]:
        return at_least_float32(update), jnp.float32(1)

    def finish(
        total: tuple[ParamsAndControl, jax.Array], state: tuple, key: jax.Array
    ) -> tuple[ParamsAndControl, tuple]:
        change, count = total
        params = jax.tree.map(lambda leaf: leaf / jnp.maximum(count, 1).astype(leaf.dtype), change.params)
        return ParamsAndControl(params, optax.tree.scale(1 / num_clients, change.control)), state

    return Aggregator(init=lambda update: (), contribution=contribution, finish=finish)
