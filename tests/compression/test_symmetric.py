import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.compression import symmetric
from fedjax_edge.core.trees import size_in_bits


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_a_number_goes_to_the_nearest_level_and_zero_is_one(bits):
    weights = np.append(np.random.default_rng(0).normal(size=50), [0, 3, -3]).astype(np.float32)
    payload = symmetric(bits).encode({"w": weights, "b": jnp.zeros((2, 1))}, None)
    assert size_in_bits(payload) == 8 * -(-53 * bits // 8) + 8 * -(-2 * bits // 8) + 2 * 32
    decoded = symmetric(bits).decode(payload)
    levels = 3 * np.arange(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1)) / (2 ** (bits - 1) - 1)
    nearest = levels[np.abs(weights[:, None].astype(np.float64) - levels).argmin(1)]
    np.testing.assert_allclose(decoded["w"], nearest, atol=1e-6)
    assert decoded["w"][50] == 0 and not decoded["b"].any()


def test_a_decoded_model_is_decoded_again_as_it_is():
    weights = jax.random.normal(jax.random.key(0), (30,))
    once = symmetric(8).decode(symmetric(8).encode(weights, None))
    np.testing.assert_allclose(symmetric(8).decode(symmetric(8).encode(once, None)), once, rtol=1e-6)


@pytest.mark.parametrize("bits", [1, 17, 2.5, True])
def test_impossible_bits_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits must be an integer from 2 to 16, got {bits!r}"):
        symmetric(bits)
