import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.aggregation import majority_vote
from fedjax_edge.testing import aggregate

KEY = jax.random.key(0)
VOTE = majority_vote()
UPDATES = {
    "a": np.array([[1e-30, -1, 2, 0], [-1e30, -5, -2, 0], [3, 4, 0, 0]], np.float32),
    "narrow": np.array([1, 2, -1], jnp.bfloat16),
}


def votes(weights, present=None, updates=UPDATES):
    return aggregate(VOTE, updates, weights, KEY, present=present)[0]


def test_the_majority_decides_ties_are_zero_and_zeros_abstain():
    decided = votes([1, 1, 1])
    assert decided["a"].tolist() == [1, -1, 0, 0]
    assert decided["narrow"].tolist() == 1 and decided["narrow"].dtype == jnp.float32


def test_weights_only_say_who_votes():
    assert votes([100, 0.5, 1])["a"].tolist() == [1, -1, 0, 0]
    for nothing in (0, -2):
        assert votes([1, 1, nothing])["a"].tolist() == [0, -1, 0, 0]
    assert votes([0, 0, 0])["a"].tolist() == [0, 0, 0, 0]


def test_who_is_absent_or_not_finite_has_no_vote():
    assert votes([1, 1, 1], present=[True, False, False])["a"].tolist() == [1, -1, 1, 0]
    spoilt = {**UPDATES, "a": UPDATES["a"].copy()}
    for bad in (np.nan, np.inf):
        spoilt["a"][0, 3] = bad
        assert votes([1, 1, 1], updates=spoilt)["a"].tolist() == [0, 0, -1, 0]


def test_a_thousand_narrow_votes_are_counted_exactly():
    updates = np.array([1] * 501 + [-1] * 500, jnp.bfloat16)
    assert votes(np.ones(1001), updates=updates) == 1
