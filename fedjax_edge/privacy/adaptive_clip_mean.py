"""The differentially private mean of updates whose clip follows a quantile of their norms."""

import math

import jax
import jax.numpy as jnp
import optax

from fedjax_edge.core import checks
from fedjax_edge.core.protocols import Accountant, Aggregator, PrivacyClaim, PrivacyError, Sampling
from fedjax_edge.core.trees import at_least_float32
from fedjax_edge.privacy.accounting import gaussian_accountant
from fedjax_edge.privacy.clipping import SAFETY, l2_norm, scale_down
from fedjax_edge.privacy.gaussian_mean import check_denominator
from fedjax_edge.privacy.noise import normal

# Where the clip norm stays, as the noise of many rounds may carry it anywhere: above what `l2_norm` makes of zeros.
_LEAST, _MOST = 2.0**-40, 2.0**40


def adaptive_clip_mean(
    clip_norm: float | jax.Array,
    noise_multiplier: float | jax.Array,
    denominator: float | jax.Array,
    *,
    quantile: float | jax.Array = 0.5,
    learning_rate: float | jax.Array = 0.2,
    count_noise: float | jax.Array | None = None,
) -> Aggregator:
    """The mean of clipped updates with Gaussian noise, the clip norm following a quantile of the updates' norms.

    Algorithm 1 of Andrew, Thakkar, McMahan and Ramaswamy, "Differentially Private Learning with Adaptive Clipping"
    (NeurIPS 2021, arXiv:1905.03871). Each client adds its clipped update and `b - 1/2`, where b says whether its norm
    is within the clip norm C. With z the `noise_multiplier` and m the `denominator`, a round releases

        mean = (sum of clipped updates + z_delta C N(0, I)) / m,  z_delta = (z^-2 - (2 count_noise)^-2)^(-1/2)
        share = 1/2 + (sum of (b - 1/2) + count_noise N(0, 1)) / m

    and goes on with `C exp(-learning_rate (share - quantile))`. By Theorem 1 both together are as private as one
    Gaussian mechanism with multiplier z, since a client moves the sums by at most C and 1/2: the count costs a little
    more noise on the mean (0.5 % for z = 1, count_noise = 5), and no epsilon.

    | cohort                                        | clip norm                                                    |
    |-----------------------------------------------|--------------------------------------------------------------|
    | empty                                         | moves by `exp(learning_rate (quantile - 1/2))` and noise     |
    | more or fewer clients than `denominator`      | `share` is further from, or nearer to 1/2 than the true one  |
    | all updates zero                              | falls until 2^-40, where it stays                            |
    | a client with a NaN or an infinity            | adds nothing, to neither sum                                 |

    What `gaussian_mean` says of denominators, of the run's key and of what is shown besides holds here as well. The
    mean is not divided by C: a server that is to take steps of one length should use an optimizer that is scale-free.

    Args:
      clip_norm: C of the first round, from 2^-40 to 2^40, the floor and the ceiling of later rounds'; chosen without
        looking at the data.
      noise_multiplier: z, what is accounted for; 0 for none on the mean, and then no claim.
      denominator: the expected number of clients of a round, above 0 and fixed before any data is seen.
      quantile: gamma, the share of updates that should stay unclipped, in (0, 1].
      learning_rate: eta_C, at least 0; 0.2 in the paper.
      count_noise: sigma_b, the standard deviation of the noise on the sum of the bits, above z / 2; by default
        `denominator / 20` as in the paper.

    All may be traced; a claim needs the concrete `noise_multiplier` and `count_noise`. Traced ones are not checked:
    with a `count_noise` of z / 2 or less the noise on the mean, and so the mean, is not a number.

    Returns:
      An `Aggregator` whose state is the clip norm, float32 [], and whose epsilon is that of `gaussian_accountant(z)`.

    Raises:
      ValueError: an argument is out of range, `denominator` is something computed from the cohort, or `count_noise` is
        not above half of `noise_multiplier`, so that the count alone would reveal more than is claimed for both.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> aggregator = adaptive_clip_mean(1.0, noise_multiplier=0.0, denominator=2, count_noise=1e-9)
      >>> updates = jnp.array([[0.5, 0.0], [0.0, 0.3]])
      >>> state = aggregator.init(updates[0])
      >>> contributions = [aggregator.contribution(update, jnp.float32(1), state) for update in updates]
      >>> total = optax.tree.add(*contributions)
      >>> aggregate, state = aggregator.finish(total, state, jax.random.key(0))
      >>> print(aggregate, round(float(state), 3))  # none was clipped: exp(-0.2 (1 - 0.5))
      [0.25 0.15] 0.905
    """
    checks.within("clip_norm", clip_norm, _LEAST, _MOST)
    checks.non_negative("noise_multiplier", noise_multiplier)
    check_denominator(denominator)
    checks.probability("quantile", quantile)
    checks.non_negative("learning_rate", learning_rate)
    count_noise = denominator / 20 if count_noise is None else count_noise
    checks.positive("count_noise", count_noise)
    _check_split(noise_multiplier, count_noise)

    def init(update):
        return jnp.asarray(clip_norm, jnp.float32)

    def contribution(update, weight, bound):
        update = at_least_float32(update)
        norm = l2_norm(update)
        is_unclipped = norm <= SAFETY * bound
        return scale_down(update, norm, bound), is_unclipped.astype(jnp.float32) - 0.5

    def finish(total, bound, key):
        updates, bits = total
        noise, divisor, target, rate = (
            jnp.asarray(value, jnp.float32) for value in (count_noise, denominator, quantile, learning_rate)
        )
        update_key, count_key = jax.random.split(key)
        deviation = bound * _mean_noise(noise_multiplier, count_noise)

        def noisy(leaf, draw):
            return (leaf + deviation.astype(leaf.dtype) * draw) / divisor.astype(leaf.dtype)

        mean = jax.tree.map(noisy, updates, optax.tree.random_like(update_key, updates, normal))
        share = 0.5 + (bits + noise * normal(count_key, (), jnp.float32)) / divisor
        moved = bound * jnp.exp(-rate * (share - target))
        return mean, jnp.clip(moved, _LEAST, _MOST)

    return Aggregator(init, contribution, finish, accountant=_accountant(noise_multiplier, count_noise))


def _mean_noise(noise_multiplier: float | jax.Array, count_noise: float | jax.Array) -> jax.Array:
    """z_delta, float32 []: what is left for the mean once the count has its share; in float64 unless traced."""
    if _is_traced(noise_multiplier, count_noise):
        multiplier, twice, root = jnp.float32(noise_multiplier), 2 * jnp.float32(count_noise), jnp.sqrt
    else:
        multiplier, twice, root = float(noise_multiplier), 2 * float(count_noise), math.sqrt
    return jnp.asarray(multiplier / root((1 - multiplier / twice) * (1 + multiplier / twice)), jnp.float32)


def _is_traced(*values: float | jax.Array) -> bool:
    return any(isinstance(value, jax.core.Tracer) for value in values)


def _accountant(noise_multiplier: float | jax.Array, count_noise: float | jax.Array) -> Accountant:
    gaussian = gaussian_accountant(noise_multiplier)

    def accountant(sampling: Sampling, rounds: int, delta: float) -> PrivacyClaim:
        if _is_traced(count_noise):
            raise PrivacyError(
                "count_noise, or the denominator that it follows, is traced and may be too small for any claim; build "
                "the aggregator outside of jit, vmap and sweeps with the concrete number"
            )
        claim = gaussian(sampling, rounds, delta)
        return claim._replace(accountant=f"{claim.accountant}, of mean and count together")

    return accountant


def _check_split(noise_multiplier: float | jax.Array, count_noise: float | jax.Array) -> None:
    if _is_traced(noise_multiplier, count_noise):
        return
    if float(count_noise) <= float(noise_multiplier) / 2:
        raise ValueError(
            f"count_noise must be above noise_multiplier / 2 = {float(noise_multiplier) / 2:g}, got {count_noise!r}: "
            "the count alone would be less private than what is claimed for both (a larger denominator helps)"
        )
