import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_edge.core.counts import Count


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=50))
def test_counts_add_exactly_past_32_bits(values):
    counts = [Count.of(value) for value in values]
    assert jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *counts).value() == sum(values)


@pytest.mark.parametrize("value", [0, 1, 2_047, 2_048, 2**22, 2**31, 2**53 - 1])
def test_python_integers_survive(value):
    assert Count.of(value).value() == value


def test_a_million_clients_add_up():
    bits = jnp.full(1_000_000, 2**31 - 1, jnp.int32)
    total = jax.tree.map(lambda part: part.sum(dtype=jnp.int32), Count.of(bits))
    assert total.value() == 1_000_000 * (2**31 - 1)


@given(st.integers(0, 2**45), st.integers(0, 2**20 - 1))
def test_counts_multiply_exactly(value, factor):
    product = Count.of(value).times(jnp.int32(factor % 300 if value > 2**34 else factor))
    assert product.value() == value * (factor % 300 if value > 2**34 else factor)
    assert max(product.middle, product.low) < 2**11


def test_arrays_are_split_under_jit():
    values = jnp.array([0, 70_000, 2**31 - 1], jnp.int32)
    np.testing.assert_array_equal(jax.jit(Count.of)(values).value(), np.asarray(values, np.int64))


@pytest.mark.parametrize("value", [1.5, jnp.float32(8), True])
def test_what_is_no_integer_is_refused(value):
    with pytest.raises(TypeError, match="a count, such as that of a payload's bits, must be an integer, got"):
        Count.of(value)
