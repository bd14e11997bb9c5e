"""Weights of a user's own, in the place of the numbers of examples."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.core.protocols import ClientOutput, ClientUpdate, Examples, PyTree


def with_weights(client: ClientUpdate, weights: np.ndarray | jax.Array) -> ClientUpdate:
    """Returns `client` with given weights, float [clients of the population], for `aggregation.weighted_mean`.

    A client beyond the last weight weighs NaN, so that the round rejects and counts it.

    Raises:
      ValueError: for weights that are not one finite number of at least zero per client.
    """
    host = np.asarray(weights)
    if host.ndim != 1 or not (np.isfinite(host) & (host >= 0)).all():
        raise ValueError(f"weights must be finite, at least 0 and of shape [clients], got {weights!r}")
    table = jnp.asarray(host, jnp.float32)

    def update(broadcast: PyTree, examples: Examples, state: PyTree, key: jax.Array) -> ClientOutput:
        return client.update(broadcast, examples, state, key)._replace(
            weight=table.at[examples.client].get(mode="fill", fill_value=jnp.nan)
        )

    return client._replace(update=update)
