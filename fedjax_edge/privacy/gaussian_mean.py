"""The differentially private mean of clipped updates, with Gaussian noise."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_edge.core import checks
from fedjax_edge.core.protocols import Aggregator, PyTree
from fedjax_edge.core.trees import at_least_float32
from fedjax_edge.privacy.accounting import gaussian_accountant
from fedjax_edge.privacy.clipping import check_clip_norm, clip_by_norm, total_norm
from fedjax_edge.privacy.noise import normal


def gaussian_mean(
    clip_norm: PyTree,
    noise_multiplier: float | jax.Array,
    denominator: float | jax.Array,
    max_weight: float | jax.Array | None = None,
) -> Aggregator:
    """The mean of clipped updates with Gaussian noise, private for whole clients.

    `(sum_k clip(update_k, S) + z S N(0, I)) / denominator`: Algorithm 1 of McMahan, Ramage, Talwar and Zhang, "Learning
    Differentially Private Recurrent Language Models" (ICLR 2018, arXiv:1710.06963), with the fixed-denominator
    estimator f~_f of its Section 2. One client moves the sum by at most the sensitivity S = `clip_norm`
    (`clip_norm * max_weight` with weights), and the noise's standard deviation is `noise_multiplier` times that.

    What a user should know:

    - Updates are clipped here, where they are summed, after whatever compression or attack did to them. Quantizing
      after a client's own clip moves norms past it (over 6,746 parameters 1.0005 of the clip at 8 bits on average, 1.14
      at 4, 2.4 at 2); because of the clip here that costs no privacy, and at 8 bits next to nothing else. At 4 bits and
      below the second clip shrinks most updates, so that an unbiased quantizer's mean is biased toward zero.
    - The denominator is a number chosen beforehand. The count of clients that really took part depends on the data.
    - Loss and accuracy shown each round are not covered by epsilon.
    - The run's key is the mechanism's secret: who knows it can draw the same noise and the same cohorts.
    - Noise is drawn to 9 standard deviations, in float32, and the analysis is that of real numbers; attacks on the
      floating-point grid (Mironov 2012) are out of scope, as is fit for a simulator.

    Contributions, sum and aggregate are float32 even for narrower updates: in bfloat16 a client vanishes beside the sum
    of 256 others, and noise rounded to a coarse grid is not the noise accounted for. (float64 stays float64.)

    Args:
      clip_norm: bound of one client's L2 norm over all leaves, above 0; or a tree of bounds of its layers, such as
        `per_layer(S, params)`: S is then the root of the sum of their squares.
      noise_multiplier: standard deviation of the noise over the sensitivity; 0 for none, and then no claim.
      denominator: the expected number of clients of a round or, with `max_weight`, their expected total weight; above
        0 and fixed before any data is seen.
      max_weight: `None` counts every client once. A number: client k counts `min(weight_k, max_weight)` times, a
        weight that is negative or NaN counts 0.

    All may be traced, to sweep them with one compilation; a claim needs the concrete `noise_multiplier`.

    Returns:
      An `Aggregator` with state `()`, whose `accountant` is `gaussian_accountant(noise_multiplier)`.

    Raises:
      ValueError: an argument is out of range, or `denominator` is something computed from the cohort.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> aggregator = gaussian_mean(clip_norm=1.0, noise_multiplier=0.0, denominator=2)
      >>> updates = jnp.array([[0.5, 0.0], [0.0, 0.3]])
      >>> total = sum(aggregator.contribution(update, jnp.float32(1), ()) for update in updates)
      >>> aggregate, state = aggregator.finish(total, (), jax.random.key(0))
      >>> print(aggregate)
      [0.25 0.15]
    """
    check_clip_norm(clip_norm)
    checks.non_negative("noise_multiplier", noise_multiplier)
    check_denominator(denominator)
    if max_weight is not None:
        checks.positive("max_weight", max_weight)

    def contribution(update, weight, state):
        clipped = clip_by_norm(at_least_float32(update), clip_norm)
        if max_weight is None:
            return clipped
        weight = jnp.asarray(weight, jnp.float32)
        counted = jnp.where(weight > 0, jnp.minimum(weight, jnp.asarray(max_weight, jnp.float32)), 0)
        return jax.tree.map(lambda leaf: leaf * counted.astype(leaf.dtype), clipped)

    def finish(total, state, key):
        heaviest = 1 if max_weight is None else max_weight
        noise = optax.tree.random_like(key, total, normal)

        def noisy(leaf, draw):
            multiplier, norm, weight, divisor = (
                jnp.asarray(value, leaf.dtype)
                for value in (noise_multiplier, total_norm(clip_norm), heaviest, denominator)
            )
            return (leaf + multiplier * (norm * weight) * draw) / divisor

        return jax.tree.map(noisy, total, noise), state

    return Aggregator(
        init=lambda update: (),
        contribution=contribution,
        finish=finish,
        accountant=gaussian_accountant(noise_multiplier),
    )


def check_denominator(denominator: Any) -> None:
    """Raises ValueError unless the denominator is a number, above 0, that no data had a part in."""
    if denominator is None or isinstance(denominator, str) or callable(denominator):
        raise ValueError(
            f"denominator must be a fixed number, such as the expected cohort size, got {denominator!r}: a denominator "
            "that depends on the data (who took part, how many examples they hold) has no bounded sensitivity"
        )
    checks.positive("denominator", denominator)
