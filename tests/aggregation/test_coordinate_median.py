import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_edge.aggregation import coordinate_median
from fedjax_edge.core.protocols import Stacked

COHORT = 6

median = coordinate_median()
rows_of = hnp.arrays(np.float32, (COHORT, 7), elements=st.floats(-100, 100, width=32, allow_subnormal=False))
masks = hnp.arrays(bool, COHORT)


def as_tree(rows):
    return {"a": rows[..., 0], "b": (rows[..., 1:].reshape(*rows.shape[:-1], 2, 3),)}


def as_rows(tree):
    return np.concatenate([np.reshape(tree["a"], 1), np.ravel(tree["b"][0])])


@jax.jit
def finish(rows, present):
    contributions = jax.vmap(lambda row: median.contribution(as_tree(row), jnp.float32(1), ()))(rows)
    return median.finish(Stacked(contributions, present), (), jax.random.key(0))[0]


@given(rows_of, masks, st.sampled_from([0.0, 1e30, -np.inf, np.inf, np.nan]))
def test_the_median_of_those_present_is_that_of_numpy_whatever_the_others_hold(rows, present, garbage):
    expected = np.median(rows[present], axis=0) if present.any() else np.zeros(7)
    rows[~present] = garbage
    np.testing.assert_allclose(as_rows(finish(rows, present)), expected, rtol=1e-6, atol=1e-30)


def test_odd_and_even_counts_one_and_nobody():
    rows = np.tile(np.array([[5], [1], [100], [2], [9], [7]], np.float32), 7)
    for count, expected in {0: 0, 1: 5, 2: 3, 3: 5, 4: 3.5, 5: 5, 6: 6}.items():
        assert (as_rows(finish(rows, np.arange(COHORT) < count)) == expected).all()


@given(rows_of, masks, st.permutations(range(COHORT)))
def test_the_order_of_clients_plays_no_part(rows, present, order):
    one, other = finish(rows, present), finish(rows[order], present[order])
    np.testing.assert_array_equal(as_rows(one), as_rows(other))


@given(rows_of, hnp.arrays(np.float32, (2, 7), elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_a_minority_cannot_move_it_out_of_the_range_of_the_honest(rows, hostile):
    honest = rows[2:].copy()
    rows[:2] = hostile
    result = as_rows(finish(rows, np.ones(COHORT, bool)))
    assert (honest.min(0) <= result).all() and (result <= honest.max(0)).all()


def test_coordinates_are_taken_one_by_one():
    rows = np.zeros((COHORT, 7), np.float32)
    rows[:3] = [[1, 2, 3, 4, 5, 6, 7], [3, 1, 9, 2, 7, 5, 8], [2, 3, 6, 9, 6, 7, 9]]
    result = as_rows(finish(rows, np.arange(COHORT) < 3))
    assert result.tolist() == [2, 2, 6, 4, 6, 6, 8]


def test_the_middle_of_two_large_numbers_does_not_overflow():
    rows = np.full((COHORT, 7), 3e38, np.float32)
    np.testing.assert_allclose(as_rows(finish(rows, np.ones(COHORT, bool))), 3e38, rtol=1e-6)


def test_weights_play_no_part_and_contributions_are_stacked_as_they_are():
    update = {"a": jnp.array([1.0, -2.0])}
    assert median.stacked and jax.tree.leaves(median.init(update)) == []
    assert median.contribution(update, jnp.float32(0), ())["a"].tolist() == [1.0, -2.0]


def test_dtypes_are_kept():
    rows = {"w": jnp.array([[1.0], [2.0], [4.0]], jnp.bfloat16)}
    for present, expected in (([True] * 3, 2.0), ([True, True, False], 1.5), ([False] * 3, 0.0)):
        result, _ = median.finish(Stacked(rows, jnp.array(present)), (), None)
        assert result["w"].dtype == jnp.bfloat16 and result["w"].tolist() == [expected]
