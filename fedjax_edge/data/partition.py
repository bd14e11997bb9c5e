"""Partitions: which examples each client holds, as a pure function of a `jax.random` key.

Every partitioner returns one array of example indices per client, for `from_partition`. Kinds of skew and their
names follow Li, Diao, Chen and He, "Federated Learning on Non-IID Data Silos: An Experimental Study" (ICDE 2022,
arXiv:2102.02079, section IV), called Li et al. below:

    none                `iid`
    labels              `dirichlet_labels`, `shards`, `classes_per_client`
    labels and sizes    `dirichlet_allocation`
    sizes               `power_law_sizes`, `log_normal_sizes`
    features            `iid` with `feature_noise.add_feature_noise`
    as collected        `natural`
"""

from collections.abc import Hashable, Iterable
from typing import Any

import jax
import numpy as np

from fedjax_edge.core import checks


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
    _check_enough(num_examples, num_clients)
    return deal(_generator(key).permutation(num_examples), _equal_sizes(num_examples, num_clients))


def dirichlet_labels(key: jax.Array, labels: np.ndarray, num_clients: int, alpha: float) -> list[np.ndarray]:
    """Label skew with clients of equal size: each draws its own mix of classes from a Dirichlet distribution.

    The variant of Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification" (2019, arXiv:1909.06335, section 3): a client draws its mix q ~ Dir(alpha, ..., alpha) over the
    classes, then its examples from q without replacement; a class that runs out leaves the mix, which is normalised
    again over what remains. Clients take turns in a random order, so that which of them meet exhausted classes does
    not depend on their number. `alpha` is per class, as in most code: Hsu et al. write Dir(alpha p) with
    probabilities p, so that their alpha is this one times the number of classes.

    Args:
      key: a `jax.random` key; the same key gives the same partition.
      labels: integers [num_examples], the class of each example.
      num_clients: clients to share them, at most `num_examples`.
      alpha: concentration per class, above 0. Small: one class a client; large: the same mix everywhere.

    Returns:
      One int64 array of example indices per client; each example is in exactly one, and sizes differ by at most one.

    Raises:
      ValueError: if `labels` is not a vector of class numbers, `alpha` is not above 0, or there are more clients than
        examples.

    >>> labels = np.repeat(np.arange(10), 1000)
    >>> clients = dirichlet_labels(jax.random.key(0), labels, num_clients=300, alpha=0.3)
    >>> sorted({len(rows) for rows in clients})
    [33, 34]
    """
    labels = _classes(labels)
    _check_enough(len(labels), num_clients)
    checks.positive("alpha", alpha)
    rng = _generator(key)
    left = np.bincount(labels)
    sizes = _equal_sizes(len(labels), num_clients)
    counts = np.zeros((num_clients, len(left)), np.int64)
    for client in rng.permutation(num_clients):
        mix = rng.dirichlet(np.full(len(left), float(alpha)))
        counts[client] = _take(rng, mix, left, sizes[client])
        left -= counts[client]
    return _draw(rng, labels, counts)


def dirichlet_allocation(
    key: jax.Array, labels: np.ndarray, num_clients: int, alpha: float, min_size: int = 1
) -> list[np.ndarray]:
    """Label and size skew: each class is divided among all clients by a Dirichlet draw of its own.

    The variant of Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks" (ICML 2019,
    arXiv:1905.12022, section 4), which Li et al. call distribution-based label imbalance: class k gives client j the
    share p_kj, where p_k ~ Dir(alpha, ..., alpha) over the clients. Both papers draw again until no client is too
    small, which for many clients never happens; here clients below `min_size` are filled up with examples taken at
    random from the others, in proportion to what these can spare.

    Args:
      key: a `jax.random` key; the same key gives the same partition.
      labels: integers [num_examples], the class of each example.
      num_clients: clients to share them.
      alpha: concentration per client, above 0. Small: a class lies with few clients; large: with all alike.
      min_size: the fewest examples a client may hold.

    Returns:
      One int64 array of example indices per client; each example is in exactly one.

    Raises:
      ValueError: if `labels` is not a vector of class numbers, `alpha` is not above 0, or the examples do not suffice
        for `num_clients` times `min_size`.
    """
    labels = _classes(labels)
    _check_enough(len(labels), num_clients, min_size)
    checks.positive("alpha", alpha)
    rng = _generator(key)
    class_sizes = np.bincount(labels)
    shares = rng.dirichlet(np.full(num_clients, float(alpha)), size=len(class_sizes))
    counts = np.stack([apportion(p, n) for p, n in zip(shares, class_sizes, strict=True)], axis=1)
    return _fill_up(rng, _draw(rng, labels, counts), min_size)


def shards(key: jax.Array, labels: np.ndarray, num_clients: int, shards_per_client: int = 2) -> list[np.ndarray]:
    """The "pathological" label skew: examples sorted by label are cut into equal shards, which are dealt at random.

    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (AISTATS 2017,
    arXiv:1602.05629, section 3), with 100 clients and 2 shards each. Most clients hold as many classes as shards.

    Args:
      key: a `jax.random` key; the same key gives the same partition.
      labels: integers [num_examples], the class of each example.
      num_clients: clients to share them.
      shards_per_client: shards each client receives.

    Returns:
      One int64 array of example indices per client; each example is in exactly one. The sizes of shards differ by at
      most one.

    Raises:
      ValueError: if `labels` is not a vector of class numbers, or there are more shards than examples.
    """
    labels = _classes(labels)
    checks.integer("shards_per_client", shards_per_client)
    _check_enough(len(labels), num_clients, shards_per_client)
    rng = _generator(key)
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    num_shards = num_clients * shards_per_client
    pieces = deal(by_label, _equal_sizes(len(labels), num_shards))
    hands = rng.permutation(num_shards).reshape(num_clients, shards_per_client)
    return [np.concatenate([pieces[shard] for shard in hand]) for hand in hands]


def classes_per_client(
    key: jax.Array, labels: np.ndarray, num_clients: int, num_classes_per_client: int
) -> list[np.ndarray]:
    """Label skew with a fixed number of classes: each client holds exactly so many.

    Quantity-based label imbalance, "#C = k", of Li et al.: each client is given k different classes at random, and a
    class is divided equally among its holders. Here every class has as nearly as possible the same number of holders,
    so that all classes are held whenever `num_clients * num_classes_per_client` reaches their number; the examples
    of a class that nobody holds are in no client.

    Args:
      key: a `jax.random` key; the same key gives the same partition.
      labels: integers [num_examples], the class of each example.
      num_clients: clients to share them.
      num_classes_per_client: classes each client holds, at most the number of distinct labels.

    Returns:
      One int64 array of example indices per client, none in two of them.

    Raises:
      ValueError: if `labels` is not a vector of class numbers, holds fewer distinct ones than asked for, or has too few
        examples of some classes for so many holders.
    """
    labels = _classes(labels)
    checks.integer("num_clients", num_clients)
    class_sizes = np.bincount(labels)
    checks.integer("num_classes_per_client", num_classes_per_client, at_most=len(class_sizes))
    most = np.minimum(class_sizes, num_clients)
    if num_clients * num_classes_per_client > most.sum():
        raise ValueError(
            f"num_clients * num_classes_per_client must be at most {most.sum()} for these labels (a class has at most "
            f"as many holders as examples), got {num_clients} * {num_classes_per_client}"
        )
    rng = _generator(key)
    num_holders = _balanced(rng, most, num_clients * num_classes_per_client)
    holds = _random_holders(rng, num_holders, num_clients, num_classes_per_client)
    counts = np.zeros(holds.shape, np.int64)
    for label in np.flatnonzero(num_holders):
        counts[holds[:, label], label] = rng.permutation(_equal_sizes(class_sizes[label], num_holders[label]))
    return _draw(rng, labels, counts)


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
    _check_enough(num_examples, num_clients, min_size)
    checks.non_negative("exponent", exponent)
    rng = _generator(key)
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
    _check_enough(num_examples, num_clients, min_size)
    checks.non_negative("sigma", sigma)
    rng = _generator(key)
    log_weights = float(sigma) * rng.standard_normal(num_clients)
    return _of_unequal_sizes(rng, np.exp(log_weights - log_weights.max()), num_examples, min_size)


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
    return _group(np.arange(len(ids)), owners, len(rank))


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


def _generator(key: jax.Array) -> np.random.Generator:
    """A NumPy generator seeded with all the words of a JAX key, typed or raw.

    Partitions are made once, on the host, with sizes that depend on the draws, which `jax.random` cannot express;
    a key in, and nothing else, keeps them as reproducible as everything drawn inside jit.
    """
    words = np.asarray(jax.random.key_data(key))
    if words.ndim != 1:
        raise ValueError(f"key must be a single key, got an array of keys with shape {words.shape[:-1]}")
    return np.random.default_rng(words)


def _check_enough(num_examples: int, num_clients: int, min_size: int = 1) -> None:
    checks.integer("num_examples", num_examples)
    checks.integer("num_clients", num_clients)
    checks.integer("min_size", min_size)
    if num_clients * min_size > num_examples:
        raise ValueError(
            f"num_clients must be at most {num_examples // min_size} to give each client at least {min_size} of "
            f"{num_examples} examples, got {num_clients}"
        )


def _classes(labels: Any) -> np.ndarray:
    """The labels renumbered so that every class from 0 to the largest has examples."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be integers of shape [num_examples], got dtype {labels.dtype} and shape {labels.shape}"
        )
    if labels.min() < 0:
        raise ValueError(f"labels must be class numbers of at least 0, got {labels.min()}")
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _equal_sizes(total: int, parts: int) -> np.ndarray:
    return np.full(parts, total // parts) + (np.arange(parts) < total % parts)


def _at_least(sizes: np.ndarray, min_size: int) -> np.ndarray:
    """Raises sizes below `min_size` to it; the others give in proportion to what they have above it."""
    missing = np.maximum(min_size - sizes, 0)
    if not missing.any():
        return sizes
    return sizes + missing - apportion(np.maximum(sizes - min_size, 0), missing.sum())


def _of_unequal_sizes(
    rng: np.random.Generator, weights: np.ndarray, num_examples: int, min_size: int
) -> list[np.ndarray]:
    sizes = _at_least(apportion(weights, num_examples), min_size)
    return deal(rng.permutation(num_examples), sizes)


def _fill_up(rng: np.random.Generator, clients: list[np.ndarray], min_size: int) -> list[np.ndarray]:
    """Moves random examples from clients that can spare them to those below `min_size`."""
    sizes = np.array([len(rows) for rows in clients])
    targets = _at_least(sizes, min_size)
    shuffled = [rng.permutation(rows) for rows in clients]
    spared = np.concatenate([rows[target:] for rows, target in zip(shuffled, targets, strict=True)])
    received = deal(rng.permutation(spared), np.maximum(targets - sizes, 0))
    kept = [rows[:target] for rows, target in zip(shuffled, targets, strict=True)]
    return [np.concatenate(parts) for parts in zip(kept, received, strict=True)]


def _take(rng: np.random.Generator, mix: np.ndarray, left: np.ndarray, size: int) -> np.ndarray:
    """How many of each class a client with this mix gets of what is left, `size` in all."""
    taken = np.zeros_like(left)
    while (missing := size - taken.sum()) > 0:
        remaining = left - taken
        weights = np.where(remaining > 0, mix, 0.0)
        if weights.sum() < 1e-300:  # every class of the mix has run out: any example will do
            weights = remaining.astype(np.float64)
        drawn = rng.multinomial(missing, weights / weights.sum())
        taken += np.minimum(drawn, remaining)
    return taken


def _balanced(rng: np.random.Generator, most: np.ndarray, total: int) -> np.ndarray:
    """Divides `total` units as evenly as upper bounds allow, odd ones at random."""
    units = np.zeros_like(most)
    while (left := total - units.sum()) > 0:
        below = rng.permutation(np.flatnonzero(units < most))[:left]
        units[below] = np.minimum(units[below] + left // len(below), most[below])
    return units


def _random_holders(
    rng: np.random.Generator, num_holders: np.ndarray, num_clients: int, num_classes_per_client: int
) -> np.ndarray:
    """Random bool [clients, classes] with these sums of columns, and `num_classes_per_client` in each row.

    Client after client picks classes with probability in proportion to the holders they still need; one that needs
    all clients to come is picked for certain, which leaves every later client enough classes to pick from.
    """
    holds = np.zeros((num_clients, len(num_holders)), bool)
    needed = num_holders.copy()
    for client in range(num_clients):
        # Weighted sampling without replacement by exponential races (Efraimidis and Spirakis 2006).
        finish = np.full(len(needed), np.inf)
        np.divide(rng.exponential(size=len(needed)), needed, out=finish, where=needed > 0)
        finish[needed == num_clients - client] = -1.0
        holds[client, np.argsort(finish)[:num_classes_per_client]] = True
        needed -= holds[client]
    return holds


def _draw(rng: np.random.Generator, labels: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Gives each client random examples of each class, as many as `counts` [clients, classes] says."""
    num_clients = len(counts)
    rows = [
        rng.permutation(np.flatnonzero(labels == label))[: class_counts.sum()]
        for label, class_counts in enumerate(counts.T)
    ]
    owners = [np.repeat(np.arange(num_clients), class_counts) for class_counts in counts.T]
    return _group(np.concatenate(rows), np.concatenate(owners), num_clients)


def _group(order: np.ndarray, owners: np.ndarray, num_clients: int) -> list[np.ndarray]:
    by_owner = order[np.argsort(owners, kind="stable")]
    return deal(by_owner, np.bincount(owners, minlength=num_clients))
