import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.compression import random_k


def test_what_is_sent_is_multiplied_by_n_over_k_and_the_seed_says_where_it_belongs():
    update = jnp.arange(1.0, 11.0)
    scaled, plain = random_k(0.3), random_k(0.3, unbiased=False)
    payload = scaled.encode(update, jax.random.key(1))
    assert payload.values.shape == (3,) and payload.seed.dtype == jnp.uint32
    decoded = np.asarray(plain.decode(payload))
    sent = np.flatnonzero(decoded)
    np.testing.assert_array_equal(decoded[sent], update[sent])
    assert sorted(payload.values.tolist()) == decoded[sent].tolist()
    np.testing.assert_allclose(scaled.decode(payload), decoded * 10 / 3, rtol=1e-6)


def test_everything_is_sent_at_a_fraction_of_one():
    update = {"a": jnp.arange(5.0), "b": jnp.array([-1.0])}
    codec = random_k(1.0)
    decoded = codec.decode(codec.encode(update, jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, decoded, update)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, np.nan, True, "all"])
def test_impossible_fractions_are_refused(fraction):
    with pytest.raises(ValueError, match=rf"fraction must be a number in \(0, 1\], got {fraction!r}"):
        random_k(fraction)
