"""What an aggregator does when clients are reordered, shifted, scaled, mixed or missing.

Every assertion computes aggregates as a round does (`aggregate`), with one key on both sides, so that noise that does
not depend on the updates cancels; and fails on one that is not finite. Whether a property *should* hold is the user's
to know: a private mean clips, and so is not linear.
"""

import jax
import numpy as np

from fedjax_edge.core.protocols import Aggregator, PyTree
from fedjax_edge.testing.aggregating import aggregate, as_cohort
from fedjax_edge.testing.comparing import assert_close, assert_finite, named_leaves, rounding


def assert_permutation_invariant(
    aggregator: Aggregator,
    updates: PyTree,
    weights: PyTree,
    *,
    present: PyTree | None = None,
    key: jax.Array | None = None,
    rtol: float | None = None,
) -> None:
    """Raises AssertionError if the order of the clients changes the aggregate by more than rounding.

    Tried: the reverse order, a rotation by one, and the even before the odd.

    Args:
      aggregator: the component.
      updates: leaves [clients, ...]; at least two clients that differ, or nothing is tested (ValueError).
      weights: float [clients].
      present: bool [clients]; by default everybody is.
      key: what `finish` draws from, by default `jax.random.key(0)`.
      rtol: allowed, relative to the largest number of a leaf; by default 64 units in the last place (4 in bfloat16).
    """
    updates, weights, present = map(_host, as_cohort(updates, weights, present))
    key, count = _key(key), len(weights)
    if count < 2:
        raise ValueError(f"an order takes at least two clients, got {count}")
    expected = _aggregate(aggregator, updates, weights, key, present)
    order = np.arange(count)
    orders = {
        "in reverse order": order[::-1],
        "rotated by one": np.roll(order, 1),
        "the even before the odd": np.concatenate([order[::2], order[1::2]]),
    }
    for words, permuted in orders.items():
        rows = jax.tree.map(lambda leaf, permuted=permuted: leaf[permuted], updates)
        actual = _aggregate(aggregator, rows, weights[permuted], key, present[permuted])
        assert_close(f"the aggregate of the clients {words}", actual, expected, rtol, beside=(updates,))


def assert_padding_invariant(
    aggregator: Aggregator, updates: PyTree, weights: PyTree, *, key: jax.Array | None = None, rtol: float | None = None
) -> None:
    """Raises AssertionError if absent clients change the aggregate, or if nobody's aggregate is not finite.

    Tried: three absent clients, with large updates and weights of their own, put before, between and after the others.

    Args:
      aggregator: the component.
      updates: leaves [clients, ...].
      weights: float [clients].
      key: what `finish` draws from, by default `jax.random.key(0)`.
      rtol: as in `assert_permutation_invariant`.
    """
    updates, weights, _ = map(_host, as_cohort(updates, weights, None))
    key, count = _key(key), len(weights)
    expected = _aggregate(aggregator, updates, weights, key)
    places = [0, count // 2, count]

    def padded(leaf: np.ndarray) -> np.ndarray:
        return np.insert(leaf, places, np.asarray(1e3, leaf.dtype), axis=0)

    rows, heavier = jax.tree.map(padded, updates), padded(weights)
    present = np.insert(np.ones(count, bool), places, False)
    actual = _aggregate(aggregator, rows, heavier, key, present)
    assert_close("the aggregate beside three absent clients", actual, expected, rtol, beside=(updates,))
    _aggregate(aggregator, rows, heavier, key, np.zeros_like(present))


def assert_translation_equivariant(
    aggregator: Aggregator,
    updates: PyTree,
    weights: PyTree,
    *,
    shift: float = 3.0,
    key: jax.Array | None = None,
    rtol: float | None = None,
) -> None:
    """Raises AssertionError unless moving every update by one vector moves the aggregate by that vector.

    Args:
      aggregator: the component.
      updates: leaves [clients, ...].
      weights: float [clients].
      shift: the vector's numbers lie between `shift / 2` and `shift`, with alternating signs.
      key: what `finish` draws from, by default `jax.random.key(0)`.
      rtol: as in `assert_permutation_invariant`, of the larger of the updates and the shift.
    """
    updates, weights, _ = map(_host, as_cohort(updates, weights, None))
    key = _key(key)
    vector = jax.tree.map(lambda leaf: _alternating(leaf, shift), updates)
    moved = jax.tree.map(_add, updates, jax.tree.map(lambda leaf: leaf[None], vector))
    before = _aggregate(aggregator, updates, weights, key)
    after = _aggregate(aggregator, moved, weights, key)
    expected = jax.tree.map(_add, _host(before), vector)
    assert_close("the aggregate of the shifted updates", after, expected, rtol, beside=(updates, moved))


def assert_scale_equivariant(
    aggregator: Aggregator,
    updates: PyTree,
    weights: PyTree,
    *,
    factors: tuple[float, ...] = (0.0, 0.37, 3.0),
    key: jax.Array | None = None,
    rtol: float | None = None,
) -> None:
    """Raises AssertionError unless scaling every update by one factor scales the aggregate by that factor.

    Args:
      aggregator: the component.
      updates: leaves [clients, ...].
      weights: float [clients].
      factors: to try; a negative one asks for symmetry as well.
      key: what `finish` draws from, by default `jax.random.key(0)`.
      rtol: as in `assert_permutation_invariant`, of the larger of the updates before and after.
    """
    updates, weights, _ = map(_host, as_cohort(updates, weights, None))
    key = _key(key)
    before = _aggregate(aggregator, updates, weights, key)
    for factor in factors:
        scaled = jax.tree.map(lambda leaf, factor=factor: _scale(leaf, factor), updates)
        after = _aggregate(aggregator, scaled, weights, key)
        expected = jax.tree.map(lambda leaf, factor=factor: _scale(leaf, factor), _host(before))
        assert_close(f"the aggregate of the updates times {factor:g}", after, expected, rtol, beside=(scaled, before))


def assert_convex(
    aggregator: Aggregator,
    updates: PyTree,
    weights: PyTree,
    *,
    present: PyTree | None = None,
    key: jax.Array | None = None,
    rtol: float | None = None,
) -> None:
    """Raises AssertionError if a number of the aggregate lies outside the range that it has among the clients.

    These ranges are a box around the convex hull: an aggregate in the hull always passes, one outside of the box always
    fails, and one between the two passes as well. (The coordinate-wise median lies in the box and may leave the hull.)

    Args:
      aggregator: the component; its aggregate must have the structure of an update.
      updates: leaves [clients, ...].
      weights: float [clients].
      present: bool [clients]; by default everybody is. At least one must be (ValueError).
      key: what `finish` draws from, by default `jax.random.key(0)`.
      rtol: as in `assert_permutation_invariant`.
    """
    updates, weights, present = map(_host, as_cohort(updates, weights, present))
    if not present.any():
        raise ValueError("nobody is present, and the hull of nobody is empty")
    result = _aggregate(aggregator, updates, weights, _key(key), present)
    found, rows = named_leaves(result), named_leaves(updates)
    assert list(found) == list(rows), f"the aggregate's leaves are {list(found)}, an update's {list(rows)}"
    for name, leaf in found.items():
        seen = rows[name][present].astype(np.float64)
        leaf64 = leaf.astype(np.float64)
        assert leaf.shape == seen.shape[1:], f"leaf {name} has shape {leaf.shape}, expected {seen.shape[1:]}"
        if not leaf.size:
            continue
        precision = max(rounding(leaf.dtype), rounding(rows[name].dtype)) if rtol is None else rtol
        outside = np.maximum(leaf64 - seen.max(0), seen.min(0) - leaf64)
        outside = np.where(np.isnan(outside), np.inf, outside)
        worst = np.unravel_index(outside.argmax(), leaf.shape)
        assert outside[worst] <= precision * np.abs(seen).max(), (
            f"the aggregate leaves the clients' range: leaf {name} is {leaf64[worst]:.6g} at {tuple(map(int, worst))}, "
            f"the clients' from {seen.min(0)[worst]:.6g} to {seen.max(0)[worst]:.6g}"
        )


def assert_linear(
    aggregator: Aggregator,
    updates: PyTree,
    others: PyTree,
    weights: PyTree,
    *,
    factors: tuple[float, float] = (2.0, -0.7),
    key: jax.Array | None = None,
    rtol: float | None = None,
) -> None:
    """Raises AssertionError unless the aggregate of `a * updates + b * others` is that combination of their aggregates.

    It is a statement about the updates at fixed weights; noise in the aggregate is counted `a + b` times on one side
    and once on the other, and so fails.

    Args:
      aggregator: the component.
      updates, others: leaves [clients, ...], of the same clients.
      weights: float [clients].
      factors: a and b.
      key: what `finish` draws from, by default `jax.random.key(0)`.
      rtol: as in `assert_permutation_invariant`.
    """
    updates, weights, _ = map(_host, as_cohort(updates, weights, None))
    others, key = _host(as_cohort(others, weights, None)[0]), _key(key)

    def combined(left: PyTree, right: PyTree) -> PyTree:
        a, b = factors
        return jax.tree.map(lambda x, y: _add(_scale(x, a), _scale(y, b)), left, right)

    first, second = (_host(_aggregate(aggregator, rows, weights, key)) for rows in (updates, others))
    actual = _aggregate(aggregator, combined(updates, others), weights, key)
    what = f"the aggregate of {factors[0]:g} times the first updates plus {factors[1]:g} times the second"
    assert_close(what, actual, combined(first, second), rtol, beside=(updates, others))


def _aggregate(
    aggregator: Aggregator, updates: PyTree, weights: PyTree, key: jax.Array, present: PyTree | None = None
) -> PyTree:
    """What a rule makes of a cohort; a NaN equals a NaN, and would agree with every claim."""
    result, _ = aggregate(aggregator, updates, weights, key, present=present)
    assert_finite(f"the aggregate{'' if present is None or present.any() else ' of nobody'}", result)
    return result


def _key(key: jax.Array | None) -> jax.Array:
    return jax.random.key(0) if key is None else key


def _host(tree: PyTree) -> PyTree:
    """As NumPy arrays: arithmetic on the inputs then compiles nothing."""
    return jax.tree.map(np.asarray, tree)


def _alternating(leaf: np.ndarray, shift: float) -> np.ndarray:
    size = int(np.prod(leaf.shape[1:]))
    vector = shift * np.linspace(0.5, 1.0, size) * np.resize([1.0, -1.0], size)
    return vector.reshape(leaf.shape[1:]).astype(leaf.dtype)


def _scale(leaf: np.ndarray, factor: float) -> np.ndarray:
    return (factor * leaf.astype(np.float64)).astype(leaf.dtype)


def _add(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left.astype(np.float64) + right.astype(np.float64)).astype(left.dtype)
