import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import entropy

from fedjax_edge.compression import (
    coded_size,
    compose,
    elias_bits,
    entropy_bits,
    entropy_coded,
    error_feedback,
    half_precision,
    qsgd,
    stochastic_uniform,
    top_k,
)
from fedjax_edge.core.trees import size_in_bits

KEY = jax.random.key(0)
BITS = jax.jit(entropy_bits, static_argnums=1)


def reference(codes, bits):
    counts = np.unique(codes, return_counts=True)[1]
    return codes.size * entropy(counts, base=2) + len(counts) * (bits + np.ceil(np.log2(codes.size + 1)))


@settings(max_examples=20)
@given(
    small=hnp.arrays(np.int8, (4, 10), elements=st.integers(-128, 127)),
    few=hnp.arrays(np.int32, 40, elements=st.sampled_from([-(2**31), -1, 0, 5, 2**31 - 1])),
)
def test_the_entropy_is_scipys_by_histogram_and_by_sorting(small, few):
    for codes in (small, few):
        width = 8 * codes.itemsize
        np.testing.assert_allclose(BITS(codes, None), reference(codes, width), rtol=1e-5)
    unsigned = few.astype(np.int64).clip(0, 5).astype(np.uint32)
    np.testing.assert_allclose(BITS(unsigned, 3), reference(unsigned, 3), rtol=1e-5)
    np.testing.assert_allclose(BITS(unsigned, None), reference(unsigned, 32), rtol=1e-5)


def test_codes_worked_by_hand():
    assert float(BITS(jnp.zeros(0, jnp.int32), None)) == 0
    assert float(BITS(jnp.full(7, 3, jnp.int32), None)) == 32 + 3  # one code, and a count below 8
    assert float(BITS(jnp.array([0, 1, 2, 3], jnp.uint8), 2)) == 4 * 2 + 4 * (2 + 3)
    with pytest.raises(TypeError, match="codes must be integers, got float32"):
        entropy_bits(jnp.ones(3))


@pytest.mark.parametrize(
    ("number", "bits"), [(1, 1), (2, 3), (3, 3), (4, 6), (7, 6), (8, 7), (15, 7), (16, 11), (100, 13)]
)
def test_elias_lengths_are_those_of_the_omega_code(number, bits):
    distance_and_sign = 2
    assert int(elias_bits(jnp.array([number]))) == bits + distance_and_sign
    assert int(elias_bits(jnp.array([*[0] * (number - 1), -1]))) == bits + 2
    assert int(elias_bits(jnp.array([*[0] * (number - 1), -1, 0, 0]))) == bits + 2


def test_no_level_costs_nothing():
    assert int(elias_bits(jnp.zeros(5, jnp.int32))) == int(elias_bits(jnp.zeros(0, jnp.int32))) == 0


def test_what_a_user_sees_is_the_payload_with_its_codes_at_their_entropy():
    update = jnp.asarray(np.random.default_rng(0).normal(size=4000).astype(np.float32))
    codec = qsgd(1)
    received, _, bits = jax.jit(entropy_coded(codec).apply)(update, (), KEY)
    np.testing.assert_array_equal(received, codec.decode(codec.encode(update, KEY)))
    levels = np.round(np.asarray(received) / np.abs(received).max()).astype(int)
    assert int(bits) == np.ceil(reference(levels, 2)) + 32 + 1 < size_in_bits(codec.encode(update, KEY)) / 4
    assert int(jax.jit(error_feedback(codec, coded_size).apply)(update, jnp.zeros(4000), KEY)[2]) == int(bits)
    nonzero = (levels != 0).sum()
    assert 2 * nonzero < int(elias_bits(jnp.asarray(levels))) < 20 * nonzero


def test_codes_that_an_entropy_coder_would_lengthen_are_sent_as_they_are():
    update = {"a": jnp.linspace(-1, 1, 64), "b": jnp.zeros((0, 2))}
    payload = stochastic_uniform(6).encode(update, KEY)
    assert int(coded_size(payload)) == size_in_bits(payload) + 2
    payload = top_k(0.5).encode(update, KEY)
    assert int(coded_size(payload)) == size_in_bits(payload) + 1


def test_codes_within_composed_payloads_are_found():
    update = jnp.zeros(4000).at[::4].set(1.0).at[1].set(3.0)
    codec = compose(top_k(0.25), stochastic_uniform(8))
    payload = codec.encode(update, KEY)
    assert int(coded_size(payload)) < size_in_bits(payload) - 7 * 1000 + 100  # nearly all are the same level


def test_codes_of_the_first_of_composed_codecs_are_found():
    update = jnp.linspace(-1, 1, 4000)
    first, both = (int(coded_size(c.encode(update, KEY))) for c in (qsgd(1), compose(qsgd(1), half_precision())))
    assert both < first + 100 < 2000  # of 8000 bits of codes; its norm, a float, is what the second codec gets


def test_entropy_coded_refuses_what_is_no_codec():
    with pytest.raises(TypeError, match="entropy_coded wraps a Codec"):
        entropy_coded(error_feedback(qsgd(1)))
