import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_edge.compression import fixed_point
from fedjax_edge.core.trees import size_in_bits

BITS = [1, 7, 8, 16]
SIZE = 12
ROUNDING = 2.0**-23  # XLA divides by a constant by multiplying with its inverse


def through(codec):
    return jax.jit(lambda update: codec.decode(codec.encode(update, None)))


ROUND_TRIPS = {bits: through(fixed_point(bits)) for bits in [*BITS, 2]}


@pytest.mark.parametrize("bits", BITS)
@given(values=hnp.arrays(np.float32, SIZE, elements=st.floats(-1, 1, width=32)))
def test_numbers_in_range_go_to_the_nearest_multiple_of_the_step(bits, values):
    steps = np.float32(2**bits - 1)
    np.testing.assert_allclose(ROUND_TRIPS[bits](values), np.round(values * steps) / steps, rtol=ROUNDING)


@pytest.mark.parametrize("bits", BITS)
def test_every_multiple_of_the_step_stays_in_every_position_of_a_byte(bits):
    steps = 2**bits - 1
    grid = np.arange(-steps, steps + 1).astype(np.float32) / np.float32(steps)
    np.testing.assert_allclose(through(fixed_point(bits))(grid), grid, rtol=ROUNDING)


@pytest.mark.parametrize("bits", BITS)
@given(values=hnp.arrays(np.float32, SIZE, elements=st.floats(1, 2.0**127, width=32)))
def test_numbers_out_of_range_saturate(bits, values):
    np.testing.assert_allclose(ROUND_TRIPS[bits](values), np.ones(SIZE), rtol=ROUNDING)
    np.testing.assert_allclose(ROUND_TRIPS[bits](-values), -np.ones(SIZE), rtol=ROUNDING)


def test_ties_go_to_the_even_multiple_and_small_numbers_to_zero():
    decoded = ROUND_TRIPS[2](jnp.array([0.5, 2.5, -0.5, -1.5, 0.4, -0.49]) / 3)
    np.testing.assert_allclose(decoded, jnp.array([0.0, 2.0, 0.0, -2.0, 0.0, 0.0]) / 3, rtol=ROUNDING)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_arrives_as_nan_and_leaves_the_rest_alone(bits, bad):
    values = np.ones(SIZE, np.float32)
    values[5] = bad
    decoded = np.asarray(ROUND_TRIPS[bits](values))
    assert np.flatnonzero(np.isnan(decoded)).tolist() == [5]
    np.testing.assert_allclose(np.delete(decoded, 5), 1, rtol=ROUNDING)


@settings(max_examples=60)
@given(shapes=st.lists(hnp.array_shapes(min_dims=0, max_side=5, min_side=0), max_size=4), bits=st.integers(1, 16))
def test_a_number_costs_its_bits_and_one_for_the_sign(shapes, bits):
    update = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    payload = jax.eval_shape(lambda tree: fixed_point(bits).encode(tree, None), update)
    numbers = sum(int(np.prod(shape)) for shape in shapes)
    assert size_in_bits(payload) == 8 * -(-numbers * (bits + 1) // 8)


def test_structure_shapes_and_dtypes_are_kept():
    update = {"a": jnp.array(-1.0), "b": (jnp.ones((2, 0)), jnp.full((1, 3), 0.5, jnp.bfloat16))}
    decoded = through(fixed_point(8))(update)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), decoded) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), update
    )
    assert decoded["a"] == pytest.approx(-1) and decoded["b"][1][0, 0] == jnp.bfloat16(128 / 255)


def test_clients_are_encoded_by_themselves_under_vmap():
    updates = jax.random.uniform(jax.random.key(0), (4, SIZE), minval=-1.5, maxval=1.5)
    together = jax.vmap(ROUND_TRIPS[2])(updates)
    np.testing.assert_array_equal(together, [ROUND_TRIPS[2](update) for update in updates])


@pytest.mark.parametrize("bits", [0, 17, 2.5, True, "8"])
def test_impossible_bits_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits must be an integer from 1 to 16, got {bits!r}"):
        fixed_point(bits)
