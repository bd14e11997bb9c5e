"""The coordinate-wise median: an aggregate that a minority of hostile clients cannot move far."""

import jax
import jax.numpy as jnp

from fedjax_edge.core.protocols import Aggregator, PyTree, Stacked


def coordinate_median() -> Aggregator:
    """Returns the median of each coordinate over the clients that count, as `numpy.median` defines it.

    Weights play no part. It needs all updates of a round at once: cohort times model in memory. Nobody's median is
    zero.

    Source: Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018 (arXiv:1803.01498), Definition 1.
    """

    def contribution(update: PyTree, weight: jax.Array, state: tuple) -> PyTree:
        return update

    def finish(total: Stacked, state: tuple, key: jax.Array) -> tuple[PyTree, tuple]:
        return jax.tree.map(lambda rows: _median(rows, total.present), total.rows), state

    return Aggregator(init=lambda update: (), contribution=contribution, finish=finish, stacked=True)


def _median(rows: jax.Array, present: jax.Array) -> jax.Array:
    """Returns the median over the present rows, [cohort, ...] -> [...]."""
    mask = present.reshape(-1, *[1] * (rows.ndim - 1))
    ascending = jnp.sort(jnp.where(mask, rows, jnp.inf), axis=0)
    count = present.sum()
    low, high = ascending[jnp.maximum(count - 1, 0) // 2], ascending[count // 2]
    middle = jnp.where(count % 2 == 1, low, low / 2 + high / 2)
    return jnp.where(count > 0, middle, jnp.zeros_like(middle))
