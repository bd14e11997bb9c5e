"""Whether a private aggregator keeps what its epsilon is computed from: the sensitivity, and the noise."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy

from fedjax_edge.core.protocols import (
    Aggregator,
    Codec,
    FixedSampling,
    FullParticipation,
    PoissonSampling,
    PrivacyError,
    PyTree,
    UpdateTransform,
)
from fedjax_edge.core.transforms import as_transform
from fedjax_edge.testing.aggregating import as_cohort, fresh_state, total_of
from fedjax_edge.testing.comparing import named_leaves

_LENGTHS = (1e-30, 0.5, 1 - 1e-6, 1, 1 + 1e-6, 1 + 1e-4, 2, 1e3, 1e10, 1e19, 1e30)
_WEIGHTS = (1.0, 0.0, -1.0, 1e3, 3e38, np.inf, np.nan)


def assert_sensitivity(
    aggregator: Aggregator,
    updates: PyTree,
    weights: PyTree,
    bound: float,
    *,
    released: Callable[[PyTree], PyTree] = lambda total: total,
    rtol: float = 1e-6,
) -> None:
    """Raises AssertionError if one more client moves the sum that noise is added to by more than `bound`, in L2 norm.

    The client more may be hostile: updates just below and above the bound and up to 1e30 times as long, in a spike, in
    equal and alternating numbers; the largest float; NaN and infinities; weights that are zero, negative, huge, NaN or
    infinite. Its own contribution, measured in float64, may reach `bound * (1 + rtol)`, and the sum of the cohort may
    move by that and the rounding of a sum. Removing a client is the same distance; replacing one moves up to twice it.

    Args:
      aggregator: the component, with the first state of its `init`; it must sum (TypeError where it stacks).
      updates: leaves [clients, ...]: the cohort beside the hostile client.
      weights: float [clients].
      bound: the sensitivity that is claimed, in the units of the sum.
      released: which part of the sum gets noise; by default all of it, counts and weights included.
      rtol: room for the rounding of a clip in float32; 0 for a clip whose bound holds in floating point.
    """
    if aggregator.stacked:
        raise TypeError("an aggregator that stacks has no sum, and so no sensitivity of one")
    updates, weights, _ = as_cohort(updates, weights, None)
    names, rows, heavy = _hostile_clients(updates, bound)
    parts = aggregator.contribution, released
    own, before, after = _sums(*parts, updates, weights, rows, heavy, fresh_state(aggregator, updates))
    lengths, moved = _norms(own), _norms(jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), after, before))
    clients = len(weights) + 1
    size = math.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(before)))
    rounding = clients * float(np.finfo(np.float32).eps) * (size + bound)
    for name, length, distance in zip(names, lengths, moved, strict=True):
        assert length <= bound * (1 + rtol) + 1e-12 * bound, (
            f"the sensitivity is claimed to be {bound:.6g}, but a client that sends {name} contributes a norm of "
            f"{length:.6g}"
        )
        assert distance <= bound * (1 + rtol) + rounding, (
            f"the sensitivity is claimed to be {bound:.6g}, but a client that sends {name} moves the sum by "
            f"{distance:.6g}"
        )


def _hostile_clients(updates: PyTree, bound: float) -> tuple[list[str], PyTree, jax.Array]:
    """Names, updates with leaves [hostile, ...] and weights [hostile]."""
    leaves, structure = jax.tree.flatten(updates)
    sizes = [int(np.prod(leaf.shape[1:])) for leaf in leaves]
    total = max(sum(sizes), 1)
    shapes = {
        "equal numbers": np.full(total, total**-0.5),
        "alternating numbers": np.resize([1.0, -1.0], total) * total**-0.5,
        "a spike": np.eye(1, total)[0],
        "a slope": np.arange(1, total + 1) / np.linalg.norm(np.arange(1, total + 1)),
    }
    vectors = {
        f"{words} of norm {length * bound:g}": length * bound * v for words, v in shapes.items() for length in _LENGTHS
    }
    largest = float(np.finfo(np.float32).max)
    vectors |= {
        f"{words} {value}": np.where(np.arange(total) < count, value, 0.0)
        for value in (largest, np.nan, np.inf, -np.inf)
        for words, count in (("everywhere", total), ("once", 1))
    }
    vectors["zeros"] = np.zeros(total)
    chosen = {(f"{name}, weight 1", 1.0): vector for name, vector in vectors.items()}
    long = vectors[f"equal numbers of norm {2 * bound:g}"]
    chosen |= {(f"equal numbers of norm {2 * bound:g}, weight {weight:g}", weight): long for weight in _WEIGHTS}
    with np.errstate(over="ignore"):
        stacked = np.stack(list(chosen.values()))[:, : sum(sizes)]
        parts = np.split(stacked, np.cumsum(sizes)[:-1], axis=1)
        rows = [
            jnp.asarray(part.reshape(len(part), *leaf.shape[1:]).astype(leaf.dtype))
            for part, leaf in zip(parts, leaves, strict=True)
        ]
    names, heavy = zip(*chosen, strict=True)
    return list(names), structure.unflatten(rows), jnp.asarray(np.array(heavy, np.float32))


@partial(jax.jit, static_argnums=(0, 1))
def _sums(
    contribution: Callable,
    released: Callable,
    updates: PyTree,
    weights: jax.Array,
    hostile: PyTree,
    heavy: jax.Array,
    state: PyTree,
) -> tuple[PyTree, PyTree, PyTree]:
    """Each hostile client's own sum, that of the cohort, and those of the cohort and one of them, [hostile, ...]."""
    cohort = total_of(contribution, False, updates, weights, jnp.ones(weights.shape, bool), state)

    def one(update: PyTree, weight: jax.Array) -> PyTree:
        row = jax.tree.map(lambda leaf: leaf[None], update)
        return total_of(contribution, False, row, weight[None], jnp.ones(1, bool), state)

    own = jax.vmap(one)(hostile, heavy)
    after = jax.vmap(lambda row: released(optax.tree.add(cohort, row)))(own)
    return jax.vmap(released)(own), released(cohort), after


def _norms(tree: PyTree) -> np.ndarray:
    """The L2 norm over all leaves, [rows, ...] -> [rows], in float64."""
    squares = [np.square(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)]
    return np.sqrt(sum(leaf.reshape(len(leaf), -1).sum(1) for leaf in squares))


def assert_noise_scale(
    component: Aggregator | Codec | UpdateTransform,
    update: PyTree,
    standard_deviation: float | PyTree,
    key: jax.Array,
    *,
    draws: int = 2000,
    false_alarm: float = 1e-6,
) -> None:
    """Raises AssertionError unless the noise is Gaussian, independent, and of exactly this standard deviation.

    Noise is what comes of an update of zeros (of an aggregator: the aggregate of a cohort that contributes zeros).
    Each leaf is tested for its variance (chi-square, two-sided), for its distribution (Kolmogorov-Smirnov against the
    normal of mean zero), and for the variance of the sum of its numbers, which noise shared among them gives away; so
    is, of several leaves, the variance of the sum of all numbers.

    False alarms: at most `false_alarm` for each of the three tests of each leaf, and for the one of all. Power: at
    2,000 draws, 2/3 or 3/2 of the true scale is rejected with a probability above 1 - 1e-9, even for a leaf of a single
    number.

    Args:
      component: an aggregator, for central noise, or a transform, for local noise.
      update: pytree of floats; only its form matters. Keep it small: all draws are held at once.
      standard_deviation: claimed for each number of the aggregate, or of what is received: in the units of the result,
        so that noise on a sum is divided by what the sum is divided by. A number, or a tree of them like `update`.
      key: split into `draws` keys.
      draws: how often noise is drawn, at least 2,000 for the power above.
      false_alarm: the level of each test.
    """
    noise = named_leaves(_noise(component, jax.tree.map(jnp.zeros_like, update), jax.random.split(key, draws)))
    scales = jax.tree.leaves(standard_deviation)
    scales = [float(scales[0])] * len(noise) if len(scales) == 1 else list(map(float, scales))
    in_units = []  # of each leaf's standard deviation, [draws, numbers]
    for (name, leaf), scale in zip(noise.items(), scales, strict=True):
        if not leaf.size:
            continue
        samples = leaf.astype(np.float64).reshape(draws, -1)
        assert scale > 0, f"the standard deviation of leaf {name} is {scale}; it must be above 0"
        in_units.append(samples / scale)
        _assert_variance(f"the noise of leaf {name}", samples.ravel(), scale, false_alarm)
        test = scipy.stats.kstest(samples.ravel() / scale, "norm")
        assert test.pvalue > false_alarm, (
            f"the noise of leaf {name} is not normal with mean 0 and standard deviation {scale:.6g}: "
            f"Kolmogorov-Smirnov distance {test.statistic:.4g}, p-value {test.pvalue:.2g}"
        )
        what = f"the noise summed over leaf {name} (are its numbers independent?)"
        _assert_variance(what, samples.sum(1), scale * math.sqrt(samples.shape[1]), false_alarm)
    if len(in_units) > 1:
        numbers = np.concatenate(in_units, axis=1)
        what = "the noise summed over all leaves (are they independent of one another?)"
        _assert_variance(what, numbers.sum(1), math.sqrt(numbers.shape[1]), false_alarm)


def _assert_variance(what: str, samples: np.ndarray, scale: float, false_alarm: float) -> None:
    low, high = np.sqrt(scipy.stats.chi2.ppf([false_alarm / 2, 1 - false_alarm / 2], df=samples.size) / samples.size)
    ratio = math.sqrt(np.mean(np.square(samples / scale)))
    assert low <= ratio <= high, (
        f"{what} has a standard deviation of {ratio * scale:.6g}, {ratio:.3g} times the {scale:.6g} claimed; "
        f"{low:.3g} to {high:.3g} times is allowed over {samples.size} samples"
    )


@partial(jax.jit, static_argnums=0)
def _noise(component: Aggregator | Codec | UpdateTransform, update: PyTree, keys: jax.Array) -> PyTree:
    """What comes of zeros under each key, leaves [draws, ...]."""
    if not isinstance(component, Aggregator):
        transform = as_transform(component)
        return jax.vmap(lambda key: transform.apply(update, transform.init(update), key)[0])(keys)
    state, one = component.init(update), jax.tree.map(lambda leaf: leaf[None], update)
    absent = jnp.zeros(1, bool)
    total = total_of(component.contribution, component.stacked, one, jnp.ones(1, jnp.float32), absent, state)
    return jax.vmap(lambda key: component.finish(total, state, key)[0])(keys)


def assert_no_claim_without_noise(build: Callable[[float], Any]) -> None:
    """Raises AssertionError if an epsilon is given for a mechanism without noise, or without knowing the sampling.

    Args:
      build: the aggregator, or the mechanism of two halves, with a given noise multiplier; one without an accountant
        claims nothing, and passes, as does one that refuses (ValueError) to be made without noise.
    """
    samplings = PoissonSampling(100, 0.1, 1e-12), FixedSampling(100, 10), FullParticipation(100)
    for multiplier, sampling in [*((0.0, sampling) for sampling in samplings), (1.0, None)]:
        try:
            accountant = build(multiplier).accountant
        except ValueError:
            if multiplier:
                raise
            continue
        if accountant is None:
            continue
        try:
            claim = accountant(sampling, 1, 1e-5)
        except PrivacyError:
            continue
        raise AssertionError(
            f"with noise multiplier {multiplier} and sampling {sampling} an epsilon of {claim.epsilon:.4g} is claimed; "
            "PrivacyError should be raised"
        )
