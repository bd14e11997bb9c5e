"""What rounds of the Gaussian mechanism on sums of clipped updates may claim, from `dp-accounting`.

That is imported where a number is asked for, here and beside this file: it takes longer than all of this package.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax

from fedjax_edge.core import checks
from fedjax_edge.core.protocols import (
    Accountant,
    CyclicSampling,
    FixedSampling,
    FullParticipation,
    PoissonSampling,
    PrivacyClaim,
    PrivacyError,
    Release,
    Sampling,
)

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

_ADD_OR_REMOVE = "add-or-remove one client"
_REPLACE = "replace one client"
ZERO_OUT = "zero out one client (its contributions become zero)"
REPLACE_EXAMPLE = "replace one example of one client"

# What rounding in the FFTs of a composition may hide from delta, for each round composed. Against the analytic
# Gaussian, 2,000 rounds are off by 1e-13 (tested); without this, epsilon at a delta of 1e-12 would be too small.
FFT_ERROR = 1e-15

# Multipliers that dp-accounting's arithmetic bears; with Poisson sampling it overflows below another.
_LEAST_NOISE, _LEAST_POISSON_NOISE, _MOST_NOISE = 1e-6, 2.0**-11, 2.0**20


def gaussian_accountant(noise_multiplier: float | jax.Array) -> Accountant:
    """The accountant of a sum in which a client moves at most S, released with noise of `noise_multiplier * S`.

    | sampling            | neighbours differ by     | accountant                                                   |
    |---------------------|--------------------------|--------------------------------------------------------------|
    | `PoissonSampling`   | add-or-remove one client | PLD, and the chance that a padded cohort was cut is paid for |
    | `FullParticipation` | add-or-remove one client | analytic Gaussian (Balle and Wang 2018, arXiv:1805.06530)    |
    | `FixedSampling`     | replace one client       | RDP (Wang, Balle and Kasiviswanathan 2019, arXiv:1808.00087, |
    |                     |                          | Theorem 27), sensitivity 2 S since one update leaves as      |
    |                     |                          | another comes                                                |
    | `CyclicSampling`    | zero out one client      | analytic Gaussian, composed over a client's own rounds       |
    | `None`              |                          | refused                                                      |

    Every number is an upper bound. That of a fixed-size cohort is loose: 26.7 where Poisson sampling of the same
    expected size gives 3.95 (150 of 300 clients, 40 rounds, multiplier 2.75, delta 1e-3) and the truth is at least
    10.4; the two relations are not comparable, and a Poisson epsilon is never claimed for a fixed-size cohort.

    With `FixedSampling` a round must depend on the other clients' earlier rounds through what was released alone: not
    on memories such as that of `error_feedback`, which say who took part. (`run`, `sweep` and `describe` refuse those.)

    The number of clients, their probability and the denominator of a mean are taken as public: they stay what they are
    when a client is added or removed. Who is protected, where they are not, is a client whose contributions become
    zero; the number is the same.

    Cohorts are taken for exactly uniform. The samplers' keyed permutation is within 2e-7 of that in total variation at
    the worst small population, of 4 (`core.permutation`), and delta does not pay for it.

    Args:
      noise_multiplier: standard deviation of the noise over the sensitivity S, at least 0.

    Returns:
      `accountant(sampling, rounds, delta) -> PrivacyClaim` for exactly so many rounds. It is cached; one call takes
      about 0.1 s for 40 rounds, 0.5 s for 2,000. It raises PrivacyError where nothing can be claimed: no noise, or next
      to none (a multiplier below 1e-6 for all rounds together, or 2^-11 with Poisson sampling), a traced multiplier, a
      sampler that does not describe itself, or a `delta` that a padded cohort's overflow uses up. A multiplier above
      2^20 may be claimed as 2^20.
      It raises ValueError for `rounds` below 0 or `delta` outside (0, 1). No rounds have epsilon 0.

    Raises:
      ValueError: `noise_multiplier` is negative or not finite.

    Example:
      >>> from fedjax_edge.core.protocols import PoissonSampling
      >>> accountant = gaussian_accountant(noise_multiplier=2.75)
      >>> claim = accountant(PoissonSampling(300, probability=0.5, overflow_probability=1e-12), rounds=40, delta=1e-3)
      >>> print(round(claim.epsilon, 2), claim.relation)
      3.95 add-or-remove one client
    """
    checks.non_negative("noise_multiplier", noise_multiplier)

    def accountant(sampling: Sampling, rounds: int, delta: float) -> PrivacyClaim:
        check_question(noise_multiplier, rounds, delta)
        return _claim(float(noise_multiplier), _in_python_numbers(sampling), int(rounds), float(delta))

    return accountant


def check_question(noise_multiplier: float | jax.Array, rounds: int, delta: float) -> None:
    """Raises unless an accountant can be asked this: ValueError out of range, PrivacyError without known noise."""
    if isinstance(noise_multiplier, jax.core.Tracer):
        raise PrivacyError(
            "noise_multiplier is traced and has no value to account for; build the aggregator outside of jit, "
            "vmap and sweeps with the concrete number, and ask that one for its claim"
        )
    checks.integer("rounds", rounds, at_least=0)
    check_delta(delta)
    if noise_multiplier == 0:
        raise PrivacyError("noise_multiplier=0 is no noise, and without noise there is no privacy guarantee")


def check_delta(delta: float) -> None:
    """Raises ValueError unless delta lies within (0, 1)."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must be a number above 0 and below 1, got {delta!r}")


def calibrate_noise_multiplier(
    epsilon: float,
    delta: float,
    sampling: Sampling,
    rounds: int,
    accountant_of: Callable[[float], Accountant] = gaussian_accountant,
) -> float:
    """The smallest noise multiplier whose claim for `rounds` rounds is at most `epsilon`.

    Args:
      epsilon: the budget, above 0.
      delta: the budget's other half, in (0, 1).
      sampling: how cohorts are drawn (`sampler.sampling`).
      rounds: number of rounds, at least 1.
      accountant_of: what claims for a noise multiplier, such as `lambda z: correlated_mean(tree_noise(40), 1.0,
        z, 10).accountant`; its epsilon must fall as the multiplier grows. A ValueError says that the mechanism cannot
        be made with this multiplier; those that can must form one interval, with a power of two in it.

    Returns:
      A multiplier for which the accountant was seen to claim at most `epsilon`, within 0.1 % of the smallest
      (and never below 2^-10, where there is hardly any noise left).

    Raises:
      ValueError: `epsilon`, `delta` or `rounds` is out of range.
      PrivacyError: no multiplier suffices, or nothing can be claimed for such sampling.

    Example:
      >>> from fedjax_edge.core.protocols import FullParticipation
      >>> multiplier = calibrate_noise_multiplier(epsilon=1.0, delta=1e-5, sampling=FullParticipation(100), rounds=1)
      >>> print(round(multiplier, 2))
      3.73
    """
    checks.positive("epsilon", epsilon)
    checks.integer("rounds", rounds, at_least=1)
    check_delta(delta)
    most, least, precision = 2.0**20, 2.0**-10, 1e-3

    def claimed(multiplier: float) -> float:
        """NaN where the mechanism cannot be made with this multiplier."""
        try:
            return accountant_of(multiplier)(sampling, rounds, delta).epsilon
        except PrivacyError:  # such as for an epsilon so large that the overflow of a padded cohort uses up delta
            return math.inf
        except ValueError:
            return math.nan

    powers = (2.0**k for k in (*range(21), *range(-1, -11, -1)))
    start = next((power for power in powers if not math.isnan(claimed(power))), 1.0)

    def is_high(multiplier: float) -> bool:
        """Whether there is noise enough, or more than the mechanism can be made with."""
        best = claimed(multiplier)
        return multiplier > start if math.isnan(best) else best <= epsilon

    high = start
    while high < most and not is_high(high):
        high *= 2
    low = high / 2 if is_high(high) else high
    while low >= least and is_high(low):
        low, high = low / 2, low
    while high > low * (1 + precision) and low >= least:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_high(middle) else (middle, high)
    try:
        best = accountant_of(high)(sampling, rounds, delta).epsilon
    except ValueError as error:
        raise PrivacyError(f"epsilon={epsilon} is out of reach: {error}") from error
    if best > epsilon:
        raise PrivacyError(
            f"epsilon={epsilon} is out of reach: a noise multiplier of {high:g} can still claim no less than {best:.3g}"
        )
    return high


def _in_python_numbers(sampling: Sampling) -> Sampling:
    """The same without NumPy's numbers, whose arithmetic wraps around and which JSON cannot hold."""
    if not isinstance(sampling, tuple):
        return sampling
    return type(sampling)(*(value.item() if hasattr(value, "item") else value for value in sampling))


@functools.lru_cache(maxsize=4096, typed=True)
def _claim(noise_multiplier: float, sampling: Sampling, rounds: int, delta: float) -> PrivacyClaim:
    match sampling:
        case PoissonSampling():
            release, relation = Release(noise_multiplier, rounds, sampling), _ADD_OR_REMOVE
        case FullParticipation():
            release, relation = Release(noise_multiplier, rounds), _ADD_OR_REMOVE
        case FixedSampling():
            release, relation = Release(noise_multiplier, rounds, sampling), _REPLACE
        case CyclicSampling():
            release, relation = Release(noise_multiplier, most_participations(sampling, rounds)), ZERO_OUT
        case _:
            raise PrivacyError(
                f"nothing can be claimed for sampling={sampling!r}: epsilon depends on how cohorts are drawn, and this "
                "sampler does not say (PoissonSampling, FixedSampling, FullParticipation or CyclicSampling)"
            )
    epsilon, by = compose([release], delta)
    return PrivacyClaim(epsilon, delta, relation, in_words(sampling), by, rounds, noise_multiplier, release)


def in_words(sampling: Sampling) -> str:
    """Returns how cohorts are drawn, whatever the number of rounds."""
    match sampling:
        case PoissonSampling(clients, probability, _):
            return f"each of {clients} clients independently with probability {probability:g}"
        case FullParticipation(clients):
            return f"all {clients} clients every round"
        case FixedSampling(clients, cohort_size):
            return f"{cohort_size} of {clients} clients uniformly without replacement"
        case CyclicSampling(clients, cohort_size):
            return f"{cohort_size} of {clients} clients in turn"
    return "not described"


def compose(releases: Sequence[Release], delta: float) -> tuple[float, str]:
    """Returns the epsilon of all these releases together, for one neighbouring relation, and by which method.

    Raises:
      PrivacyError: where it is not finite, `delta` does not pay for the overflow of padded cohorts, or samplings are
        mixed whose neighbours differ.
    """
    samplings = {type(release.sampling) for release in releases} - {type(None)}
    plain = [release for release in releases if release.sampling is None]
    inverse = math.hypot(*(math.sqrt(release.times) / release.noise_multiplier for release in plain))  # of all, as one
    drawn = [release for release in releases if release.sampling is not None and release.times]
    if not drawn and not inverse:
        epsilon, by = 0.0, "nothing was released"
    elif samplings == {PoissonSampling}:
        epsilon, by = _poisson_epsilon(drawn, inverse, delta), "PLD"
    elif samplings == {FixedSampling}:
        epsilon, by = _fixed_epsilon(drawn, inverse, delta), "RDP"
    elif samplings:
        raise PrivacyError("Poisson sampling and cohorts of fixed size have neighbours that cannot be compared")
    else:
        # T releases with multiplier z are exactly as private as one with z / sqrt(T).
        epsilon, by = gaussian_epsilon(1 / inverse, delta), "analytic Gaussian"
    if not math.isfinite(epsilon):
        raise PrivacyError(f"no finite epsilon for {list(releases)} at delta={delta}")
    return float(epsilon), by


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Returns the epsilon of one release with Gaussian noise, exactly, for a multiplier from 1e-6 to 2^20.

    Above it is that of 2^20; below it raises PrivacyError.
    """
    import dp_accounting

    return float(dp_accounting.get_epsilon_gaussian(_computable(noise_multiplier), delta))


def _computable(noise_multiplier: float, least: float = _LEAST_NOISE) -> float:
    """Returns a multiplier that numbers can be computed for, and no larger, so that they hold for the given one."""
    if noise_multiplier < least:
        raise PrivacyError(
            "nothing can be claimed for what is no more private than one release with a noise multiplier of "
            f"{noise_multiplier:.3g}: it must be at least {least:.3g}"
        )
    return min(noise_multiplier, _MOST_NOISE)


def most_participations(sampling: Sampling, rounds: int) -> int:
    """Returns in how many of the first `rounds` rounds any client takes part, at most: a Python int, whatever is given.

    Raises:
      PrivacyError: for a sampler that does not say, or for so many rounds that the 32-bit count of clients of a cyclic
        one wraps around.
    """
    match sampling:
        case CyclicSampling(clients, cohort_size):
            checks.integer("sampling.cohort_size", cohort_size, at_least=1, at_most=clients)
            slots = int(rounds) * int(cohort_size)
            if slots >= 2**32:
                raise PrivacyError(
                    f"a cyclic sampler counts to 2^32 clients, which {rounds} rounds of {cohort_size} exceed"
                )
            return -(-slots // int(clients))
        case PoissonSampling() | FixedSampling() | FullParticipation():
            return int(rounds)
    raise PrivacyError(
        f"nothing can be claimed for sampling={sampling!r}: this sampler does not say in how many rounds a client "
        "takes part (PoissonSampling, FixedSampling, FullParticipation or CyclicSampling)"
    )


def _fixed_epsilon(releases: Sequence[Release], inverse: float, delta: float) -> float:
    import dp_accounting

    # RdpAccountant takes the multiplier relative to the sensitivity under *its* relation and does not double it for
    # REPLACE_ONE (PLDAccountant does): replacing a client moves the sum by 2 S, so z S is a multiplier of z / 2.
    accountant = dp_accounting.rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    for noise_multiplier, times, (clients, cohort_size) in releases:
        checks.integer("sampling.cohort_size", cohort_size, at_least=1, at_most=clients)
        gaussian = dp_accounting.GaussianDpEvent(_computable(noise_multiplier) / 2)
        accountant.compose(dp_accounting.SampledWithoutReplacementDpEvent(clients, cohort_size, gaussian), times)
    if inverse:
        accountant.compose(dp_accounting.GaussianDpEvent(_computable(1 / inverse)))
    return accountant.get_epsilon(delta)


def _poisson_epsilon(releases: Sequence[Release], inverse: float, delta: float) -> float:
    """The smallest epsilon with `delta_PLD(epsilon) + price(epsilon) <= delta`, within 1e-6 of itself."""
    for release in releases:
        checks.probability("sampling.probability", release.sampling.probability)
        if not 0 <= release.sampling.overflow_probability < 1:
            raise ValueError(
                "sampling.overflow_probability must be a number of at least 0 and below 1, got "
                f"{release.sampling.overflow_probability!r}"
            )
    parts = [(z, sampling.probability, times) for z, times, sampling in releases]
    parts += [(1 / inverse, 1.0, 1)] if inverse else []
    parts = [(_computable(z, _LEAST_POISSON_NOISE), probability, times) for z, probability, times in parts]
    natural = [_grid_interval(z, probability) for z, probability, _ in parts]
    interval = max(min(natural), max(natural) / 100)  # one grid for all, and no more than a million points
    losses = [_poisson_round(z, probability, interval).self_compose(times) for z, probability, times in parts]
    composed = functools.reduce(lambda a, b: a.compose(b), losses)
    rounds = sum(times for _, _, times in parts)
    epsilon = 0.0
    while True:
        overflow = sum(
            times * sampling.overflow_probability * _overflow_factor(epsilon, sampling.probability)
            for _, times, sampling in releases
        )
        left = delta - rounds * FFT_ERROR - overflow
        if left <= 0:
            highest = max(release.sampling.overflow_probability for release in releases)
            raise PrivacyError(
                f"delta={delta} does not pay for {rounds} rounds at epsilon {epsilon:.3g}: in each, the padded cohort "
                f"overflows with probability {highest} and rounding may hide {FFT_ERROR} of delta; "
                "pad the cohort wider or raise delta"
            )
        needed = composed.get_epsilon_for_delta(left)
        if needed <= epsilon or not math.isfinite(needed):
            return needed  # the price was that of an epsilon no smaller
        epsilon = needed * (1 + 1e-6)


def _overflow_factor(epsilon: float, probability: float) -> float:
    """How much of delta a unit of overflow probability costs, the smaller of two bounds.

    Let b bound the probability, under either neighbour, that any round's cohort was cut to the padded width. (A sampler
    whose width follows from the number of clients states one bound for whatever number, and so for both neighbours.)

    Coupling: the real and the ideal mechanism differ with probability at most b, so that
    P(S) <= P_ideal(S) + b <= e^eps Q_ideal(S) + delta' + b <= e^eps Q(S) + delta' + (1 + e^eps) b.

    Conditioning on the other clients' draws, which the neighbours share: where in every round fewer than the width are
    drawn, the differing client is added to the sum with its probability q and the ideal analysis holds unchanged. All
    else costs its probability; as the client joins independently, q times that is at most b. So delta' + b / q.
    """
    return min(1 + math.exp(min(epsilon, 700.0)), 1 / probability)


@functools.lru_cache(maxsize=16)
def _poisson_round(noise_multiplier: float, probability: float, interval: float) -> "PrivacyLossDistribution":
    """One round's privacy loss on a grid; the estimate is an upper bound on any grid."""
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, value_discretization_interval=interval, sampling_prob=probability
    )


def _grid_interval(noise_multiplier: float, probability: float) -> float:
    """The spacing with which one round's privacy loss takes about 10,000 points, whatever its scale, or fewer.

    `PLDAccountant`'s fixed spacing of 1e-4 is coarse for small losses (multiplier 5 at q = 1e-3) and slow for large
    ones. Masses are differences of deltas, which are rounded at 1e-16, over the spacing, and what is negative is set
    to zero: the more points, the more mass too much. Losses below 0.01 get so few that it stays below 1e-6 a round.
    """
    largest = 0.5 / noise_multiplier**2 + 8 / noise_multiplier  # the unsampled loss, eight standard deviations out
    capped = min(largest, 500.0)
    sampled = math.log1p(probability * math.expm1(capped)) * largest / capped
    return max(sampled / 10_000, math.sqrt(1e-10 * sampled), 1e-10)
