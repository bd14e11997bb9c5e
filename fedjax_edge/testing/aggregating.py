"""What an aggregator makes of given updates, computed as a round does: contribution, sum or stack, finish."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_edge.core.protocols import Aggregator, PyTree, Stacked
from fedjax_edge.core.trees import is_finite, zero_unless


def aggregate(
    aggregator: Aggregator,
    updates: PyTree,
    weights: PyTree,
    key: jax.Array,
    *,
    present: PyTree | None = None,
    state: PyTree | None = None,
) -> tuple[PyTree, PyTree]:
    """Returns the aggregate and the aggregator's new state, as `core.round.federated` would compute them.

    Absent clients, and those whose update, weight or contribution holds a NaN or an infinity, contribute zeros.
    Compiled once for each aggregator and form of updates: make the aggregator once, not in every example.

    Args:
      aggregator: the component.
      updates: leaves [clients, ...].
      weights: float [clients].
      key: what `finish` draws from.
      present: bool [clients]; by default everybody is.
      state: the aggregator's; by default a fresh one.

    >>> from fedjax_edge.aggregation import weighted_mean
    >>> mean, _ = aggregate(weighted_mean(), jnp.array([1.0, 5.0]), [3, 1], jax.random.key(0))
    >>> float(mean)
    2.0
    """
    updates, weights, present = as_cohort(updates, weights, present)
    state = fresh_state(aggregator, updates) if state is None else state
    parts = aggregator.contribution, aggregator.finish, aggregator.stacked
    return _aggregate(*parts, updates, weights, present, state, key)


def total_of(
    contribution: Callable, stacked: bool, updates: PyTree, weights: jax.Array, present: jax.Array, state: PyTree
) -> PyTree:
    """Returns what `finish` is given: the sum of the contributions, or a `Stacked` of them; traceable."""

    def one(update: PyTree, weight: jax.Array, is_present: jax.Array) -> tuple[PyTree, jax.Array]:
        row = contribution(update, weight, state)
        counts = is_present & is_finite((update, weight, row))
        return zero_unless(counts, row), counts

    rows, counts = jax.vmap(one)(updates, weights, present)
    if stacked:
        return Stacked(rows, counts)
    return jax.tree.map(lambda leaf: leaf.sum(0, dtype=leaf.dtype), rows)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _aggregate(
    contribution: Callable,
    finish: Callable,
    stacked: bool,
    updates: PyTree,
    weights: jax.Array,
    present: jax.Array,
    state: PyTree,
    key: jax.Array,
) -> tuple[PyTree, PyTree]:
    return finish(total_of(contribution, stacked, updates, weights, present, state), state, key)


def as_cohort(updates: PyTree, weights: PyTree, present: PyTree | None) -> tuple[PyTree, jax.Array, jax.Array]:
    """Returns updates, weights and presence as arrays; raises ValueError unless all speak of the same clients."""
    updates = jax.tree.map(jnp.asarray, updates)
    weights = jnp.asarray(np.asarray(weights, np.float32))
    present = jnp.asarray(np.ones(weights.shape, bool) if present is None else np.asarray(present, bool))
    clients = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((updates, weights, present))}
    if len(clients) != 1 or clients == {()} or weights.ndim != 1:
        raise ValueError(f"updates, weights and present must have one leading axis [clients], got lengths {clients}")
    return updates, weights, present


def fresh_state(aggregator: Aggregator, updates: PyTree) -> PyTree:
    """Returns the aggregator's first state, for updates with leaves [clients, ...]."""
    one = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), updates)
    return aggregator.init(optax.tree.zeros_like(one))
