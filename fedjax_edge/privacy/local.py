"""Local differential privacy: what a device sends is private by itself, whatever the server does with it."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjax_edge.core import checks
from fedjax_edge.core.protocols import (
    Accountant,
    Aggregator,
    PrivacyClaim,
    PrivacyError,
    PyTree,
    Release,
    Sampling,
    UpdateTransform,
)
from fedjax_edge.core.trees import at_least_float32, size_in_bits
from fedjax_edge.privacy.accounting import FFT_ERROR, check_question, gaussian_epsilon, in_words, most_participations
from fedjax_edge.privacy.clipping import SAFETY, check_clip_norm, clip_by_norm, l1_norm, scale_down, total_norm
from fedjax_edge.privacy.gaussian_mean import check_denominator
from fedjax_edge.privacy.mechanism import Mechanism
from fedjax_edge.privacy.noise import laplace, normal


def local_gaussian(clip_norm: PyTree, noise_multiplier: float | jax.Array, denominator: float | jax.Array) -> Mechanism:
    """Each device clips its update to the norm S and adds Gaussian noise of standard deviation z S before sending it.

    The mean is `sum of what is received / denominator`. Two updates of one device differ by at most 2 S once clipped,
    so that what is received is a Gaussian mechanism with multiplier z / 2, composed over the rounds in which the device
    takes part (analytic Gaussian). The server adds nothing and is not trusted; it sees who takes part.

    | update                          | what is sent                                                            |
    |---------------------------------|-------------------------------------------------------------------------|
    | holds a NaN or an infinity      | noise alone: a device that is counted as rejected would give that away  |
    | narrower than float32           | float32                                                                 |
    | has no leaves or only empty     | the same                                                                |

    - Weights are not used: how many examples a device holds depends on its data, and so would a weighted mean.
    - Whatever comes after (a codec: `chain(mechanism.uplink, stochastic_uniform(8))`) costs no privacy, a memory such
      as that of `error_feedback` included. A memory before it stays as it was where an update is not finite. Whatever a
      device sends besides, such as the losses of a run's history, is not covered.
    - The noise on the mean is `sqrt(denominator)` times what `gaussian_mean` adds for the same multiplier.

    Args:
      clip_norm: S, the bound of the update's L2 norm, or a tree of bounds of its layers, as in `clip_by_norm`.
      noise_multiplier: z, the standard deviation of each number's noise over S; 0 for none, and then no claim.
      denominator: the expected number of clients of a round, above 0 and fixed before any data is seen.

    Raises:
      ValueError: an argument is out of range, or `denominator` is something computed from the cohort.

    Source: Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy: Analytical Calibration and
    Optimal Denoising" (ICML 2018, arXiv:1805.06530), Theorem 8.

    Example:
      >>> from fedjax_edge.core.protocols import FullParticipation
      >>> mechanism = local_gaussian(clip_norm=1.0, noise_multiplier=8.0, denominator=100)
      >>> claim = mechanism.accountant(FullParticipation(100), rounds=4, delta=1e-5)
      >>> print(round(claim.epsilon, 2), claim.relation)
      1.99 replace one client's update, as the server sees it
    """
    check_clip_norm(clip_norm)
    checks.non_negative("noise_multiplier", noise_multiplier)

    def clipped(update: PyTree) -> PyTree:
        return clip_by_norm(update, clip_norm)

    def epsilon_of(releases: int, delta: float) -> float:
        return gaussian_epsilon(float(noise_multiplier) / 2 / math.sqrt(releases), delta)

    accountant = _accountant(noise_multiplier, epsilon_of, "analytic Gaussian", is_gaussian=True)
    return _mechanism(clipped, normal, noise_multiplier, total_norm(clip_norm), denominator, accountant)


def local_laplace(
    clip_norm: float | jax.Array, noise_multiplier: float | jax.Array, denominator: float | jax.Array
) -> Mechanism:
    """Each device clips its update to the L1 norm S and adds Laplace noise of scale z S before sending it.

    One release has epsilon 2 / z at any delta: two clipped updates differ by at most 2 S in L1 norm. Rounds compose, at
    the delta that is asked for, to what any mechanisms of such an epsilon compose to at worst: never more than the sum
    (Kairouz, Oh and Viswanath 2015, arXiv:1311.0776, by privacy loss distributions). Noise is drawn to 44 times its
    scale; what is left out beyond has a probability of 2^-64 for each number.

    All else is as in `local_gaussian`; only that the noise, of standard deviation `sqrt(2) z S` a number, is for an L1
    norm, which is up to `sqrt(n)` times the L2 norm of n numbers.

    Args:
      clip_norm: S, the bound of the sum of all magnitudes, above 0.
      noise_multiplier: z, the scale of the Laplace noise over S; 0 for none, and then no claim.
      denominator: the expected number of clients of a round, above 0 and fixed before any data is seen.

    Raises:
      ValueError: an argument is out of range, or `denominator` is something computed from the cohort.

    Source: Dwork, McSherry, Nissim and Smith, "Calibrating Noise to Sensitivity in Private Data Analysis" (TCC 2006).

    Example:
      >>> from fedjax_edge.core.protocols import FullParticipation
      >>> mechanism = local_laplace(clip_norm=1.0, noise_multiplier=4.0, denominator=100)
      >>> print(round(mechanism.accountant(FullParticipation(100), rounds=3, delta=1e-9).epsilon, 3))
      1.5
    """
    checks.positive_float32("clip_norm", clip_norm)
    checks.non_negative("noise_multiplier", noise_multiplier)

    def clipped(update: PyTree) -> PyTree:
        return scale_down(update, l1_norm(update), SAFETY * jnp.asarray(clip_norm, jnp.float32))

    def epsilon_of(releases: int, delta: float) -> float:
        one = 2 / float(noise_multiplier)
        left = delta - releases * FFT_ERROR
        if left <= 0 or one > 40:  # beyond, losses below the sum have a probability of e^-40
            return releases * one
        from dp_accounting.pld import common, privacy_loss_distribution

        worst = privacy_loss_distribution.from_privacy_parameters(
            common.DifferentialPrivacyParameters(one, 0.0), value_discretization_interval=one
        )
        return min(releases * one, worst.self_compose(releases).get_epsilon_for_delta(left))

    accountant = _accountant(noise_multiplier, epsilon_of, "worst composition of a pure epsilon", False)
    return _mechanism(clipped, laplace, noise_multiplier, clip_norm, denominator, accountant)


def _mechanism(
    clipped: Callable[[PyTree], PyTree],
    sampler: Callable,
    noise_multiplier: float | jax.Array,
    norm: float | jax.Array,
    denominator: float | jax.Array,
    accountant: Accountant,
) -> Mechanism:
    check_denominator(denominator)

    def apply(update: PyTree, state: tuple, key: jax.Array) -> tuple[PyTree, tuple, int]:
        update = clipped(at_least_float32(update))  # zeros for what is not finite

        def noisy(leaf: jax.Array, draw: jax.Array) -> jax.Array:
            return leaf + jnp.asarray(noise_multiplier, leaf.dtype) * jnp.asarray(norm, leaf.dtype) * draw

        noisy_update = jax.tree.map(noisy, update, optax.tree.random_like(key, update, sampler))
        return noisy_update, state, size_in_bits(noisy_update)  # whatever came before, noise fills it

    def contribution(update: PyTree, weight: jax.Array, state: tuple) -> PyTree:
        return at_least_float32(update)

    def finish(total: PyTree, state: tuple, key: jax.Array) -> tuple[PyTree, tuple]:
        return jax.tree.map(lambda leaf: leaf / jnp.asarray(denominator, leaf.dtype), total), state

    aggregator = Aggregator(lambda update: (), contribution, finish, accountant_of_uplink=accountant)
    return Mechanism(UpdateTransform(lambda update: (), apply, accountant, is_local=True), aggregator)


def _accountant(
    noise_multiplier: float | jax.Array, epsilon_of: Callable[[int, float], float], words: str, is_gaussian: bool
) -> Accountant:
    def accountant(sampling: Sampling, rounds: int, delta: float) -> PrivacyClaim:
        check_question(noise_multiplier, rounds, delta)
        most = most_participations(sampling, rounds)
        epsilon = float(epsilon_of(most, delta)) if most else 0.0
        if not math.isfinite(epsilon):
            raise PrivacyError(f"no finite epsilon for {noise_multiplier=}, {most} rounds of a client, delta={delta}")
        return PrivacyClaim(
            epsilon=epsilon,
            delta=float(delta),
            relation="replace one client's update, as the server sees it",
            sampling=f"{in_words(sampling)}; who takes part is not hidden",
            accountant=f"{words}, of at most {most} rounds of a client",
            rounds=int(rounds),
            noise_multiplier=float(noise_multiplier),
            release=Release(float(noise_multiplier) / 2, most) if is_gaussian else None,
        )

    return accountant
