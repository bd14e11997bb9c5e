import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax_edge.privacy.noise import _uniform_and_sign, laplace, normal

FALSE_ALARM = 1e-6
LAWS = {"normal": (normal, stats.norm, 9.15), "laplace": (laplace, stats.laplace, 44.3)}
each_law = pytest.mark.parametrize("name", LAWS)
DRAWS = {name: np.asarray(draw(jax.random.key(0), (10**6,), jnp.float32)) for name, (draw, _, _) in LAWS.items()}


@each_law
def test_draws_follow_their_law(name):
    _, law, _ = LAWS[name]
    draws = DRAWS[name].astype(np.float64)
    assert stats.kstest(draws, law.cdf).pvalue > FALSE_ALARM
    for power in range(1, 5):
        mean, square = (law.expect(lambda x, k=k: x**k) for k in (power, 2 * power))
        assert abs(np.mean(draws**power) - mean) < 5 * np.sqrt((square - mean**2) / draws.size)


@each_law
def test_tails_have_their_mass_on_either_side(name):
    _, law, _ = LAWS[name]
    for sign in (1, -1):
        for beyond in (1.0, 3.0, 4.0):
            low, high = stats.binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], 10**6, law.sf(beyond))
            assert low <= np.sum(sign * DRAWS[name] > beyond) <= high


@each_law
def test_the_furthest_draw_is_as_rare_as_two_words_allow(name, monkeypatch):
    draw, law, furthest = LAWS[name]
    for low, sign in ((0, 1), (1, -1)):
        monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype, low=low: jnp.array([[0], [low]], dtype))
        (extreme,) = np.asarray(draw(jax.random.key(0), (1,), jnp.float32), np.float64)
        assert abs(extreme) > furthest and np.sign(extreme) == -sign
        assert 2 * law.sf(abs(extreme)) == pytest.approx(2.0**-64, rel=1e-4)


def test_uniform_numbers_are_never_zero_and_fine_near_it():
    uniform, sign = _uniform_and_sign(jax.random.key(1), (100_000,), jnp.float32)
    assert float(uniform.min()) > 0 and float(uniform.max()) <= 1
    assert len(np.unique(np.asarray(uniform))) > 99_000
    assert abs(float(sign.mean())) < 5 / np.sqrt(100_000)


@each_law
def test_shapes_and_dtypes(name):
    draw, law, _ = LAWS[name]
    for shape in ((), (0, 2), (3, 1)):
        for dtype in (jnp.float32, jnp.bfloat16):
            drawn = draw(jax.random.key(0), shape, dtype)
            assert drawn.shape == shape and drawn.dtype == dtype
    with jax.enable_x64(True):
        wide = draw(jax.random.key(0), (1000,), np.dtype(np.float64))
        assert wide.dtype == jnp.float64 and stats.kstest(np.asarray(wide), law.cdf).pvalue > FALSE_ALARM
