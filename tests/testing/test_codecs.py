"""Every assertion about codecs passes on a right one and fails on a planted bug, in words that say which."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.compression import error_feedback, fixed_point, stochastic_uniform, top_k
from fedjax_edge.core import Codec, UpdateTransform
from fedjax_edge.testing import (
    assert_error_feedback_conserves,
    assert_rejects_non_finite,
    assert_round_trip,
    assert_unbiased,
    assert_variance_bounded,
)

KEY = jax.random.key(0)
RNG = np.random.default_rng(1)
UPDATE = {
    "a": RNG.normal(size=(6, 4)).astype(np.float32),
    "b": np.zeros((), np.float32),
    "empty": np.zeros((0, 2), np.float32),
    "narrow": RNG.normal(size=5).astype(jnp.bfloat16),
}


def numberwise(encode):
    """A codec that sends `encode(vector, key)` of all numbers as one vector, in the dtypes of their leaves."""

    def encode_all(update, key):
        leaves, structure = jax.tree.flatten(update)
        sizes = np.cumsum([0, *(leaf.size for leaf in leaves)])
        flat = encode(jnp.concatenate([leaf.astype(jnp.float32).ravel() for leaf in leaves]), key)
        parts = [flat[start:stop] for start, stop in itertools.pairwise(sizes)]
        return structure.unflatten(
            [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
        )

    return Codec(encode_all, lambda payload: payload)


def to_a_grid(leaf, key, step=0.25, shift=0.0):
    """Stochastic rounding to multiples of a step; with a shift of the coin, biased."""
    level = leaf / step
    below = jnp.floor(level)
    coin = jax.random.uniform(key, leaf.shape) < level - below + shift
    return step * (below + coin.astype(jnp.float32))


GRID = numberwise(to_a_grid)
IDENTITY = numberwise(lambda leaf, key: leaf)
RANDOM_K = numberwise(lambda leaf, key: jnp.where(jax.random.bernoulli(key, 0.25, leaf.shape), 4 * leaf, 0))


@pytest.mark.parametrize("codec", [GRID, IDENTITY, RANDOM_K, stochastic_uniform(3)])
def test_an_unbiased_codec(codec):
    assert_unbiased(codec, UPDATE, KEY)


BIASED = {
    "nearest": numberwise(lambda leaf, key: jnp.round(leaf * 4) / 4),
    "floor": numberwise(lambda leaf, key: jnp.floor(leaf * 4) / 4),
    "a coin off by 5 %": numberwise(lambda leaf, key: to_a_grid(leaf, key, shift=0.05)),
    "shrinks by 2 %": numberwise(lambda leaf, key: 0.98 * to_a_grid(leaf, key)),
    "not rescaled": numberwise(lambda leaf, key: jnp.where(jax.random.bernoulli(key, 0.25, leaf.shape), leaf, 0)),
    "the sign": numberwise(lambda leaf, key: jnp.sign(leaf)),
}


@pytest.mark.parametrize("bug", BIASED)
def test_a_biased_codec(bug):
    with pytest.raises(
        AssertionError, match=r"biased: .*leaf \['\w+'\].* is off by .* on average over 1000 draws, and"
    ):
        assert_unbiased(BIASED[bug], UPDATE, KEY)


def test_false_alarms_of_bias_are_rare():
    """At 2 standard errors most keys raise one of some 40 alarms, at 5 none of thirty keys does."""
    alarms = {2.0: 0, 5.0: 0}
    for seed in range(30):
        for level in alarms:
            try:
                assert_unbiased(GRID, UPDATE, jax.random.key(seed), draws=200, standard_errors=level)
            except AssertionError:
                alarms[level] += 1
    assert alarms[5.0] == 0
    assert alarms[2.0] > 10


def test_a_variance_within_its_bound():
    numbers = sum(leaf.size for leaf in jax.tree.leaves(UPDATE))
    grid_bound = numbers * 0.25**2 / 4
    assert_variance_bounded(GRID, UPDATE, grid_bound, KEY)
    assert_variance_bounded(IDENTITY, UPDATE, 0.0, KEY)

    def of_random_k(update):
        return 3 * sum(np.sum(leaf**2) for leaf in jax.tree.leaves(update))  # 1 / 0.25 - 1

    assert_variance_bounded(RANDOM_K, UPDATE, of_random_k, KEY)
    with pytest.raises(AssertionError, match=r"the mean squared error is .*; the bound is .*, and with the error of"):
        assert_variance_bounded(RANDOM_K, UPDATE, lambda update: of_random_k(update) / 2, KEY)
    coarse = numberwise(lambda leaf, key: to_a_grid(leaf, key, step=0.5))
    with pytest.raises(AssertionError, match="the mean squared error is"):
        assert_variance_bounded(coarse, UPDATE, grid_bound, KEY)


def clips(leaf, key):
    return jnp.clip(leaf, -1, 1)


def test_a_round_trip():
    for codec in (GRID, stochastic_uniform(4), top_k(0.3), error_feedback(fixed_point(8))):
        assert_round_trip(codec, UPDATE, KEY)
    assert_round_trip(IDENTITY, UPDATE, KEY, exact=True)
    with pytest.raises(AssertionError, match=r"what is received: leaf \['a'\] is .* they differ by"):
        assert_round_trip(GRID, UPDATE, KEY, exact=True)


def forgets(change):
    """The identity, with a decoder that changes the tree."""
    return Codec(lambda update, key: update, change)


BROKEN_FORMS = {
    "dtype": (forgets(lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)), "dtype float32, expected bfl"),
    "shape": (
        forgets(lambda tree: jax.tree.map(lambda x: x.ravel(), tree)),
        r"leaf \['a'\] has shape \(24,\), expected",
    ),
    "structure": (forgets(jax.tree.leaves), "the structure is PyTreeDef"),
    "0 / 0": (numberwise(lambda leaf, key: leaf * leaf / leaf), r"leaf \['b'\] .* a number that is not finite"),
    "memory": (
        UpdateTransform(lambda update: 0.0, lambda update, state, key: (update, jnp.zeros(3), None)),
        "the memory after one round: leaf itself has shape",
    ),
    "bits": (
        UpdateTransform(lambda update: (), lambda update, state, key: (update, state, -8)),
        "the bits are .*-8.*, expected one number of at least 0",
    ),
}


@pytest.mark.parametrize("bug", BROKEN_FORMS)
def test_a_round_trip_that_changes_the_form(bug):
    codec, message = BROKEN_FORMS[bug]
    with pytest.raises(AssertionError, match=message):
        assert_round_trip(codec, UPDATE, KEY)


def test_numbers_that_are_not_finite():
    for codec in (IDENTITY, stochastic_uniform(4), error_feedback(top_k(0.1))):
        assert_rejects_non_finite(codec, UPDATE, KEY)
    assert_rejects_non_finite(IDENTITY, np.ones((3, 4), np.float32, order="F"), KEY)
    through_integers = numberwise(lambda leaf, key: (leaf * 8).astype(jnp.int32).astype(jnp.float32) / 8)
    for codec, bad in {
        numberwise(clips): "inf",
        through_integers: "nan",
        numberwise(lambda x, k: jnp.nan_to_num(x)): "nan",
    }.items():
        with pytest.raises(
            AssertionError, match=rf"a -?{bad} as number \d+ of leaf \['a'\] came out as finite numbers"
        ):
            assert_rejects_non_finite(codec, UPDATE, KEY)


ROUNDS = jax.tree.map(lambda leaf: np.stack([leaf * scale for scale in (1, -2, 0.5)]).astype(leaf.dtype), UPDATE)


def feedback(apply):
    return UpdateTransform(lambda update: jax.tree.map(jnp.zeros_like, update), apply)


def coarse(tree):
    return jax.tree.map(lambda leaf: jnp.round(leaf), tree)


def minus(left, right):
    return jax.tree.map(jnp.subtract, left, right)


def plus(left, right):
    return jax.tree.map(jnp.add, left, right)


def forgets_the_old(update, memory, key):
    sent = coarse(update)
    return sent, minus(update, sent), None


def remembers_the_update_only(update, memory, key):
    sent = coarse(plus(update, memory))
    return sent, minus(update, sent), None


def never_remembers(update, memory, key):
    return coarse(plus(update, memory)), memory, None


def test_error_feedback_that_conserves():
    for codec in (top_k(0.2), stochastic_uniform(2)):
        assert_error_feedback_conserves(error_feedback(codec), ROUNDS, KEY)


@pytest.mark.parametrize("bug", [forgets_the_old, remembers_the_update_only, never_remembers], ids=lambda f: f.__name__)
def test_error_feedback_that_loses_something(bug):
    with pytest.raises(
        AssertionError, match=r"after round \d, all that was received plus the memory, .* they differ by"
    ):
        assert_error_feedback_conserves(feedback(bug), ROUNDS, KEY)


def test_a_codec_that_loses_a_leaf_is_neither_unbiased_nor_bounded():
    update = {"a": jnp.linspace(-1, 1, 50), "b": jnp.ones(7)}
    loses = Codec(lambda update, key: {"a": update["a"]}, lambda payload: payload)
    for check in (assert_unbiased, lambda *arguments: assert_variance_bounded(*arguments[:2], 0.0, arguments[2])):
        with pytest.raises(AssertionError, match="what is received: the structure is"):
            check(loses, update, jax.random.key(0))
