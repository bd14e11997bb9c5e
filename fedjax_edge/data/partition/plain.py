"""Partitions without skew of our making: equal shares, or as the examples were collected."""

from collections.abc import Hashable, Iterable

import jax
import numpy as np

from fedjax_edge.data.partition.dealing import check_enough, deal, equal_sizes, generator, group


def iid(key: jax.Array, num_examples: int, num_clients: int) -> list[np.ndarray]:
    """Deals shuffled examples to clients of equal size (sizes differ by at most one).

    Args:
      key: a `jax.random` key; the same key gives the same partition.
      num_examples: examples in the whole set.
      num_clients: clients to share them, at most `num_examples`.

    Returns:
      One int64 array of example indices per client; each example is in exactly one.

    Raises:
      ValueError: if there are more clients than examples.

    >>> [len(rows) for rows in iid(jax.random.key(0), num_examples=10, num_clients=3)]
    [4, 3, 3]
    """
    check_enough(num_examples, num_clients)
    return deal(generator(key).permutation(num_examples), equal_sizes(num_examples, num_clients))


def natural(client_ids: Iterable[Hashable]) -> list[np.ndarray]:
    """Groups examples by who made them: one client per distinct id, in the order of the sorted ids.

    Args:
      client_ids: the maker of each example: a vector of integers or strings, or a sequence of anything that can be
        hashed and sorted.

    Returns:
      One int64 array of example indices per client, each in ascending order; client i is `sorted(set(client_ids))[i]`.

    Raises:
      ValueError: if `client_ids` is empty, is an array of more than one axis, or holds NaN.

    >>> natural(["romeo", "juliet", "romeo"])
    [array([1]), array([0, 2])]
    """
    if isinstance(client_ids, (np.ndarray, jax.Array)):
        if client_ids.ndim != 1:
            raise ValueError(f"client_ids must have one axis, got shape {client_ids.shape}")
        client_ids = client_ids.tolist()
    ids = list(client_ids)
    if not ids or any(name != name for name in ids):
        raise ValueError(f"client_ids must name the client of at least one example, without NaN, got {ids[:5]}")
    rank = {name: client for client, name in enumerate(sorted(set(ids)))}
    owners = np.array([rank[name] for name in ids], np.int64)
    return group(np.arange(len(ids)), owners, len(rank))
