"""A loss function's per-example numbers, checked, masked and averaged: the one place where a loss becomes a scalar."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.core.protocols import LossFn, Mean, PyTree


def example_losses(
    loss_fn: LossFn, params: PyTree, batch: PyTree, key: jax.Array | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Calls `loss_fn` and returns its losses, [batch], and its metrics, each [batch], "loss" among them.

    Raises:
      TypeError: (while tracing) for anything but an array, or an array and metrics by name, for a loss or a metric that
        is not one number per example, or for a metric named "loss".
    """
    batch_size = jax.tree.leaves(batch)[0].shape[0]
    output = loss_fn(params, batch, key)
    losses, metrics = output if isinstance(output, tuple) and len(output) == 2 else (output, {})
    parts = [losses, *(metrics.values() if isinstance(metrics, Mapping) else [None])]
    if not all(isinstance(part, jax.Array | np.ndarray) for part in parts):
        raise TypeError(f"loss_fn must return losses [batch], or (losses, {{name: [batch]}}), got {output!r}")
    if "loss" in metrics:
        raise TypeError('loss_fn returned a metric named "loss"; that name is taken by the losses themselves')
    for name, values in {"loss": losses, **metrics}.items():
        if jnp.shape(values) != (batch_size,):
            hint = ": drop the `.mean()`" if jnp.shape(values) == () else ""
            raise TypeError(
                f"loss_fn returned {name} of shape {jnp.shape(values)}; it must return one number per example, "
                f"shape [batch] = ({batch_size},){hint}"
            )
    return losses, {"loss": losses, **metrics}


def masked_sums(values: dict[str, jax.Array], mask: jax.Array) -> dict[str, Mean]:
    """Returns the sum of each of `values`, [batch], over the real examples, and how many those are."""
    count = mask.sum(dtype=jnp.float32)
    return {name: Mean(masked_sum(value, mask), count) for name, value in values.items()}


def masked_sum(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the float32 sum of `values`, [batch], where `mask` is true; what is masked cannot leak a NaN."""
    return jnp.where(mask, values.astype(jnp.float32), jnp.float32(0)).sum()


def take_rows(columns: PyTree, rows: jax.Array) -> PyTree:
    """Returns rows, int32 [batch], of every column, [examples, ...] -> [batch, ...]."""
    return jax.tree.map(lambda column: jnp.asarray(column).at[rows].get(mode="clip"), columns)
