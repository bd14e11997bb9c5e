"""The strategies give what they say, and come upon the awkward cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from fedjax_edge.core.checks import float_tree
from fedjax_edge.testing import assert_close, assert_same_kind
from fedjax_edge.testing.strategies import AWKWARD, client_updates, cohorts, float_trees, trees_like, weights

few = settings(max_examples=15)
UNSHRUNK = settings(max_examples=200, phases=[Phase.generate])


def leaves_satisfy(condition):
    return lambda tree: any(condition(np.asarray(leaf)) for leaf in jax.tree.leaves(tree))


@few
@given(float_trees(), trees_like(AWKWARD, magnitude=2.0), client_updates(3, {"w": np.zeros(2, np.float32)}))
def test_trees_are_finite_floats_of_the_form_asked_for(tree, awkward, updates):
    float_tree("tree", tree)
    assert_same_kind("like AWKWARD", awkward, AWKWARD)
    assert updates["w"].shape == (3, 2)
    for leaf in jax.tree.leaves((tree, awkward, updates)):
        assert np.isfinite(np.asarray(leaf)).all()
    assert all(np.abs(np.asarray(leaf, np.float32)).max(initial=0) <= 2 for leaf in jax.tree.leaves(awkward))


CASES = {
    "scalar": lambda leaf: leaf.ndim == 0,
    "empty": lambda leaf: leaf.size == 0,
    "one number": lambda leaf: leaf.shape == (1,),
    "zero": lambda leaf: leaf.size > 1 and not leaf.any(),
    "constant": lambda leaf: leaf.size > 1 and leaf.any() and (leaf == leaf.ravel()[0]).all(),
    "varied": lambda leaf: leaf.size > 1 and len(set(leaf.ravel().tolist())) > 1,
    "narrow": lambda leaf: leaf.dtype == jnp.bfloat16,
}


@pytest.mark.parametrize("case", CASES)
def test_awkward_leaves_come_up(case):
    find(float_trees(), leaves_satisfy(CASES[case]), settings=UNSHRUNK)


@few
@given(weights(4), cohorts(num_clients=3, width=5))
def test_weights_and_cohorts(row, cohort):
    row, ids, present = np.asarray(row), np.asarray(cohort.ids), np.asarray(cohort.present)
    assert row.shape == (4,) and row.dtype == np.float32 and (row >= 0).all() and row.any()
    assert ids.dtype == np.int32 and present.dtype == bool and ids.shape == present.shape == (5,)
    assert len(set(ids[present])) == present.sum() <= 3
    assert ((ids >= 0) & (ids < 3)).all()


@pytest.mark.parametrize(
    ("strategy", "case"),
    [
        (cohorts(), lambda cohort: not cohort.present.any()),
        (cohorts(), lambda cohort: bool(cohort.present.all())),
        (cohorts(), lambda cohort: bool(cohort.present[-1]) and not bool(cohort.present[0])),
        (weights(), lambda row: not bool(row[0])),
        (weights(), lambda row: bool(row[0] % 1)),
    ],
    ids=["nobody", "everybody", "padding first", "a weight of zero", "a fraction"],
)
def test_awkward_cohorts_and_weights_come_up(strategy, case):
    find(strategy, case, settings=UNSHRUNK)


def test_impossible_strategies_are_refused():
    with pytest.raises(ValueError, match="clients must be an integer of at least 1, got 0"):
        weights(0)
    with pytest.raises(ValueError, match="width must be"):
        find(cohorts(width=0), lambda cohort: True)


@few
@given(st.floats(-100, 100, width=32), st.floats(2.0**-10, 1, width=32))
def test_comparing_notices_what_is_more_than_rounding(number, gap):
    one = {"w": np.array([number, 100.0], np.float32)}
    assert_close("same", one, one)
    assert_close("nearly", {"w": one["w"] * np.float32(1 + 1e-6)}, one)
    with pytest.raises(AssertionError, match=r"other: leaf \['w'\] is .* at \(0,\), expected .*; they differ by"):
        assert_close("other", {"w": one["w"] + np.array([gap, 0], np.float32)}, one)


def test_comparing_special_values():
    nan, inf = np.float32(np.nan), np.float32(np.inf)
    assert_close("same", [nan, inf, jnp.int32(3), jax.random.key(1)], [nan, inf, jnp.int32(3), jax.random.key(1)])
    for a, b in [(nan, np.float32(0)), (inf, -inf), (np.int32(3), np.int32(4)), (jax.random.key(1), jax.random.key(2))]:
        with pytest.raises(AssertionError, match="they differ by"):
            assert_close("other", a, b)
    with pytest.raises(AssertionError, match=r"the leaves are .*'a'.*, expected .*'b'"):
        assert_close("other", {"a": nan}, {"b": nan})
