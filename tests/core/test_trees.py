import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.core import trees

TREE = {"a": jnp.arange(6.0).reshape(2, 3), "b": (jnp.float32(7), jnp.zeros((0,)))}


def test_is_finite_sees_every_leaf():
    assert trees.is_finite(TREE)
    assert trees.is_finite(())
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        assert not trees.is_finite({**TREE, "c": jnp.array([0.0, bad])})


def test_is_finite_takes_integers():
    assert trees.is_finite({"n": jnp.int32(3)})


def test_zero_unless_lets_no_nan_through():
    tree = {"a": jnp.array([1.0, jnp.nan]), "n": jnp.int32(3)}
    chex.assert_trees_all_equal(trees.zero_unless(jnp.array(False), tree), {"a": jnp.zeros(2), "n": jnp.int32(0)})
    chex.assert_trees_all_equal(trees.zero_unless(jnp.array(True), tree), tree)


def test_select_takes_one_side_whole():
    other = jax.tree.map(lambda leaf: leaf * jnp.nan, TREE)
    chex.assert_trees_all_equal(trees.select(jnp.array(True), TREE, other), TREE)


@pytest.mark.parametrize(
    ("dtype", "bits"), [("float32", 32), ("bfloat16", 16), ("uint8", 8), ("int4", 4), ("bool", 8), ("uint2", 2)]
)
def test_size_in_bits_counts_what_a_dtype_takes(dtype, bits):
    assert trees.size_in_bits({"x": jax.ShapeDtypeStruct((3, 5), jnp.dtype(dtype))}) == 15 * bits


@pytest.mark.parametrize(("impl", "bits"), [("threefry2x32", 64), ("rbg", 128)])
def test_a_key_counts_as_its_data(impl, bits):
    keys = jax.random.split(jax.random.key(0, impl=impl), 3)
    assert trees.size_in_bits({"keys": keys, "x": jnp.zeros(2)}) == 3 * bits + 64
    assert trees.size_in_bits(jax.eval_shape(lambda: keys)) == 3 * bits


def test_scatter_writes_only_where_told_and_gather_reads_it_back():
    states = {"x": jnp.zeros((5, 2))}
    ids, rows = jnp.array([3, 1, 3]), {"x": jnp.array([[1.0, 1.0], [2.0, 2.0], [9.0, 9.0]])}
    written = trees.scatter(states, ids, rows, jnp.array([True, True, False]))
    np.testing.assert_array_equal(written["x"][:, 0], [0, 2, 0, 1, 0])
    np.testing.assert_array_equal(trees.gather(written, jnp.array([1, 3]))["x"][:, 0], [2, 1])


def test_narrow_leaves_are_widened_and_others_left_alone():
    wide = trees.at_least_float32({"h": jnp.ones(2, jnp.bfloat16), "w": jnp.ones(2)})
    assert wide["h"].dtype == wide["w"].dtype == jnp.float32


def test_replicate_adds_an_axis():
    chex.assert_tree_shape_prefix(trees.replicate(TREE, 4), (4,))
    assert trees.replicate((), 4) == ()
