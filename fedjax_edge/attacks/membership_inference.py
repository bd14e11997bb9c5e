"""Who was in the training data? Scores of examples, and how well they tell members from others."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from fedjax_edge.core import checks
from fedjax_edge.core.losses import example_losses
from fedjax_edge.core.protocols import LossFn, PyTree


class Membership(NamedTuple):
    """How well a score tells members from others, with confidence intervals (low, high)."""

    auc: float  # probability that a random member scores above a random other; 0.5 is guessing
    auc_interval: tuple[float, float]
    true_positive_rate: float  # of members above the threshold
    true_positive_interval: tuple[float, float]
    false_positive_rate: float  # of others above the threshold, at most the rate asked for
    false_positive_interval: tuple[float, float]
    threshold: float
    confidence: float


def loss_score(loss_fn: LossFn, params: PyTree, batch: PyTree) -> jax.Array:
    """The negative loss of each example: members, being learned, score higher.

    The attack of Yeom et al. 2018 (arXiv:1709.01604, Section 3, Adversary 1 with a threshold on the loss).

    Args:
      loss_fn: the model's loss, one number per example; called without a key.
      params: the model's parameters.
      batch: leaves [batch, ...].

    Returns:
      float [batch].

    >>> print(loss_score(lambda params, batch, key: (batch - params) ** 2, 1.0, jnp.array([1.0, 3.0])))
    [-0. -4.]
    """
    return -example_losses(loss_fn, params, batch, None)[0]


def calibrated_score(losses: jax.Array, shadow_losses: jax.Array, included: jax.Array) -> jax.Array:
    """The likelihood ratio of each example's loss between models that were trained with it and without it.

    LiRA, the online attack of Carlini et al. 2022 (arXiv:2112.03570, Algorithm 1): a cross entropy l becomes the logit
    `log(p / (1 - p))` of `p = exp(-l)`, to which a normal is fitted for each example over the shadow models that saw it
    and over those that did not, with one variance for all examples, the paper's choice where shadow models are few.
    Unlike the plain loss it knows which examples are hard for everyone.

    | case                                     | result                                                            |
    |------------------------------------------|-------------------------------------------------------------------|
    | all shadow models saw it, or none did    | 0: nothing is known                                               |
    | a loss of 0, or so large that p is 0     | its logit is held within 80 of 0                                  |
    | a loss that is not a number              | NaN; one of a shadow model: NaN for all, whose variance is common |

    Args:
      losses: float [examples], of the model under attack; at least 0, such as cross entropies.
      shadow_losses: float [models, examples], of models trained alike on random halves of the examples.
      included: bool [models, examples], which of them each was trained on.

    Returns:
      float32 [examples]; above 0 where membership is likelier.

    Raises:
      TypeError: `included` is not bool.

    >>> shadows, included = jnp.array([[0.1], [0.2], [2.0], [3.0]]), jnp.array([[True], [True], [False], [False]])
    >>> bool(calibrated_score(jnp.array([0.1]), shadows, included)[0] > 0)
    True
    """
    if included.dtype != bool:
        raise TypeError(f"included must be bool [models, examples], got {included.dtype}")
    logits, shadows = _logit(losses), _logit(shadow_losses)
    means, squares, counts = [], [], []
    for saw_it in (included, ~included):
        weight = saw_it.astype(shadows.dtype)
        count = weight.sum(0)
        mean = (weight * shadows).sum(0) / jnp.maximum(count, 1)
        means.append(mean)
        counts.append(count)
        squares.append((weight * jnp.square(shadows - mean[None])).sum(0))
    with_it, without_it = (
        -0.5 * jnp.square(logits - mean) / _variance(square, count) - 0.5 * jnp.log(_variance(square, count))
        for mean, square, count in zip(means, squares, counts, strict=True)
    )
    is_known = (counts[0] > 0) & (counts[1] > 0)
    return jnp.where(is_known, with_it - without_it, 0.0 * logits)


def membership_inference(
    members: jax.Array, others: jax.Array, *, false_positive_rate: float = 0.01, confidence: float = 0.95
) -> Membership:
    """How well a score tells members from others: the area under the ROC curve, and the rate found at few false alarms.

    The second is what matters (Carlini et al. 2022, Section 3): an attack that names a few members for certain is a
    leak, although on average it hardly beats guessing. The threshold is the lowest score of the others that keeps
    their rate of false alarms within `false_positive_rate`; members strictly above it are found.

    The interval of the area is DeLong's (1988), normal for many examples, and clipped to [0, 1]. Those of the rates are
    Clopper and Pearson's, for this threshold: as it is chosen on the same others, its true rate of false alarms may
    lie above the one that is asked for, and `false_positive_interval` says how far. Examples are taken for independent.

    | case                                | result                                                             |
    |-------------------------------------|--------------------------------------------------------------------|
    | all scores equal                    | area 0.5, nobody is found                                          |
    | members all above others            | area 1, all are found; the area's interval is a point, not a proof |
    | fewer than 1 / rate others          | no false alarm is allowed: the threshold is their highest score    |

    Args:
      members, others: scores, float [n] and [m], higher for members; at least two each, all finite.
      false_positive_rate: the rate of false alarms allowed, in (0, 1].
      confidence: of each interval, in (0, 1).

    Returns:
      A `Membership`. This runs on the host, outside of jit.

    Raises:
      ValueError: fewer than two scores of a kind, scores that are not finite, or a rate out of range.

    >>> report = membership_inference(jnp.array([3.0, 2.0, 1.0, 4.0]), jnp.array([0.0, 2.0, 1.5, -1.0]))
    >>> report.auc, report.true_positive_rate
    (0.84375, 0.5)
    """
    checks.probability("false_positive_rate", false_positive_rate)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be a number above 0 and below 1, got {confidence!r}")
    members, others = _scores("members", members), _scores("others", others)

    allowed = int(false_positive_rate * len(others) * (1 + 1e-12))  # 0.29 * 100 is below 29
    threshold = np.sort(others)[::-1][min(allowed, len(others) - 1)]
    found, false_alarms = int((members > threshold).sum()), int((others > threshold).sum())
    auc, error = _area(members, others)
    reach = float(scipy.stats.norm.ppf((1 + confidence) / 2)) * error
    return Membership(
        auc=auc,
        auc_interval=(max(auc - reach, 0.0), min(auc + reach, 1.0)),
        true_positive_rate=found / len(members),
        true_positive_interval=_clopper_pearson(found, len(members), confidence),
        false_positive_rate=false_alarms / len(others),
        false_positive_interval=_clopper_pearson(false_alarms, len(others), confidence),
        threshold=float(threshold),
        confidence=confidence,
    )


def _logit(losses: jax.Array) -> jax.Array:
    losses = jnp.asarray(losses, jnp.float32)
    return jnp.clip(-losses - jnp.log(-jnp.expm1(-losses)), -80, 80)


def _variance(squares: jax.Array, counts: jax.Array) -> jax.Array:
    """The variance common to all examples about means of their own; a floor keeps equal losses finite."""
    freedom = jnp.maximum(counts - 1, 0).sum()
    return jnp.maximum(squares.sum() / jnp.maximum(freedom, 1), 1e-6)


def _scores(name: str, scores: jax.Array) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or len(scores) < 2 or not np.isfinite(scores).all():
        raise ValueError(f"{name} must be at least two finite scores, [n], got shape {scores.shape}")
    return scores


def _area(members: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """The area under the ROC curve, ties counting half, and its standard error after DeLong."""
    rank = scipy.stats.rankdata
    ranks = rank(np.concatenate([members, others]))
    above = (ranks[: len(members)] - rank(members)) / len(others)  # each member's share of others below it
    below = 1 - (ranks[len(members) :] - rank(others)) / len(members)
    return float(above.mean()), float(np.sqrt(above.var(ddof=1) / len(members) + below.var(ddof=1) / len(others)))


def _clopper_pearson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    interval = scipy.stats.binomtest(successes, trials).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)
