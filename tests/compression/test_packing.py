from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_edge.compression.packing import Packed, pack, unpack

WIDTHS = range(1, 18)
COUNTS = [0, 1, 3, 16]


@partial(jax.jit, static_argnums=1)
def round_trip(codes, bits):
    return pack(codes, bits).content, unpack(pack(codes, bits))


def as_one_integer(codes, bits):
    return sum(int(code) << (position * bits) for position, code in enumerate(codes))


@pytest.mark.parametrize("bits", WIDTHS)
@settings(max_examples=8)
@given(data=st.data())
def test_unpacking_undoes_packing_and_nothing_lies_between_the_codes(bits, data):
    count = data.draw(st.sampled_from(COUNTS))
    numbers = st.integers(0, 2**bits - 1)
    codes = np.array(data.draw(st.lists(numbers, min_size=count, max_size=count)), np.uint32)
    packed, unpacked = round_trip(codes, bits)
    assert packed.dtype == jnp.uint8 and packed.shape == (-(-count * bits // 8),)
    assert int.from_bytes(bytes(packed), "little") == as_one_integer(codes, bits)
    assert unpacked.dtype == jnp.uint32
    np.testing.assert_array_equal(unpacked, codes)


@pytest.mark.parametrize("bits", [1, 3, 8, 16, 17])
def test_the_smallest_and_the_largest_code_survive_side_by_side(bits):
    codes = np.array([2**bits - 1, 0] * 8, np.uint32)
    np.testing.assert_array_equal(round_trip(codes, bits)[1], codes)
    np.testing.assert_array_equal(round_trip(codes[::-1], bits)[1], codes[::-1])


@pytest.mark.parametrize("bits", [3, 8])
def test_rows_are_packed_by_themselves_under_vmap(bits):
    codes = jax.random.bits(jax.random.key(1), (4, 5), jnp.uint32) % (2**bits)
    packed = jax.vmap(lambda row: pack(row, bits).content)(codes)
    np.testing.assert_array_equal(packed, [pack(row, bits).content for row in codes])
    np.testing.assert_array_equal(jax.vmap(lambda row: unpack(Packed(row, bits, 5)))(packed), codes)
