"""The lower bound by hand, against jax-privacy and by how often it errs; the estimate against analytic epsilons."""

import math

import dp_accounting
import numpy as np
import pytest
from jax_privacy import auditing
from scipy import integrate, optimize, special, stats

from fedjax_edge.privacy import audit_estimate, audit_guesses, audit_scores


@pytest.mark.parametrize(("guesses", "expected"), [(100, 3.49), (1000, 5.81)])
def test_all_guesses_correct_by_hand(guesses, expected):
    """Without delta, p^r = 0.05 at the bound."""
    right = 0.05 ** (1 / guesses)
    bound = audit_guesses(guesses, guesses, guesses, delta=0.0)
    assert bound == pytest.approx(math.log(right / (1 - right))) == pytest.approx(expected, abs=0.005)


def test_without_delta_it_is_the_logit_of_clopper_and_pearsons_bound():
    low = stats.beta.ppf(0.1, 80, 100 - 80 + 1)
    assert audit_guesses(80, 100, 500, delta=0.0, confidence=0.9) == pytest.approx(math.log(low / (1 - low)))


def test_delta_by_hand():
    """Two guesses, both right, of two canaries: p^2 + 4 delta max(2 p (1 - p) / 1, (1 - p^2) / 2) = 0.05."""
    delta, bound = 0.01, audit_guesses(2, 2, 2, delta=0.01, confidence=0.5)
    right = special.expit(bound)
    tail = right**2 + 4 * delta * max(2 * right * (1 - right), (1 - right**2) / 2)
    assert tail == pytest.approx(0.5)
    assert bound < audit_guesses(2, 2, 2, delta=0.0, confidence=0.5)


@pytest.mark.parametrize("delta", [1e-6, 1e-4])
@pytest.mark.parametrize(("correct", "guesses", "canaries"), [(90, 100, 1000), (100, 100, 102), (700, 1000, 5000)])
def test_it_agrees_with_jax_privacy(correct, guesses, canaries, delta):
    """Scores above the threshold are guesses; theirs guesses inclusion only, which the theorem does not mind."""
    rest = canaries - guesses
    inside = np.concatenate([np.ones(correct), np.zeros(rest // 2)])
    outside = np.concatenate([np.ones(guesses - correct), np.zeros(rest - rest // 2)])
    reference = auditing.CanaryScoreAuditor(inside, outside).epsilon_one_run(
        0.05, delta, threshold_strategy=auditing.Explicit(0.5)
    )
    assert audit_guesses(correct, guesses, canaries, delta) == pytest.approx(reference, abs=1e-5)


@pytest.mark.parametrize(("correct", "guesses"), [(0, 0), (0, 50), (25, 50), (28, 50)])
def test_what_guessing_explains_proves_nothing(correct, guesses):
    assert audit_guesses(correct, guesses, 50, delta=1e-5) == 0


def test_a_delta_of_the_order_of_one_canary_proves_little():
    assert audit_guesses(100, 100, 100, delta=0.1) < 1 < 3 < audit_guesses(100, 100, 100, delta=1e-6)


def randomized_response(rng, canaries, epsilon):
    """Each coin is published, flipped with probability 1 / (1 + e^epsilon): exactly epsilon-DP."""
    coins = rng.random(canaries) < 0.5
    truth = rng.random(canaries) < special.expit(epsilon)
    return np.where(truth, coins, ~coins) + 0.01 * rng.random(canaries), coins


def test_the_bound_errs_no_more_often_than_it_says_and_comes_near():
    """300 audits of randomized response at 80 %: at most 20 % may err; a rate of 0.2 + 5 standard errors would show."""
    rng, repeats, epsilon = np.random.default_rng(0), 300, 1.0
    bounds = np.array(
        [audit_scores(*randomized_response(rng, 2000, epsilon), 0.0, confidence=0.8).epsilon for _ in range(repeats)]
    )
    assert np.mean(bounds > epsilon) < 0.2
    assert np.median(bounds) > 0.8 * epsilon
    single = [stats.binom(1000, special.expit(epsilon)).rvs(random_state=rng) for _ in range(repeats)]
    errs = np.mean([audit_guesses(int(right), 1000, 1000, 0.0, confidence=0.8) > epsilon for right in single])
    assert abs(errs - 0.2) < 5 * math.sqrt(0.2 * 0.8 / repeats)  # with one try it errs as often as it says


def test_guesses_are_the_highest_and_the_lowest_scores():
    """Of 64 canaries the 8 highest and lowest are right; of the other 48, half: only 16 guesses prove something."""
    included = np.arange(64) % 2 == 0
    included[:8], included[-8:] = False, True
    bound = audit_scores(np.arange(64.0), included, delta=0.0)
    assert bound.guesses == bound.correct == 16
    assert bound.epsilon == audit_guesses(16, 16, 64, 0.0, confidence=1 - 0.05 / 2)
    assert audit_scores(-np.arange(64.0), included, delta=0.0).epsilon == 0


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
def test_the_estimate_of_normal_quantiles_is_the_analytic_epsilon(sigma):
    quantiles = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    scores = np.concatenate([quantiles, quantiles + 1 / sigma])
    expected = dp_accounting.get_epsilon_gaussian(sigma, 1e-5)
    assert audit_estimate(3 - 2 * scores, np.arange(40_000) < 20_000, 1e-5) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("mean", "std"), [(1.0, 2.0), (0.0, 1.5), (2.0, 0.5), (0.0, 0.5), (0.3, 1.01)])
def test_the_epsilon_between_two_normals_is_that_of_quadrature(mean, std):
    from fedjax_edge.privacy.audit_bounds import _epsilon_between_normals

    def excess(epsilon, delta=1e-3):
        def integrand(x):
            return max(stats.norm.pdf(x, mean, std) - math.exp(epsilon) * stats.norm.pdf(x), 0.0)

        return integrate.quad(integrand, -20, 20, limit=500, points=np.linspace(-8, 8, 33))[0] - delta

    expected = optimize.brentq(excess, 0, 200, xtol=1e-4)
    assert _epsilon_between_normals(mean, std, 1e-3) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_the_estimate_of_unequal_spreads_is_that_of_the_worse_direction():
    """Included N(3, 2^2), others N(1, 0.5^2): seen from the others N(4, 4^2), from the included N(-1, 0.25^2)."""
    from fedjax_edge.privacy.audit_bounds import _epsilon_between_normals

    quantiles = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    scores = np.concatenate([3 + 2 * quantiles, 1 + 0.5 * quantiles])
    expected = max(_epsilon_between_normals(4.0, 4.0, 1e-3), _epsilon_between_normals(-1.0, 0.25, 1e-3))
    assert audit_estimate(scores, np.arange(40_000) < 20_000, 1e-3) == pytest.approx(expected, rel=1e-2)


def test_ties_go_against_the_auditor():
    for included in (np.arange(200) >= 100, np.arange(200) < 100):
        assert audit_scores(np.zeros(200), included, 0.0).correct == 0


def test_estimates_of_scores_without_spread():
    included = np.array([True, True, False, False])
    assert audit_estimate(np.array([1.0, 1, 0, 0]), included, 1e-5) == math.inf
    assert audit_estimate(np.ones(4), included, 1e-5) == 0
    assert audit_estimate(np.array([1.0, 2, 2, 1]), included, 1e-5) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: audit_guesses(3, 2, 5, 0.0), "correct must be"),
        (lambda: audit_guesses(2, 6, 5, 0.0), "guesses must be"),
        (lambda: audit_guesses(0, 0, 0, 0.0), "canaries must be"),
        (lambda: audit_guesses(1, 1, 1, 1.0), "delta must be"),
        (lambda: audit_guesses(1, 1, 1, 0.0, confidence=0.4), "confidence must be"),
        (lambda: audit_scores(np.ones(3), np.ones(2, bool), 0.0), "scores and included must be"),
        (lambda: audit_scores(np.ones(2), np.ones(2), 0.0), "scores and included must be"),
        (lambda: audit_scores(np.array([1, np.nan]), np.ones(2, bool), 0.0), "scores must be finite"),
        (lambda: audit_estimate(np.ones(4), np.arange(4) < 3, 1e-5), "at least two canaries"),
        (lambda: audit_estimate(np.ones(4), np.arange(4) < 2, 0.0), "a delta above 0"),
    ],
)
def test_values_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
