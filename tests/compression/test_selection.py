import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_edge.compression.selection import largest_magnitudes

ROWS = jax.jit(jax.vmap(lambda values: largest_magnitudes(values, 30)))


def reference(values, kept):
    magnitudes = np.abs(values).view(np.uint32).astype(np.int64)
    return np.sort(np.argsort(-magnitudes, kind="stable")[:kept])


@settings(max_examples=15)
@given(
    wild=hnp.arrays(np.float32, 150, elements=st.floats(width=32)),
    few=hnp.arrays(np.float32, 150, elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, 3e-39])),
)
def test_the_largest_words_are_taken_and_of_equals_the_first(wild, few):
    rows = np.stack([wild, few])
    np.testing.assert_array_equal(ROWS(rows), [reference(row, 30) for row in rows])


@pytest.mark.parametrize(("size", "kept"), [(0, 0), (1, 1), (65, 64), (5000, 1)])
def test_any_number_of_any_number(size, kept):
    values = np.random.default_rng(0).normal(size=size).astype(np.float32)
    assert largest_magnitudes(values, kept).tolist() == reference(values, kept).tolist()
