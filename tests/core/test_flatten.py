import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_edge.core.flatten import flatten

DTYPES = st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16])
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)


@st.composite
def leaves(draw):
    values = draw(hnp.arrays(np.float16, draw(shapes), elements=st.integers(-64, 64)))  # exact in every dtype
    return jax.device_put(values.astype(draw(DTYPES)))


trees = st.recursive(leaves(), lambda child: st.dictionaries(st.sampled_from("abc"), child, max_size=3), max_leaves=5)


def shape_of(tree):
    return jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


@settings(max_examples=15)
@given(trees)
def test_a_tree_survives_the_vector_with_its_structure_shapes_and_dtypes(tree):
    vector, shape = flatten(tree)
    assert vector.dtype == jnp.float32 and vector.shape == (shape.size,)
    expected = [np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(tree)]
    np.testing.assert_array_equal(vector, np.concatenate([np.zeros(0), *expected]))
    back = shape.unflatten(vector)
    assert shape_of(back) == shape_of(tree)
    jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_leaves_follow_each_other():
    tree = {"a": jnp.array([1.0, 2.0]), "b": (jnp.array([[3.0], [4.0]]), jnp.array(5.0))}
    vector, shape = flatten(tree)
    assert vector.tolist() == [1, 2, 3, 4, 5]
    back = shape.unflatten(10 * vector)
    assert back["a"].tolist() == [10, 20] and back["b"][0].tolist() == [[30], [40]] and back["b"][1] == 50


def test_a_tree_without_leaves_is_an_empty_vector():
    vector, shape = flatten({"a": (), "b": {}})
    assert vector.shape == (0,) and vector.dtype == jnp.float32 and shape.size == 0
    assert shape.unflatten(vector) == {"a": (), "b": {}}


def test_python_numbers_are_scalars():
    vector, shape = flatten((1.5, jnp.zeros(2)))
    assert vector.tolist() == [1.5, 0.0, 0.0] and shape.shapes == ((), (2,))


def test_equal_trees_have_equal_hashable_shapes_so_that_a_payload_compiles_once():
    traces = []

    @jax.jit
    def through(tree):
        traces.append(tree)
        vector, shape = flatten(tree)
        return shape.unflatten(vector + 1)

    one, other = {"a": jnp.zeros((2, 1))}, {"a": jnp.ones((2, 1))}
    assert flatten(one)[1] == flatten(other)[1] and hash(flatten(one)[1]) == hash(flatten(other)[1])
    assert through(one)["a"].tolist() == [[1.0], [1.0]] and through(other)["a"].tolist() == [[2.0], [2.0]]
    assert len(traces) == 1
    for different in ({"b": jnp.zeros((2, 1))}, {"a": jnp.zeros((1, 2))}, {"a": jnp.zeros((2, 1), jnp.bfloat16)}):
        assert flatten(one)[1] != flatten(different)[1]
