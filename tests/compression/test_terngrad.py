import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.compression import terngrad


def test_a_number_is_sent_with_the_probability_of_its_magnitude_over_the_largest():
    update = {"a": jnp.array([1.0, -2.0, 4.0, 0.0]), "b": jnp.array([-100.0, 50.0])}
    codec = terngrad()
    decoded = jax.vmap(lambda key: codec.decode(codec.encode(update, key)))(jax.random.split(jax.random.key(0), 2000))
    assert [set(np.unique(c).tolist()) for c in np.asarray(decoded["a"]).T] == [{0, 4}, {-4, 0}, {4}, {0}]
    assert [set(np.unique(c).tolist()) for c in np.asarray(decoded["b"]).T] == [{-100}, {0, 100}]
    np.testing.assert_allclose((decoded["a"] != 0).mean(0), [0.25, 0.5, 1, 0], atol=5 * 0.5 / 2000**0.5)
