"""Every assertion about private components passes on a right one and fails on a planted bug."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_edge.aggregation import coordinate_median, weighted_mean
from fedjax_edge.core import Aggregator, PrivacyClaim, UpdateTransform
from fedjax_edge.privacy import clip, clip_by_norm, gaussian_mean
from fedjax_edge.testing import assert_no_claim_without_noise, assert_noise_scale, assert_sensitivity

KEY = jax.random.key(0)
RNG = np.random.default_rng(2)
CLIP, MULTIPLIER, DENOMINATOR = 0.7, 1.5, 4.0
UPDATES = {"a": RNG.normal(size=(4, 3, 2)).astype(np.float32), "b": RNG.normal(size=(4, 5)).astype(np.float32)}
WEIGHTS = np.array([1, 2, 3, 4], np.float32)
ONE = jax.tree.map(lambda leaf: leaf[0], UPDATES)
STANDARD_DEVIATION = MULTIPLIER * CLIP / DENOMINATOR
RIGHT = gaussian_mean(CLIP, MULTIPLIER, DENOMINATOR)


def contributing(contribution):
    return RIGHT._replace(contribution=contribution)


def clipped_per_leaf(update, weight, state):
    return jax.tree.map(lambda leaf: clip_by_norm(leaf, CLIP), update)


def naive_clip(update, weight, state):
    scale = jnp.minimum(1, CLIP / optax.tree.norm(update))
    return optax.tree.scale(scale, update)


def flat_at_zero(update, weight, state):
    norm = optax.tree.norm(update)
    return optax.tree.scale(jnp.where(norm < 2 * CLIP, 1.0, CLIP / norm), update)


def test_a_sensitivity_that_holds():
    assert_sensitivity(RIGHT, UPDATES, WEIGHTS, CLIP, rtol=0)
    assert_sensitivity(gaussian_mean(CLIP, 1.0, DENOMINATOR, max_weight=3.0), UPDATES, WEIGHTS, 3 * CLIP)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), UPDATES)
    assert_sensitivity(RIGHT, narrow, WEIGHTS, CLIP, rtol=0)
    assert_sensitivity(contributing(naive_clip), UPDATES, WEIGHTS, CLIP)  # rejects what it cannot clip, as a round does


UNBOUNDED = {
    "not clipped": lambda update, weight, state: update,
    "clipped leaf by leaf": clipped_per_leaf,
    "clipped and weighted": lambda update, weight, state: optax.tree.scale(weight, clip_by_norm(update, CLIP)),
    "counted as well": lambda update, weight, state: (clip_by_norm(update, CLIP), jnp.float32(1)),
    "clipped to twice the norm": lambda update, weight, state: clip_by_norm(update, 2 * CLIP),
    "clipped where it is long": flat_at_zero,
}


@pytest.mark.parametrize("bug", UNBOUNDED)
def test_a_sensitivity_that_does_not_hold(bug):
    message = r"sensitivity is claimed to be 0\.7, but a client that sends .* a norm of"
    with pytest.raises(AssertionError, match=message):
        assert_sensitivity(contributing(UNBOUNDED[bug]), UPDATES, WEIGHTS, CLIP)


def test_what_is_released_is_named():
    """The count is not noised, and so is no part of the sum whose sensitivity is claimed."""
    counts = contributing(UNBOUNDED["counted as well"])
    assert_sensitivity(counts, UPDATES, WEIGHTS, CLIP, released=lambda total: total[0])
    with pytest.raises(TypeError, match="an aggregator that stacks has no sum"):
        assert_sensitivity(coordinate_median(), UPDATES, WEIGHTS, CLIP)


def adding(noise):
    """The private mean with noise of one's own: `noise(key, leaf) -> leaf`, of standard deviation 1 if right."""

    def finish(total, state, key):
        leaves, structure = jax.tree.flatten(total)
        keys = jax.random.split(key, len(leaves))
        rows = [(leaf + MULTIPLIER * CLIP * noise(k, leaf)) / DENOMINATOR for leaf, k in zip(leaves, keys, strict=True)]
        return structure.unflatten(rows), state

    return RIGHT._replace(finish=finish)


def test_noise_of_the_right_scale():
    assert_noise_scale(RIGHT, ONE, STANDARD_DEVIATION, KEY)
    assert_noise_scale(RIGHT, jnp.zeros(()), STANDARD_DEVIATION, KEY)

    def louder_on_b(total, state, key):
        result, state = RIGHT.finish(total, state, key)
        return {**result, "b": 2 * result["b"]}, state

    scales = {"a": STANDARD_DEVIATION, "b": 2 * STANDARD_DEVIATION}
    assert_noise_scale(RIGHT._replace(finish=louder_on_b), ONE, scales, KEY)
    with pytest.raises(AssertionError, match=r"the noise of leaf \['b'\] has a standard deviation of"):
        assert_noise_scale(RIGHT._replace(finish=louder_on_b), ONE, STANDARD_DEVIATION, KEY)
    with pytest.raises(AssertionError, match=r"the standard deviation of leaf \['a'\] is 0\.0; it must be above 0"):
        assert_noise_scale(RIGHT, ONE, 0.0, KEY)


@pytest.mark.parametrize("factor", [2 / 3, 3 / 2, 0.5, 2.0])
def test_two_thirds_and_three_halves_of_the_scale_are_rejected(factor):
    """Even on a single number."""
    with pytest.raises(AssertionError, match=r"has a standard deviation of .* times the .* claimed") as caught:
        assert_noise_scale(RIGHT, jnp.zeros(()), factor * STANDARD_DEVIATION, KEY)
    measured = float(re.search(r", ([\d.]+) times", str(caught.value))[1])
    assert measured == pytest.approx(1 / factor, rel=0.08)


WRONG_NOISE = {
    "half the noise": (lambda key, leaf: jax.random.normal(key, leaf.shape) / 2, r"0\.(5|49)\d* times"),
    "Laplace": (lambda key, leaf: jax.random.laplace(key, leaf.shape) / np.sqrt(2).astype(np.float32), "is not normal"),
    "uniform": (lambda key, leaf: jax.random.uniform(key, leaf.shape, minval=-1, maxval=1) * 3**0.5, "is not normal"),
    "off centre": (lambda key, leaf: 0.2 + 0.98 * jax.random.normal(key, leaf.shape), "is not normal with mean 0"),
    "one number for the leaf": (lambda key, leaf: jax.random.normal(key) + jnp.zeros_like(leaf), "of leaf|independent"),
    "none": (lambda key, leaf: jnp.zeros_like(leaf), "0 times"),
    "on a mean's scale": (lambda key, leaf: jax.random.normal(key, leaf.shape) / DENOMINATOR, r"0\.2\d* times"),
}


@pytest.mark.parametrize("bug", WRONG_NOISE)
def test_noise_that_is_not_what_is_claimed(bug):
    noise, message = WRONG_NOISE[bug]
    with pytest.raises(AssertionError, match=message):
        assert_noise_scale(adding(noise), jnp.zeros(4), STANDARD_DEVIATION, KEY)


def test_noise_shared_by_the_numbers_of_a_leaf():
    """Pairs of equal and of opposite numbers: each alone is right, and the variance of their sum is twice, or none."""
    for sign in (1, -1):

        def paired(key, leaf, sign=sign):
            half = jax.random.normal(key, (leaf.size // 2,))
            return jnp.concatenate([half, sign * half]).reshape(leaf.shape)

        with pytest.raises(AssertionError, match=r"summed over leaf itself \(are its numbers independent\?\)"):
            assert_noise_scale(adding(paired), jnp.zeros(4), STANDARD_DEVIATION, KEY)


def test_noise_shared_by_two_leaves():
    def one_key(total, state, key):
        return jax.tree.map(lambda leaf: STANDARD_DEVIATION * jax.random.normal(key, leaf.shape), total), state

    two = {"a": jnp.zeros(3), "b": jnp.zeros(3)}
    assert_noise_scale(RIGHT, two, STANDARD_DEVIATION, KEY)
    with pytest.raises(AssertionError, match=r"summed over all leaves .* 1\.3\d* times the 2\.4\d* claimed"):
        assert_noise_scale(RIGHT._replace(finish=one_key), two, STANDARD_DEVIATION, KEY)


def test_local_noise():
    def local(scale):
        def apply(update, state, key):
            return update + scale * jax.random.normal(key, update.shape), state, None

        return UpdateTransform(lambda update: (), apply)

    assert_noise_scale(local(0.3), jnp.zeros(3), 0.3, KEY)
    with pytest.raises(AssertionError, match=r"0\.6\d* times"):
        assert_noise_scale(local(0.2), jnp.zeros(3), 0.3, KEY)
    with pytest.raises(AssertionError, match="0 times"):
        assert_noise_scale(clip(1.0), jnp.zeros(3), 0.3, KEY)


def test_false_alarms_of_the_noise_are_as_rare_as_said():
    """Three tests at a level of 10 % alarm in a quarter of the draws, at 1e-6 in none of sixty."""
    alarms = {0.1: 0, 1e-6: 0}
    for seed in range(60):
        for level in alarms:
            try:
                assert_noise_scale(RIGHT, jnp.zeros(3), STANDARD_DEVIATION, jax.random.key(seed), false_alarm=level)
            except AssertionError:
                alarms[level] += 1
    assert alarms[1e-6] == 0
    assert 4 <= alarms[0.1] <= 30


def test_a_claim_without_noise():
    assert_no_claim_without_noise(lambda multiplier: gaussian_mean(CLIP, multiplier, DENOMINATOR))
    assert_no_claim_without_noise(lambda multiplier: weighted_mean())

    def refusing(multiplier, at=0.0):
        if multiplier == at:
            raise ValueError(f"noise_multiplier must be above 0, got {multiplier}")
        return RIGHT

    assert_no_claim_without_noise(refusing)
    with pytest.raises(ValueError, match="must be above 0, got 1"):
        assert_no_claim_without_noise(lambda multiplier: refusing(multiplier or 1.0, at=1.0))

    def claims(sampling, rounds, delta):
        return PrivacyClaim(0.0, delta, "add-or-remove one client", "whatever", "none", rounds, 0.0)

    careless: Aggregator = RIGHT._replace(accountant=claims)
    with pytest.raises(
        AssertionError, match=r"with noise multiplier 0\.0 and sampling PoissonSampling.* an epsilon of 0"
    ):
        assert_no_claim_without_noise(lambda multiplier: careless)
