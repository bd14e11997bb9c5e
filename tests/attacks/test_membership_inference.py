"""Scores by hand and against jax-privacy; members of a plain model are found, those of a private one much less."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_privacy import auditing
from scipy import stats

import fedjax_edge as fe
from fedjax_edge.attacks import calibrated_score, loss_score, membership_inference

MEMBERS, ROUNDS, NOISE = 100, 30, 20.0

loss_fn = fe.models.classification(fe.models.logistic_regression())
train = fe.data.mnist_sample().train
members = {name: jnp.asarray(column[:MEMBERS]) for name, column in train.items()}
others = {name: jnp.asarray(column[MEMBERS : MEMBERS + 2000]) for name, column in train.items()}
start = {"Dense_0": {"kernel": jnp.zeros((784, 10)), "bias": jnp.zeros(10)}}


@partial(jax.jit, static_argnums=0)
def trained(aggregator, key):
    """One example a client, everyone in every round; `aggregator` is the one difference."""

    def one_round(params, round_key):
        def contribution(row):
            example = jax.tree.map(lambda column: column[row][None], members)
            gradient = jax.grad(lambda params: loss_fn(params, example, None)[0].sum())(params)
            return aggregator.contribution(optax.tree.scale(-0.1, gradient), jnp.float32(1), ())

        total = jax.tree.map(lambda leaf: leaf.sum(0), jax.vmap(contribution)(jnp.arange(MEMBERS)))
        aggregate = aggregator.finish(total, (), round_key)[0]
        return optax.apply_updates(params, optax.tree.scale(5.0, aggregate)), None

    with jax.numpy_rank_promotion("allow"):  # flax's Dense adds its bias so
        return jax.lax.scan(one_round, start, jax.random.split(key, ROUNDS))[0]


def test_members_are_found_by_a_plain_model_and_not_beyond_its_bound_by_a_private_one(key):
    """A member that is removed scores above another example half of the time; a mechanism that is mu-GDP, as this one
    with mu = sqrt(rounds) / noise, lets that become at most Phi(mu) (Dong, Roth and Su 2022, arXiv:1905.02383)."""
    reports = [
        membership_inference(loss_score(loss_fn, params, members), loss_score(loss_fn, params, others))
        for params in (
            trained(fe.aggregation.uniform_mean(), key),
            trained(fe.privacy.gaussian_mean(0.2, NOISE, denominator=MEMBERS), key),
        )
    ]
    plain, private = (report.auc_interval for report in reports)
    bound = stats.norm.cdf(math.sqrt(ROUNDS) / NOISE)
    assert private[0] <= bound < plain[0]
    assert private[1] < plain[0]
    assert reports[0].auc > 0.7


def test_a_calibrated_score_finds_more_members_at_few_false_alarms(key):
    """17 models of softmax regression on random halves of 400 images; the first is attacked with the help of 16."""
    images = jnp.asarray(train["image"][:400], jnp.float32).reshape(400, 784) / 255
    labels = jnp.asarray(train["label"][:400], jnp.int32)
    included = jax.random.bernoulli(key, 0.5, (17, 400))

    def losses(weights):
        return optax.softmax_cross_entropy_with_integer_labels(images @ weights, labels)

    @jax.jit
    @jax.vmap
    def shadow_losses(mask):
        def descend(weights, _):
            gradient = jax.grad(lambda weights: jnp.where(mask, losses(weights), 0).sum())(weights)
            return weights - 0.005 * gradient, None

        return losses(jax.lax.scan(descend, jnp.zeros((784, 10)), None, length=100)[0])

    shadows = shadow_losses(included)
    calibrated = calibrated_score(shadows[0], shadows[1:], included[1:])
    by_loss, by_ratio = (
        membership_inference(scores[included[0]], scores[~included[0]], false_positive_rate=0.02)
        for scores in (-shadows[0], calibrated)
    )
    assert by_ratio.auc_interval[0] > by_loss.auc_interval[1]
    assert by_ratio.true_positive_interval[0] > by_loss.true_positive_interval[1]


def test_loss_score_is_the_negative_loss():
    np.testing.assert_allclose(loss_score(loss_fn, start, members), -np.full(MEMBERS, np.log(10)), rtol=1e-6)


def test_calibrated_score_is_the_likelihood_ratio_of_scipy():
    """Two examples, two models with and three without each; variances pooled over examples about means of their own."""
    probability = np.array([[0.9, 0.8], [0.7, 0.95], [0.4, 0.3], [0.5, 0.2], [0.35, 0.45]])
    included = np.array([[True, True]] * 2 + [[False, False]] * 3)
    logits, target = np.log(probability / (1 - probability)), np.array([0.85, 0.25])
    variances = [np.square(part - part.mean(0)).sum() / freedom for part, freedom in ((logits[:2], 2), (logits[2:], 4))]
    expected = [
        stats.norm.logpdf(np.log(target / (1 - target)), part.mean(0), np.sqrt(variance))
        for part, variance in zip((logits[:2], logits[2:]), variances, strict=True)
    ]
    actual = calibrated_score(-jnp.log(jnp.array(target)), -jnp.log(jnp.array(probability)), jnp.array(included))
    np.testing.assert_allclose(actual, expected[0] - expected[1], rtol=1e-4)


def test_calibrated_score_of_what_is_unknown_extreme_or_no_number():
    shadows = jnp.array([[0.1, 0.1, 0.0, 0.2], [0.3, 0.2, 200.0, 1.0]])
    included = jnp.array([[True, True, True, True], [True, False, False, False]])
    unknown, *_, extreme, lost = calibrated_score(jnp.array([0.1, 0.2, 0.0, jnp.nan]), shadows, included)
    assert unknown == 0 and np.isfinite(extreme) and np.isnan(lost)


def test_calibrated_score_refuses_numbers_for_coins():
    with pytest.raises(TypeError, match="included must be bool"):
        calibrated_score(jnp.ones(1), jnp.ones((2, 1)), jnp.array([[1], [0]]))


def test_as_many_false_alarms_are_allowed_as_the_rate_says():
    others = np.arange(100.0)
    assert membership_inference(others, others, false_positive_rate=0.29).false_positive_rate == 0.29


def test_areas_rates_and_thresholds_by_hand():
    """16 pairs: 4, 3 win all 4; 2 wins 3 and ties 1; 1 wins 2. At 25 % one false alarm is allowed, above 1.5."""
    report = membership_inference([3.0, 2.0, 1.0, 4.0], [0.0, 2.0, 1.5, -1.0], false_positive_rate=0.25)
    assert report.auc == (4 + 4 + 3.5 + 2) / 16
    assert report.threshold == 1.5 and report.true_positive_rate == 3 / 4 and report.false_positive_rate == 1 / 4
    equal = membership_inference(np.ones(3), np.ones(4))
    assert equal.auc == 0.5 and equal.true_positive_rate == 0 and equal.auc_interval == (0.5, 0.5)
    apart = membership_inference(np.ones(50), np.zeros(50))
    assert apart.auc == apart.true_positive_rate == 1 and apart.false_positive_rate == 0
    low, high = apart.true_positive_interval  # of 50 out of 50: 0.025^(1/50)
    assert low == pytest.approx(0.025 ** (1 / 50)) and high == 1


def test_area_and_rate_agree_with_jax_privacy():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(0.7, 1, 3000), rng.normal(0, 1, 5000)
    report, reference = membership_inference(inside, outside), auditing.CanaryScoreAuditor(inside, outside)
    # Their curve is the convex hull of ours, so that it lies above by a little.
    assert report.auc <= reference.attack_auroc() < report.auc + 0.01
    assert report.true_positive_rate <= reference.tpr_at_given_fpr(0.01) < report.true_positive_rate + 0.02
    assert report.auc == pytest.approx(stats.mannwhitneyu(inside, outside).statistic / (3000 * 5000))


def test_the_interval_of_the_area_is_that_of_delong_over_all_pairs():
    inside, outside = np.random.default_rng(2).integers(0, 6, 9) + 1.0, np.random.default_rng(3).integers(0, 6, 5) + 0.0
    wins = (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)
    variance = wins.mean(1).var(ddof=1) / 9 + wins.mean(0).var(ddof=1) / 5
    report = membership_inference(inside, outside, confidence=0.5)
    assert report.auc_interval[1] - report.auc == pytest.approx(stats.norm.ppf(0.75) * math.sqrt(variance))


def test_the_interval_of_the_area_covers_as_often_as_it_says():
    """400 draws of 60 and 80 with ties, 90 % intervals: coverage within 5 standard errors (0.075) of 0.9."""
    rng = np.random.default_rng(1)
    mean, repeats = 0.8, 400
    truth = membership_inference(*(np.round(rng.normal(m, 1, 100_000), 1) for m in (mean, 0))).auc
    covered = 0
    for _ in range(repeats):
        draws = (np.round(rng.normal(m, 1, n), 1) for m, n in ((mean, 60), (0, 80)))
        low, high = membership_inference(*draws, confidence=0.9).auc_interval
        covered += low <= truth <= high
    assert abs(covered / repeats - 0.9) < 5 * math.sqrt(0.9 * 0.1 / repeats)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": [1.0]}, "members must be at least two finite scores"),
        ({"others": [[1.0, 2.0]]}, "others must be at least two finite scores"),
        ({"others": [1.0, np.nan]}, "others must be at least two finite scores"),
        ({"false_positive_rate": 0.0}, "false_positive_rate must be"),
        ({"confidence": 1.0}, "confidence must be"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        membership_inference(**{"members": [1.0, 2.0], "others": [1.0, 2.0], **change})
