"""Evaluation of a model on held-out examples, spread over devices by the same executor as training."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_edge.core import checks
from fedjax_edge.core.executor import map_clients
from fedjax_edge.core.losses import example_losses, masked_sums, take_rows
from fedjax_edge.core.plan import Plan
from fedjax_edge.core.protocols import LossFn, Mean, PyTree


class Evaluation(NamedTuple):
    """What is measured of a model, on which examples."""

    loss_fn: LossFn | None
    columns: PyTree  # leaves [examples, ...]
    batch_size: int


NO_EVALUATION = Evaluation(None, (), 1)


def evaluation(loss_fn: LossFn, columns: PyTree, *, batch_size: int = 250) -> Evaluation:
    """Returns the evaluation of the loss and of whatever else `loss_fn` reports, averaged over all examples.

    Args:
      loss_fn: `loss_fn(params, batch, None)` gives one loss per example. Its key is `None`: nothing is random here,
        and dropout must be off.
      columns: leaves [examples, ...]; of a `FederatedDataset`, its `.columns`.
      batch_size: examples at once.

    Raises:
      ValueError: for a batch size below one, columns of unequal length, or no examples.
      TypeError: for a loss that cannot be called and hashed.
    """
    if not callable(loss_fn) or not checks.is_hashable(loss_fn):
        raise TypeError(f"loss_fn must be a function, or an object that can be called and hashed, got {loss_fn!r}")
    checks.columns("columns", columns)
    checks.integer("batch_size", batch_size)
    return Evaluation(loss_fn, columns, batch_size)


def measure(params: PyTree, columns: PyTree, loss_fn: LossFn | None, batch_size: int, plan: Plan) -> dict[str, Mean]:
    """Returns the sums over all examples of the loss and the other metrics, and how many examples there are."""
    if loss_fn is None:
        return {}
    num_examples = jax.tree.leaves(columns)[0].shape[0]
    starts = jnp.arange(0, num_examples, batch_size, dtype=jnp.int32)

    def one_batch(shared: tuple[PyTree, PyTree], start: jax.Array, active: jax.Array) -> tuple[PyTree, None]:
        params, columns = shared
        rows = start + jnp.arange(batch_size, dtype=jnp.int32)
        _, values = example_losses(loss_fn, params, take_rows(columns, rows), None)
        return masked_sums(values, rows < num_examples), None

    one_at_a_time = Plan(width=1, devices=plan.devices)
    return map_clients(one_batch, (params, columns), starts, jnp.ones(len(starts), bool), one_at_a_time)[0]
