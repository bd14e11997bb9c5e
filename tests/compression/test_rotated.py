import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import hadamard as matrix

from fedjax_edge.compression import half_precision, rotated, stochastic_uniform
from fedjax_edge.core.hadamard import hadamard
from fedjax_edge.core.protocols import Codec

EXACT = Codec(lambda update, key: update, lambda payload: payload)


def test_the_transform_is_that_of_the_matrix_and_undoes_itself():
    for size in (1, 2, 64):
        vector = jax.random.normal(jax.random.key(0), (size,))
        np.testing.assert_allclose(hadamard(vector), matrix(size) @ np.asarray(vector) / size**0.5, atol=1e-5)
        np.testing.assert_allclose(hadamard(hadamard(vector)), vector, atol=1e-5)


def test_a_single_number_is_spread_evenly_with_its_norm_and_comes_back():
    update = {"a": jnp.zeros(4), "b": jnp.array([0.0, 6.0, 0.0])}
    codec = rotated(EXACT)
    payload = codec.encode(update, jax.random.key(0))
    np.testing.assert_allclose(np.abs(payload.payload), np.full(8, 6 / 8**0.5), rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), codec.decode(payload), update)


def test_signs_differ_from_seed_to_seed_and_within():
    payloads = jax.vmap(lambda key: rotated(EXACT).encode(jnp.ones(64), key).payload)(
        jax.random.split(jax.random.key(0), 50)
    )
    assert len(np.unique(np.asarray(payloads), axis=0)) == 50
    spread = np.asarray(payloads)  # ones with 64 fair coins: coordinates are sums of coins over 8
    np.testing.assert_allclose((spread**2).sum(1), 64, rtol=1e-5)
    assert np.abs(spread).max() < 6  # without signs: one coordinate of 8


def test_rotation_lowers_the_error_of_an_update_with_one_large_number():
    update = jax.random.normal(jax.random.key(1), (256,)).at[3].set(100.0)

    def error(codec):
        one = lambda key: jnp.sum((codec.decode(codec.encode(update, key)) - update) ** 2)  # noqa: E731
        return float(jax.jit(lambda keys: jax.vmap(one)(keys).mean())(jax.random.split(jax.random.key(0), 100)))

    assert error(rotated(stochastic_uniform(2))) < error(stochastic_uniform(2)) / 4


def test_narrow_leaves_and_any_codec_inside():
    update = {"a": jnp.full(3, 2.0, jnp.bfloat16), "b": jnp.float32(-1)}
    codec = rotated(half_precision(jnp.float16))
    decoded = codec.decode(codec.encode(update, jax.random.key(0)))
    assert decoded["a"].dtype == jnp.bfloat16
    np.testing.assert_allclose(decoded["b"], -1, atol=1e-2)
