"""Clients with unlike mixes of classes."""

import jax
import numpy as np

from fedjax_edge.core import checks
from fedjax_edge.data.partition.dealing import (
    apportion,
    at_least,
    check_enough,
    class_numbers,
    deal,
    draw,
    equal_sizes,
    generator,
)


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
    labels = class_numbers(labels)
    check_enough(len(labels), num_clients)
    checks.positive("alpha", alpha)
    rng = generator(key)
    left = np.bincount(labels)
    sizes = equal_sizes(len(labels), num_clients)
    counts = np.zeros((num_clients, len(left)), np.int64)
    for client in rng.permutation(num_clients):
        mix = rng.dirichlet(np.full(len(left), float(alpha)))
        counts[client] = _take(rng, mix, left, sizes[client])
        left -= counts[client]
    return draw(rng, labels, counts)


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
    labels = class_numbers(labels)
    check_enough(len(labels), num_clients, min_size)
    checks.positive("alpha", alpha)
    rng = generator(key)
    class_sizes = np.bincount(labels)
    shares = rng.dirichlet(np.full(num_clients, float(alpha)), size=len(class_sizes))
    counts = np.stack([apportion(p, n) for p, n in zip(shares, class_sizes, strict=True)], axis=1)
    return _fill_up(rng, draw(rng, labels, counts), min_size)


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
    labels = class_numbers(labels)
    checks.integer("shards_per_client", shards_per_client)
    check_enough(len(labels), num_clients, shards_per_client)
    rng = generator(key)
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    num_shards = num_clients * shards_per_client
    pieces = deal(by_label, equal_sizes(len(labels), num_shards))
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
    labels = class_numbers(labels)
    checks.integer("num_clients", num_clients)
    class_sizes = np.bincount(labels)
    checks.integer("num_classes_per_client", num_classes_per_client, at_most=len(class_sizes))
    most = np.minimum(class_sizes, num_clients)
    if num_clients * num_classes_per_client > most.sum():
        raise ValueError(
            f"num_clients * num_classes_per_client must be at most {most.sum()} for these labels (a class has at most "
            f"as many holders as examples), got {num_clients} * {num_classes_per_client}"
        )
    rng = generator(key)
    num_holders = _balanced(rng, most, num_clients * num_classes_per_client)
    holds = _random_holders(rng, num_holders, num_clients, num_classes_per_client)
    counts = np.zeros(holds.shape, np.int64)
    for label in np.flatnonzero(num_holders):
        counts[holds[:, label], label] = rng.permutation(equal_sizes(class_sizes[label], num_holders[label]))
    return draw(rng, labels, counts)


def _fill_up(rng: np.random.Generator, clients: list[np.ndarray], min_size: int) -> list[np.ndarray]:
    """Moves random examples from clients that can spare them to those below `min_size`."""
    sizes = np.array([len(rows) for rows in clients])
    targets = at_least(sizes, min_size)
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
