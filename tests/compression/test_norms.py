import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge import compression
from fedjax_edge.compression.norms import l2_norm, largest, mean_magnitude

pytestmark = pytest.mark.usefixtures("optimized")
LARGE = jnp.array([2e38, -1e38]) / 1.5
CODECS = {
    "qsgd": compression.qsgd(4),
    "terngrad": compression.terngrad(),
    "symmetric": compression.symmetric(8),
    "scaled_sign": compression.scaled_sign(),
    "eden": compression.eden(8),
    "stochastic_uniform": compression.stochastic_uniform(1),
}


def test_norms_of_large_numbers():
    assert float(jax.jit(l2_norm)(LARGE)) == pytest.approx(5**0.5 * 1e38 / 1.5, rel=1e-6)
    assert float(jax.jit(mean_magnitude)(LARGE)) == pytest.approx(1e38, rel=1e-6)
    assert float(jax.jit(largest)(LARGE)) == float(LARGE[0])


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_large_updates_decode_like_small_ones(codec):
    round_trip = jax.jit(lambda update, key: codec.decode(codec.encode(update, key)))
    scale = 2.0**-100  # exact: what is decoded moves with what is sent
    for seed in range(5):
        large, small = (np.asarray(round_trip(update, jax.random.key(seed))) for update in (LARGE, LARGE * scale))
        np.testing.assert_allclose(large * scale, small, rtol=1e-6)
