import math

import dp_accounting
import jax.numpy as jnp
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy import optimize, special

from fedjax_edge.core.protocols import (
    CyclicSampling,
    FixedSampling,
    FullParticipation,
    PoissonSampling,
    PrivacyError,
)
from fedjax_edge.privacy import (
    accounting,
    calibrate_noise_multiplier,
    dp_sgd,
    gaussian_accountant,
    local_gaussian,
    skellam,
)
from fedjax_edge.privacy.accounting import most_participations

# The example of the design page: 150 of 300 clients, 40 rounds.
POISSON, FIXED, FULL = PoissonSampling(300, 0.5, 1e-12), FixedSampling(300, 150), FullParticipation(300)
MULTIPLIER, ROUNDS, DELTA = 2.75, 40, 1e-3


def epsilon(sampling, rounds=ROUNDS, delta=DELTA, multiplier=MULTIPLIER):
    return gaussian_accountant(multiplier)(sampling, rounds, delta).epsilon


def balle_wang_epsilon(multiplier, delta):
    """Analytic Gaussian mechanism (Balle and Wang 2018, Theorem 8), solved for epsilon."""

    def excess(eps):
        shift = 0.5 / multiplier
        tail = special.ndtr(shift - eps * multiplier)
        return tail - np.exp(eps + special.log_ndtr(-shift - eps * multiplier)) - delta

    return optimize.brentq(excess, 0, 1000, xtol=1e-12) if excess(0) > 0 else 0.0


def test_poisson_sampling():
    claim = gaussian_accountant(MULTIPLIER)(POISSON, ROUNDS, DELTA)
    assert claim.epsilon == pytest.approx(3.95, abs=0.005)
    assert (claim.delta, claim.relation, claim.accountant) == (DELTA, "add-or-remove one client", "PLD")
    assert "300" in claim.sampling and "0.5" in claim.sampling
    event = dp_accounting.PoissonSampledDpEvent(0.5, dp_accounting.GaussianDpEvent(MULTIPLIER))
    pld = PLDAccountant().compose(event, ROUNDS).get_epsilon(DELTA)
    assert claim.epsilon == pytest.approx(pld, rel=1e-5)
    rdp = RdpAccountant(orders=np.arange(2, 10, 0.1)).compose(event, ROUNDS).get_epsilon(DELTA)
    assert rdp == pytest.approx(4.52, abs=0.005)


def test_fixed_size_cohorts_never_get_the_poisson_number():
    claim = gaussian_accountant(MULTIPLIER)(FIXED, ROUNDS, DELTA)
    assert claim.epsilon == pytest.approx(26.7, abs=0.05)
    assert (claim.relation, claim.accountant) == ("replace one client", "RDP")
    assert claim.epsilon > 10.4  # a lower bound by an explicit pair of neighbours


def test_a_fixed_size_cohort_of_everyone_is_the_gaussian_of_doubled_sensitivity():
    everyone = epsilon(FixedSampling(300, 300), rounds=10, delta=1e-5)
    assert 1 < everyone / balle_wang_epsilon(MULTIPLIER / 2 / math.sqrt(10), 1e-5) < 1.1


@pytest.mark.parametrize("multiplier", [0.8, 2.75, 30.0])
@pytest.mark.parametrize("rounds", [1, 40])
def test_full_participation_is_one_gaussian(multiplier, rounds):
    claim = gaussian_accountant(multiplier)(FULL, rounds, 1e-5)
    assert claim.epsilon == pytest.approx(balle_wang_epsilon(multiplier / math.sqrt(rounds), 1e-5), abs=1e-9)
    assert (claim.relation, claim.accountant) == ("add-or-remove one client", "analytic Gaussian")


@pytest.mark.parametrize(("rounds", "delta"), [(40, 1e-12), (500, 1e-11), (2000, 1e-11)])
def test_rounding_in_the_composition_never_lowers_epsilon(rounds, delta):
    certain = PoissonSampling(300, 1.0, 0.0)
    truth = balle_wang_epsilon(MULTIPLIER / math.sqrt(rounds), delta)
    assert truth <= epsilon(certain, rounds, delta) < 1.01 * truth


@pytest.mark.parametrize("probability", [1e-5, 1e-3, 1.0])
@pytest.mark.parametrize("multiplier", [0.3, 30.0, 1000.0, 2.0**20])
def test_one_round_has_the_mass_of_a_probability(multiplier, probability):
    interval = accounting._grid_interval(multiplier, probability)
    losses = accounting._poisson_round(multiplier, probability, interval)
    for pmf in (losses._pmf_remove.to_dense_pmf(), losses._pmf_add.to_dense_pmf()):
        assert pmf._probs.sum() + pmf._infinity_mass == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("probability", "rounds"), [(1e-3, 2000), (1e-4, 1000)])
def test_rare_clients_and_much_noise_cost_next_to_nothing(probability, rounds):
    assert epsilon(PoissonSampling(10**6, probability, 0.0), rounds, 1e-6, 2.0**20) == 0
    some = epsilon(PoissonSampling(10**6, probability, 0.0), rounds, 1e-6, 100.0)
    normal = balle_wang_epsilon(100 / probability / math.sqrt(rounds), 1e-6)  # its limit for small probabilities
    assert normal <= some < 1.01 * normal + 1e-6


@pytest.mark.filterwarnings("ignore")
def test_a_composition_that_is_not_finite_is_refused(monkeypatch):
    monkeypatch.setattr(accounting, "_grid_interval", lambda multiplier, probability: 7.6e-16)
    with pytest.raises(PrivacyError, match="no finite epsilon"):
        epsilon(PoissonSampling(10**6, 1e-7, 0.0), 200, 1e-6, 2.0**20)


@pytest.mark.parametrize("overflow", [0.0, 1e-7, 1e-5])
def test_the_overflow_of_a_padded_cohort_is_paid_for(overflow):
    price = 2.0  # min(1 + e^epsilon, 1 / q) at q = 1/2, epsilon above 0
    expected = epsilon(PoissonSampling(300, 0.5, 0.0), delta=DELTA - ROUNDS * overflow * price)
    assert epsilon(PoissonSampling(300, 0.5, overflow)) == pytest.approx(expected, rel=1e-9)


def test_the_overflow_of_rare_clients_costs_one_plus_e_to_the_epsilon():
    overflow, probability, rounds = 1e-7, 1e-3, 100
    found = epsilon(PoissonSampling(10_000, probability, overflow), rounds, 1e-4, multiplier=1.0)
    price = 1 + math.exp(found)
    assert price < 1 / probability
    expected = epsilon(PoissonSampling(10_000, probability, 0.0), rounds, 1e-4 - rounds * overflow * price, 1.0)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found >= expected * (1 - 1e-9)


def test_an_overflow_that_uses_up_delta_is_refused():
    with pytest.raises(PrivacyError, match=r"overflows with probability 0\.0001"):
        epsilon(PoissonSampling(300, 0.5, 1e-4))


@pytest.mark.parametrize("sampling", [POISSON, FULL])
def test_epsilon_grows_with_rounds(sampling):
    curve = [epsilon(sampling, rounds) for rounds in range(6)]
    assert curve[0] == 0
    assert all(np.diff(curve) > 0)


@pytest.mark.parametrize("sampling", [POISSON, FIXED, FULL])
def test_no_rounds_release_nothing(sampling):
    assert epsilon(sampling, rounds=0) == 0


def test_a_small_sampling_probability_helps():
    # Poisson at a hundredth: far below the unsampled mechanism and below the coarse grid of PLDAccountant.
    rare = PoissonSampling(10_000, 0.01, 1e-12)
    event = dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(1.0))
    pld = PLDAccountant(value_discretization_interval=1e-4).compose(event, 500).get_epsilon(1e-3)
    assert epsilon(rare, 500, 1e-3, 1.0) == pytest.approx(pld, rel=1e-3)


def test_a_sampler_that_says_nothing_gets_no_claim():
    with pytest.raises(PrivacyError, match="nothing can be claimed for sampling=None"):
        epsilon(None)


@pytest.mark.parametrize("sampling", [None, POISSON, FIXED, FULL])
@pytest.mark.parametrize("rounds", [0, 40])
def test_no_noise_gets_no_claim(sampling, rounds):
    with pytest.raises(PrivacyError, match="noise_multiplier=0 is no noise"):
        epsilon(sampling, rounds, multiplier=0.0)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-3, 2.0, math.nan])
def test_delta_outside_its_range_is_refused(delta):
    with pytest.raises(ValueError, match="delta must be a number above 0 and below 1"):
        epsilon(FULL, delta=delta)


@pytest.mark.parametrize("rounds", [-1, 1.5, True, None])
def test_rounds_must_be_a_count(rounds):
    with pytest.raises(ValueError, match="rounds must be an integer of at least 0"):
        epsilon(FULL, rounds=rounds)


@pytest.mark.parametrize("multiplier", [-1.0, math.inf, math.nan, None])
def test_bad_multipliers_are_refused(multiplier):
    with pytest.raises(ValueError, match="noise_multiplier must be a finite number of at least 0"):
        gaussian_accountant(multiplier)


def test_bad_descriptions_of_sampling_are_refused():
    with pytest.raises(ValueError, match=r"sampling\.probability"):
        epsilon(PoissonSampling(300, 0.0, 0.0))
    for overflow in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"sampling\.overflow_probability must be"):
            epsilon(PoissonSampling(300, 0.5, overflow))
    with pytest.raises(ValueError, match=r"sampling\.cohort_size"):
        epsilon(FixedSampling(300, 301))


def test_a_multiplier_may_be_an_array():
    assert epsilon(FULL, multiplier=jnp.float32(2.75)) == epsilon(FULL)


@pytest.mark.parametrize(("sampling", "target"), [(POISSON, 3.95), (FIXED, 26.7), (FULL, 9.12), (FULL, 0.05)])
def test_calibration_meets_the_budget_and_hardly_undershoots(sampling, target):
    multiplier = calibrate_noise_multiplier(target, DELTA, sampling, ROUNDS)
    assert epsilon(sampling, multiplier=multiplier) <= target
    assert epsilon(sampling, multiplier=multiplier / 1.001) > target
    if target > 1:
        assert multiplier == pytest.approx(2.75, rel=0.01)


def test_calibration_goes_below_a_multiplier_of_one():
    multiplier = calibrate_noise_multiplier(200.0, DELTA, FULL, 1)
    assert multiplier < 0.1
    assert epsilon(FULL, 1, DELTA, multiplier) <= 200 < epsilon(FULL, 1, DELTA, multiplier / 1.001)


def test_calibration_ends_where_delta_alone_suffices():
    assert calibrate_noise_multiplier(1.0, 0.6, PoissonSampling(10, 0.5, 0.0), 1) == 2.0**-10


def test_calibration_of_many_rounds_with_rare_clients():
    rare = PoissonSampling(10**6, 1e-3, 0.0)
    multiplier = calibrate_noise_multiplier(2.0, 1e-6, rare, 2000)
    event = dp_accounting.PoissonSampledDpEvent(1e-3, dp_accounting.GaussianDpEvent(multiplier))
    pld = PLDAccountant(value_discretization_interval=1e-3).compose(event, 2000).get_epsilon(1e-6)
    assert epsilon(rare, 2000, 1e-6, multiplier) <= 2
    assert pld == pytest.approx(2, rel=0.02)
    assert RdpAccountant().compose(event, 2000).get_epsilon(1e-6) > 1.99


@pytest.mark.parametrize(("least", "most"), [(0.3, 200.0), (4.0, 200.0), (0.1, 9.3), (0.1, 0.7)])
def test_calibration_of_a_mechanism_that_cannot_be_made_with_every_multiplier(least, most):
    def accountant_of(multiplier):
        if not least <= multiplier <= most:
            raise ValueError(f"the multiplier must be from {least} to {most}")
        return gaussian_accountant(multiplier)

    for exact in (0.15, 0.6, 3.0, 9.0, 50.0):
        target = balle_wang_epsilon(exact, DELTA)
        if exact <= most:
            found = calibrate_noise_multiplier(target, DELTA, FULL, 1, accountant_of)
            assert max(exact, least) * (1 - 1e-9) <= found <= max(exact, least) * 1.001
        else:
            with pytest.raises(PrivacyError, match="out of reach: the multiplier must be from"):
                calibrate_noise_multiplier(target, DELTA, FULL, 1, accountant_of)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, None])
def test_calibration_refuses_budgets_that_are_none(bad):
    with pytest.raises(ValueError, match="epsilon must be a finite number above 0"):
        calibrate_noise_multiplier(bad, DELTA, FULL, ROUNDS)


def test_calibration_refuses_what_cannot_be_reached():
    with pytest.raises(ValueError, match="rounds must be"):
        calibrate_noise_multiplier(1.0, DELTA, FULL, 0)
    with pytest.raises(ValueError, match="delta must be"):
        calibrate_noise_multiplier(1.0, 0.0, FULL, ROUNDS)
    with pytest.raises(PrivacyError, match="nothing can be claimed"):
        calibrate_noise_multiplier(1.0, DELTA, None, ROUNDS)
    with pytest.raises(PrivacyError, match="out of reach"):
        calibrate_noise_multiplier(1e-3, 1e-6, FIXED, ROUNDS)
    with pytest.raises(PrivacyError, match="out of reach"):  # a mechanism whose noise does not grow
        calibrate_noise_multiplier(1.0, DELTA, FULL, ROUNDS, lambda multiplier: gaussian_accountant(1.0))


def test_clients_in_turn_pay_for_their_own_rounds_only():
    cyclic = CyclicSampling(100, 25)
    assert epsilon(cyclic, rounds=12, delta=1e-5) == pytest.approx(balle_wang_epsilon(MULTIPLIER / 3**0.5, 1e-5))
    assert epsilon(cyclic, rounds=9, delta=1e-5) == epsilon(cyclic, rounds=12, delta=1e-5)  # the first three times
    assert epsilon(CyclicSampling(100, 30), rounds=7) == pytest.approx(epsilon(FULL, rounds=3))
    assert "zero out one client" in gaussian_accountant(MULTIPLIER)(cyclic, 3, 1e-5).relation


def test_numbers_of_numpy_do_not_wrap_around():
    rounds, clients, cohort_size = 15_000, 300_000, 150_000  # 2.25e9 places
    narrow = CyclicSampling(np.int32(clients), np.int32(cohort_size))
    assert most_participations(narrow, np.int32(rounds)) == 7500
    mechanisms = (
        local_gaussian(1.0, 100.0, cohort_size),
        dp_sgd(1.0, 100.0, batch_size=8, epochs=2),
        skellam(jnp.zeros(8), 1.0, 100.0, 50, bits=16),
    )
    for accountant in (gaussian_accountant(100.0), *(mechanism.accountant for mechanism in mechanisms)):
        claim = accountant(narrow, np.int32(rounds), 1e-5)
        assert claim == accountant(CyclicSampling(clients, cohort_size), rounds, 1e-5)
    with pytest.raises(PrivacyError, match="counts to 2\\^32 clients"):
        most_participations(CyclicSampling(np.int32(clients), np.int32(cohort_size)), np.int32(30_000))
    for sampling in (FullParticipation(np.int16(100)), PoissonSampling(np.int16(100), 0.5, 0.0)):
        assert type(most_participations(sampling, np.int16(100))) is int
    local = local_gaussian(1.0, 1000.0, 100).accountant
    assert local(FullParticipation(np.int16(100)), np.int16(300), 1e-5) == local(FullParticipation(100), 300, 1e-5)


EXTREMES = [1e-310, 1e-200, 1e-160, 1e-18, 1e-8, 1e-5, 1e-4, 2.0**-11, 2.0**20, 1e9, 1e155, 1e300, 1.7e308]
SAMPLINGS = {
    "Poisson": PoissonSampling(300, 0.5, 0.0),
    "fixed": FixedSampling(300, 150),
    "everyone drawn": FixedSampling(300, 300),
    "full": FULL,
    "cyclic": CyclicSampling(100, 25),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_extreme_noise_gets_a_true_bound_or_none(sampling):
    best = epsilon(sampling, multiplier=2.0**20)
    for multiplier in EXTREMES:
        if multiplier >= 2.0**20:
            assert 0 <= epsilon(sampling, multiplier=multiplier) <= best < 0.01
        elif multiplier < (2.0**-11 if isinstance(sampling, PoissonSampling) else 1e-6):
            with pytest.raises(PrivacyError, match="nothing can be claimed for what is no more private than"):
                epsilon(sampling, multiplier=multiplier)
        else:
            assert epsilon(sampling, multiplier=multiplier) > 1e5
    for mechanism in (local_gaussian(1.0, 1e-200, 10), dp_sgd(1.0, 1e-200, batch_size=8, epochs=1)):
        with pytest.raises(PrivacyError, match="nothing can be claimed"):
            mechanism.accountant(sampling, ROUNDS, DELTA)
