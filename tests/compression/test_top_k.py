import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_edge.compression import top_k
from fedjax_edge.core.trees import size_in_bits

FRACTIONS = [0.001, 0.1, 0.34, 0.5, 1.0]


def through(codec):
    return jax.jit(lambda update: codec.decode(codec.encode(update, None)))


ROUND_TRIPS = {fraction: through(top_k(fraction)) for fraction in FRACTIONS}


def reference(vector, fraction):
    kept = np.argsort(-np.abs(vector), kind="stable")[: max(1, round(fraction * vector.size))]
    decoded = np.zeros_like(vector)
    decoded[kept] = vector[kept]
    return decoded


@pytest.mark.parametrize("fraction", FRACTIONS)
@given(
    vector=hnp.arrays(np.float32, 21, elements=st.floats(allow_nan=False, width=32, allow_subnormal=False)),
    few=hnp.arrays(np.float32, 21, elements=st.sampled_from([-1.0, 0.0, 1.0, 2.0])),
)
def test_the_largest_magnitudes_of_the_whole_tree_stay_the_first_of_equals(fraction, vector, few):
    for values in (vector, few):
        update = {"a": values[:5], "b": [values[5:6].reshape(()), values[6:].reshape(3, 5)]}
        decoded = ROUND_TRIPS[fraction](update)
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(decoded)])
        np.testing.assert_array_equal(flat, reference(values, fraction))


@pytest.mark.parametrize("fraction", FRACTIONS)
@given(vector=hnp.arrays(np.float32, 21, elements=st.floats(width=32)), position=st.integers(0, 20))
def test_a_nan_or_an_infinity_reaches_the_server(fraction, vector, position):
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        vector[position] = bad
        assert not np.isfinite(ROUND_TRIPS[fraction](vector)).all()
    vector[position], vector[position - 1] = np.nan, np.inf
    assert np.isnan(ROUND_TRIPS[fraction](vector)).any()


@settings(max_examples=60)
@given(shapes=st.lists(hnp.array_shapes(min_dims=0, max_side=7), min_size=1, max_size=4), fraction=st.floats(1e-3, 1))
def test_a_kept_number_costs_32_bits_and_those_of_its_index(shapes, fraction):
    update = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    payload = jax.eval_shape(lambda tree: top_k(fraction).encode(tree, None), update)
    size = sum(int(np.prod(shape)) for shape in shapes)
    kept = max(1, round(fraction * size))
    index_bits = max(1, int(np.ceil(np.log2(size))))
    assert size_in_bits(payload) == 32 * kept + 8 * -(-kept * index_bits // 8)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 70_000])
def test_every_index_survives_packing(size):
    vector = jnp.zeros(size).at[-1].set(-2.0)
    np.testing.assert_array_equal(ROUND_TRIPS[0.001](vector), vector)
    np.testing.assert_array_equal(ROUND_TRIPS[1.0](vector), vector)


def test_structure_shapes_and_dtypes_are_kept():
    update = {"a": jnp.array(3.0, jnp.bfloat16), "b": (jnp.ones((2, 0)), jnp.full((1, 3), 0.5))}
    decoded = ROUND_TRIPS[0.1](update)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), decoded) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), update
    )
    assert decoded["a"] == 3 and not decoded["b"][1].any()


@pytest.mark.parametrize("empty", [{}, {"a": jnp.zeros((0, 2))}])
def test_an_empty_update_costs_nothing(empty):
    payload = top_k(0.5).encode(empty, None)
    assert size_in_bits(payload) == 0
    assert jax.tree.structure(top_k(0.5).decode(payload)) == jax.tree.structure(empty)


def test_clients_keep_their_own_indices_under_vmap():
    updates = jax.random.normal(jax.random.key(0), (4, 21))
    together = jax.vmap(ROUND_TRIPS[0.34])(updates)
    np.testing.assert_array_equal(together, [reference(np.asarray(update), 0.34) for update in updates])


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, np.nan, True, "all"])
def test_impossible_fractions_are_refused(fraction):
    with pytest.raises(ValueError, match=rf"fraction must be a number in \(0, 1\], got {fraction!r}"):
        top_k(fraction)
