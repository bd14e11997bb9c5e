"""Means of updates: by the clients' weights, or of equals."""

import jax
import jax.numpy as jnp

from fedjax_edge.core.protocols import Aggregator, PyTree
from fedjax_edge.core.trees import at_least_float32


def weighted_mean() -> Aggregator:
    """Returns the mean weighted by what clients report, the number of their examples by convention.

    A negative weight counts as none. Nobody's mean is zero: so is the aggregate of a round in which no client counts,
    or all weigh nothing. The sum and the mean of leaves narrower than float32 are float32.

    Source: McMahan et al. 2017 (arXiv:1602.05629), Algorithm 1, the server's step.

    >>> mean = weighted_mean()
    >>> update, weight = jnp.array([1.0, 5.0]), jnp.array([3.0, 1.0])
    >>> contributions = jax.vmap(lambda u, w: mean.contribution(u, w, ()))(update, weight)
    >>> float(mean.finish(jax.tree.map(jnp.sum, contributions), (), None)[0])
    2.0
    """

    def contribution(update: PyTree, weight: jax.Array, state: tuple) -> tuple[PyTree, jax.Array]:
        wide, weight = at_least_float32(update), jnp.maximum(weight, 0)
        return jax.tree.map(lambda leaf: leaf * jnp.asarray(weight).astype(leaf.dtype), wide), weight

    def finish(total: tuple[PyTree, jax.Array], state: tuple, key: jax.Array) -> tuple[PyTree, tuple]:
        update, weight = total
        scale = jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 0)
        return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), update), state

    return Aggregator(init=lambda update: (), contribution=contribution, finish=finish)


def uniform_mean() -> Aggregator:
    """Returns the mean in which every client that takes part counts the same, whatever weight it reports."""
    mean = weighted_mean()

    def contribution(update: PyTree, weight: jax.Array, state: tuple) -> tuple[PyTree, jax.Array]:
        return mean.contribution(update, jnp.ones_like(weight), state)

    return mean._replace(contribution=contribution)
