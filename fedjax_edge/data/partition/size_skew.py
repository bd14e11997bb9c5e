"""Clients of unequal size, with the same mix of everything."""

import jax
import numpy as np

from fedjax_edge.core import checks
from fedjax_edge.data.partition.dealing import apportion, at_least, check_enough, deal, generator


def power_law_sizes(
    key: jax.Array, num_examples: int, num_clients: int, exponent: float, min_size: int = 1
) -> list[np.ndarray]:
    """Size skew by a power law (Zipf): the client of rank r holds a share proportional to r ** -exponent.

    Examples and ranks are given to clients at random, so that labels are mixed alike everywhere. The skew of the
    federated MNIST of Li et al., "Federated Optimization in Heterogeneous Networks" (2020, arXiv:1812.06127).

    Args:
      key: a `jax.random` key; the same key gives the same partition.
      num_examples: examples in the whole set.
      num_clients: clients to share them.
      exponent: steepness, at least 0; 0 gives equal sizes.
      min_size: the fewest examples a client may hold; the others give in proportion to what they can spare.

    Returns:
      One int64 array of example indices per client; each example is in exactly one.

    Raises:
      ValueError: if `exponent` is negative, or the examples do not suffice for `num_clients` times `min_size`.

    >>> clients = power_law_sizes(jax.random.key(0), num_examples=110, num_clients=3, exponent=1.0)
    >>> sorted(len(rows) for rows in clients)
    [20, 30, 60]
    """
    check_enough(num_examples, num_clients, min_size)
    checks.non_negative("exponent", exponent)
    rng = generator(key)
    weights = np.arange(1, num_clients + 1, dtype=np.float64) ** -float(exponent)
    return _of_unequal_sizes(rng, rng.permutation(weights), num_examples, min_size)


def log_normal_sizes(
    key: jax.Array, num_examples: int, num_clients: int, sigma: float, min_size: int = 1
) -> list[np.ndarray]:
    """Size skew by a log-normal law: a client's share is proportional to exp(sigma z), z standard normal.

    Labels are mixed alike everywhere. The sizes of the synthetic data of Li et al., "Federated Optimization in
    Heterogeneous Networks" (2020, arXiv:1812.06127), whose code has sigma = 2.

    Args:
      key: a `jax.random` key; the same key gives the same partition.
      num_examples: examples in the whole set.
      num_clients: clients to share them.
      sigma: standard deviation of the logarithm of the size, at least 0; 0 gives equal sizes.
      min_size: the fewest examples a client may hold; the others give in proportion to what they can spare.

    Returns:
      One int64 array of example indices per client; each example is in exactly one.

    Raises:
      ValueError: if `sigma` is negative, or the examples do not suffice for `num_clients` times `min_size`.
    """
    check_enough(num_examples, num_clients, min_size)
    checks.non_negative("sigma", sigma)
    rng = generator(key)
    log_weights = float(sigma) * rng.standard_normal(num_clients)
    return _of_unequal_sizes(rng, np.exp(log_weights - log_weights.max()), num_examples, min_size)


def _of_unequal_sizes(
    rng: np.random.Generator, weights: np.ndarray, num_examples: int, min_size: int
) -> list[np.ndarray]:
    sizes = at_least(apportion(weights, num_examples), min_size)
    return deal(rng.permutation(num_examples), sizes)
