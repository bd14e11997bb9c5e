"""Feature skew: each client's sensors are noisier than the last one's.

Noise-based feature imbalance of Li, Diao, Chen and He, "Federated Learning on Non-IID Data Silos: An Experimental
Study" (ICDE 2022, arXiv:2102.02079, section IV-B2): the data are dealt `iid`, then client i of N adds Gaussian noise of
level max_std i / N to its features.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.core import checks


def feature_noise_levels(num_clients: int, max_std: float) -> np.ndarray:
    """Standard deviations that rise evenly from the first client, max_std / N, to the last, max_std.

    Args:
      num_clients: N, the number of clients.
      max_std: standard deviation of the last client's noise, in the features' unit, at least 0.

    Returns:
      float32 [num_clients], for `add_feature_noise`.

    Raises:
      ValueError: if `max_std` is negative.

    >>> feature_noise_levels(num_clients=4, max_std=1.0)
    array([0.25, 0.5 , 0.75, 1.  ], dtype=float32)
    """
    checks.integer("num_clients", num_clients)
    checks.non_negative("max_std", max_std)
    return (float(max_std) * np.arange(1, num_clients + 1) / num_clients).astype(np.float32)


def add_feature_noise(
    key: jax.Array, features: np.ndarray, clients: Sequence[np.ndarray], levels: np.ndarray
) -> np.ndarray:
    """Adds Gaussian noise of each client's level to the features of its examples.

    Args:
      key: a `jax.random` key; the same key gives the same noise.
      features: floating-point or integer [num_examples, ...]; uint8 pixels keep their scale of 0 to 255, and values
        are not clipped to it.
      clients: one array of example indices per client, as a partitioner returns them.
      levels: [num_clients], each client's standard deviation in the unit of `features`.

    Returns:
      float32 of the shape of `features`; examples of no client are left as they are.

    Raises:
      ValueError: if `levels` does not hold one finite number of at least 0 per client, or `features` are not numbers.
    """
    features, levels = np.asarray(features), np.asarray(levels)
    if levels.shape != (len(clients),) or not np.all((levels >= 0) & (levels < np.inf)):
        raise ValueError(
            f"levels must hold a finite number of at least 0 for each of {len(clients)} clients, got {levels}"
        )
    if not jnp.issubdtype(features.dtype, np.number) or np.iscomplexobj(features):
        raise ValueError(f"features must be real numbers, got dtype {features.dtype}")
    std = np.zeros(len(features), np.float32)
    for rows, level in zip(clients, levels, strict=True):
        std[rows] = level
    noise = np.asarray(jax.random.normal(key, features.shape, np.float32))
    return features.astype(np.float32) + std.reshape(-1, *[1] * (features.ndim - 1)) * noise
