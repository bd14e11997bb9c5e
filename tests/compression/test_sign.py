import jax.numpy as jnp
import numpy as np

from fedjax_edge.compression import scaled_sign, sign
from fedjax_edge.compression.packing import unpack


def test_a_zero_of_either_sign_is_sent_as_plus():
    payload = sign().encode(jnp.array([0.0, -0.0, 1e-30, -1e-30, -7.0]), None)
    assert unpack(payload.signs).tolist() == [0, 0, 0, 1, 1]
    assert sign().decode(payload).tolist() == [1, 1, 1, -1, -1]


def test_each_leaf_has_its_own_mean_magnitude():
    update = {"a": jnp.array([1.0, -2.0, 6.0]), "b": jnp.array([[-8.0, 0.0]]), "c": jnp.zeros(2)}
    decoded = scaled_sign().decode(scaled_sign().encode(update, None))
    np.testing.assert_allclose(decoded["a"], [3, -3, 3], rtol=1e-6)
    np.testing.assert_allclose(decoded["b"], [[-4, 4]], rtol=1e-6)
    assert decoded["c"].tolist() == [0, 0]
