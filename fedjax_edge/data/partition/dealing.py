"""What partitioners are made of: whole numbers that add up, and dealing examples by them."""

from typing import Any

import jax
import numpy as np

from fedjax_edge.core import checks


def generator(key: jax.Array) -> np.random.Generator:
    """A NumPy generator seeded with all the words of a JAX key, typed or raw.

    Partitions are made once, on the host, with sizes that depend on the draws, which `jax.random` cannot express;
    a key in, and nothing else, keeps them as reproducible as everything drawn inside jit.
    """
    words = np.asarray(jax.random.key_data(key))
    if words.ndim != 1:
        raise ValueError(f"key must be a single key, got an array of keys with shape {words.shape[:-1]}")
    return np.random.default_rng(words)


def check_enough(num_examples: int, num_clients: int, min_size: int = 1) -> None:
    """Raises ValueError unless every client can have `min_size` examples."""
    checks.integer("num_examples", num_examples)
    checks.integer("num_clients", num_clients)
    checks.integer("min_size", min_size)
    if num_clients * min_size > num_examples:
        raise ValueError(
            f"num_clients must be at most {num_examples // min_size} to give each client at least {min_size} of "
            f"{num_examples} examples, got {num_clients}"
        )


def class_numbers(labels: Any) -> np.ndarray:
    """The labels renumbered so that every class from 0 to the largest has examples."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be integers of shape [num_examples], got dtype {labels.dtype} and shape {labels.shape}"
        )
    if labels.min() < 0:
        raise ValueError(f"labels must be class numbers of at least 0, got {labels.min()}")
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def deal(order: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """Cuts `order` into consecutive pieces of these sizes."""
    return np.split(order, np.cumsum(sizes)[:-1])


def apportion(weights: np.ndarray, total: int) -> np.ndarray:
    """Divides `total` units in proportion to `weights`, in whole numbers that add up to it (largest remainder).

    >>> apportion(np.array([1.0, 1.0, 2.0]), 5)
    array([1, 1, 3])
    """
    exact = weights * (total / weights.sum())
    units = np.floor(exact).astype(np.int64)
    most_lacking = np.argsort(units - exact, kind="stable")
    units[most_lacking[: total - units.sum()]] += 1
    return units


def equal_sizes(total: int, parts: int) -> np.ndarray:
    """Divides `total` as evenly as whole numbers can."""
    return np.full(parts, total // parts) + (np.arange(parts) < total % parts)


def at_least(sizes: np.ndarray, min_size: int) -> np.ndarray:
    """Raises sizes below `min_size` to it; the others give in proportion to what they have above it."""
    missing = np.maximum(min_size - sizes, 0)
    if not missing.any():
        return sizes
    return sizes + missing - apportion(np.maximum(sizes - min_size, 0), missing.sum())


def draw(rng: np.random.Generator, labels: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Gives each client random examples of each class, as many as `counts` [clients, classes] says."""
    num_clients = len(counts)
    rows = [
        rng.permutation(np.flatnonzero(labels == label))[: class_counts.sum()]
        for label, class_counts in enumerate(counts.T)
    ]
    owners = [np.repeat(np.arange(num_clients), class_counts) for class_counts in counts.T]
    return group(np.concatenate(rows), np.concatenate(owners), num_clients)


def group(order: np.ndarray, owners: np.ndarray, num_clients: int) -> list[np.ndarray]:
    """Gives each client the examples it owns, in order."""
    by_owner = order[np.argsort(owners, kind="stable")]
    return deal(by_owner, np.bincount(owners, minlength=num_clients))
