import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedjax_edge.core.bundle import SMALL, bundle, unbundle

DTYPES = ["float32", "int32", "bfloat16", "uint8", "bool"]
SHAPES = [(), (0,), (3,), (2, 5), (SMALL,), (SMALL + 1,), (2, SMALL), (SMALL, 2)]
leaf = st.tuples(st.sampled_from(SHAPES), st.sampled_from(DTYPES))
leaves = st.lists(leaf, max_size=12)


def trees(shapes_and_dtypes):
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.integers(0, 2, shape)).astype(dtype) for shape, dtype in shapes_and_dtypes]
    return {"first": arrays[::2], "rest": (arrays[1::2], None)}


@given(leaves)
def test_round_trip(shapes_and_dtypes):
    tree = trees(shapes_and_dtypes)
    back = unbundle(bundle(tree))
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@given(st.lists(leaf, min_size=1, max_size=12))
def test_stacked_bundles_are_bundles_of_stacks(shapes_and_dtypes):
    tree = trees(shapes_and_dtypes)
    other = jax.tree.map(jnp.zeros_like, tree)
    twice = jax.tree.map(lambda *leaves: jnp.stack(leaves), tree, other)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), bundle(tree), bundle(other))
    jax.tree.map(np.testing.assert_array_equal, unbundle(stacked), twice)
    jax.tree.map(np.testing.assert_array_equal, unbundle(jax.vmap(bundle)(twice)), twice)


def test_numbers_are_arrays_of_their_dtype():
    back = unbundle(bundle({"update": np.ones(3, np.float32), "weight": 1.0, "count": 2}))
    assert jax.tree.map(jnp.result_type, back) == {"update": "float32", "weight": "float32", "count": "int32"}
    assert (back["weight"], back["count"]) == (1.0, 2)


@given(leaves)
def test_one_array_for_the_small_leaves_of_a_dtype(shapes_and_dtypes):
    bundled = bundle(trees(shapes_and_dtypes))
    small = [dtype for shape, dtype in shapes_and_dtypes if np.prod(shape) <= SMALL]
    assert sorted(bundled.small) == sorted(set(small))
    assert len(bundled.large) == len(shapes_and_dtypes) - len(small)
