import jax
import numpy as np
import pytest
from scipy import stats

from fedjax_edge.privacy.integer_noise import discrete_gaussian_noise, skellam_noise

FALSE_ALARM = 1e-6
DRAWS = 100_000


def gaussian_law(sigma, reach=400):
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def skellam_law(variance, reach=400):
    return stats.skellam.pmf(np.arange(-reach, reach + 1), variance / 2, variance / 2)


LAWS = {
    "gaussian 0.5": (discrete_gaussian_noise(0.5), gaussian_law(0.5)),
    "gaussian 7.3": (discrete_gaussian_noise(7.3), gaussian_law(7.3)),
    "skellam 0.4": (skellam_noise(0.4), skellam_law(0.4)),
    "skellam 50": (skellam_noise(50.0), skellam_law(50.0)),
}
each_law = pytest.mark.parametrize("name", LAWS)


def probabilities(noise, reach=400):
    """The law of what the table draws, from its thresholds alone."""
    reached = [((int(a) << 63) + (int(b) << 31) + int(c)) / 2**95 for a, b, c in noise.thresholds.T] + [1.0]
    magnitudes = np.diff([0.0, *reached])
    both = np.concatenate([magnitudes[:0:-1] / 2, magnitudes[:1], magnitudes[1:] / 2])
    return np.pad(both, reach - (len(both) - 1) // 2) if len(both) <= 2 * reach + 1 else both


@each_law
def test_the_table_is_the_law(name):
    noise, law = LAWS[name]
    np.testing.assert_allclose(probabilities(noise), law, rtol=1e-9, atol=1e-15)
    assert noise.total_variation < 1e-24


@each_law
def test_draws_follow_the_law(name):
    noise, law = LAWS[name]
    drawn = np.asarray(jax.jit(lambda key: noise.draw(key, DRAWS))(jax.random.key(3)))
    assert drawn.dtype == np.int32
    bins = [*np.arange(-400, 401)[law * DRAWS >= 10]]
    observed = np.array([np.sum(drawn == value) for value in bins] + [np.sum(~np.isin(drawn, bins))])
    expected = np.array([law[400 + value] for value in bins])
    expected = DRAWS * np.append(expected, 1 - expected.sum())
    if expected[-1] < 10:  # the rest is too rare for a bin of its own
        observed, expected = (
            np.append(observed[:-2], observed[-2:].sum()),
            np.append(expected[:-2], expected[-2:].sum()),
        )
    assert stats.chisquare(observed, expected).pvalue > FALSE_ALARM
    wrong = np.roll(expected, 1)
    assert stats.chisquare(observed, wrong * observed.sum() / wrong.sum()).pvalue < FALSE_ALARM


def test_a_table_is_searched_to_its_ends():
    # Words of all zeros and all ones are the least and the largest magnitude.
    noise = discrete_gaussian_noise(7.3)
    ends = {}
    for name, word in (("zeros", 0), ("ones", 0xFFFFFFFF)):
        bits = lambda key, shape, dtype, word=word: np.full(shape, word, np.uint32)  # noqa: E731
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.random, "bits", lambda *args, bits=bits: jax.numpy.asarray(bits(*args)))
            ends[name] = int(noise.draw(jax.random.key(0), 1)[0])
    assert ends == {"zeros": 0, "ones": -noise.thresholds.shape[1]}


@pytest.mark.parametrize("entry", [0, 9])
def test_a_number_is_compared_with_the_table_to_its_last_bit(entry):
    noise = discrete_gaussian_noise(7.3)
    high, middle, low = (int(word) for word in noise.thresholds[:, entry])
    for below, expected in ((0, entry + 1), (1, entry)):  # at the threshold it is reached
        words = np.array([[high], [middle], [(low - below) << 1]], np.uint32)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.random, "bits", lambda *args, words=words: jax.numpy.asarray(words))
            assert int(noise.draw(jax.random.key(0), 1)[0]) == expected


def test_far_tails_are_those_of_the_law():
    # Exact integers against a ratio that floats cannot spoil: w_k / w_0 = exp(-k^2 / (2 sigma^2)).
    words = discrete_gaussian_noise(4.0).thresholds.astype(object)
    reached = [(int(a) << 63) + (int(b) << 31) + int(c) for a, b, c in words.T]
    for k in (10, 25, 40):
        mass = (reached[k] - reached[k - 1]) / reached[0] / 2
        assert mass == pytest.approx(np.exp(-(k**2) / 32), rel=1e-6 if k < 40 else 1e-4)


def test_neighbours_and_keys_draw_independently():
    noise = skellam_noise(50.0)
    first, other = (np.asarray(noise.draw(jax.random.key(seed), 20_000), float) for seed in (0, 1))
    rows = np.stack([first, other, np.roll(first, 1), np.abs(first), np.sign(first)])
    correlation = np.corrcoef(rows) - np.eye(5)
    correlation[0, 4] = correlation[4, 0] = 0  # a number and its sign belong together
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)
