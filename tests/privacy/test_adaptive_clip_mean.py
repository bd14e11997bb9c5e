from fractions import Fraction

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from fedjax_edge import testing
from fedjax_edge.core.protocols import FixedSampling, FullParticipation, PoissonSampling, PrivacyError
from fedjax_edge.privacy import adaptive_clip_mean, gaussian_accountant

CLIP, MULTIPLIER, DENOMINATOR, COUNT_NOISE = 0.5, 2.0, 20.0, 1.25
Z_DELTA = (MULTIPLIER**-2 - (2 * COUNT_NOISE) ** -2) ** -0.5
AGGREGATOR = adaptive_clip_mean(CLIP, MULTIPLIER, DENOMINATOR, count_noise=COUNT_NOISE)
SILENT = {"noise_multiplier": 0.0, "count_noise": 1e-9}
RNG = np.random.default_rng(0)
UPDATES = {"a": RNG.normal(size=(5, 3)).astype(np.float32), "b": RNG.normal(size=5).astype(np.float32)}
WEIGHTS = np.ones(5, np.float32)
FALSE_ALARM = 1e-6


def test_a_hostile_client_moves_the_sums_by_the_clip_norm_and_a_half():
    testing.assert_sensitivity(AGGREGATOR, UPDATES, WEIGHTS, CLIP, released=lambda total: total[0], rtol=0)
    testing.assert_sensitivity(AGGREGATOR, UPDATES, WEIGHTS, 0.5, released=lambda total: total[1], rtol=0)
    with pytest.raises(AssertionError, match="the sensitivity is claimed to be"):
        testing.assert_sensitivity(AGGREGATOR, UPDATES, WEIGHTS, 0.49, released=lambda total: total[1])


def test_both_sums_in_units_of_their_noise_move_by_what_one_gaussian_allows():
    def released(total):
        return jax.tree.map(lambda leaf: leaf / (Z_DELTA * CLIP), total[0]), total[1] / COUNT_NOISE

    testing.assert_sensitivity(AGGREGATOR, UPDATES, WEIGHTS, 1 / MULTIPLIER, released=released)
    with pytest.raises(AssertionError, match="the sensitivity is claimed to be"):
        testing.assert_sensitivity(AGGREGATOR, UPDATES, WEIGHTS, 0.99 / MULTIPLIER, released=released)


def test_the_mean_gets_the_larger_share_of_the_noise():
    scale = Z_DELTA * CLIP / DENOMINATOR
    testing.assert_noise_scale(AGGREGATOR, {"a": jnp.zeros(3), "b": jnp.zeros(())}, scale, jax.random.key(0))
    with pytest.raises(AssertionError, match="has a standard deviation of"):
        testing.assert_noise_scale(
            AGGREGATOR, {"a": jnp.zeros(3), "b": jnp.zeros(())}, 2 / 3 * scale, jax.random.key(0)
        )


def test_the_count_gets_its_own_noise():
    zero = jnp.zeros(2), jnp.float32(0)
    keys = jax.random.split(jax.random.key(1), 4000)
    means, bounds = jax.jit(jax.vmap(lambda key: AGGREGATOR.finish(zero, jnp.float32(CLIP), key)))(keys)
    noise = -np.log(np.asarray(bounds, np.float64) / CLIP) / 0.2 * DENOMINATOR / COUNT_NOISE  # share - 1/2 is the noise
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], df=noise.size)
    assert low <= np.sum(noise**2) <= high
    assert not low <= np.sum((noise * 1.5) ** 2) <= high
    assert stats.kstest(noise, "norm").pvalue > FALSE_ALARM
    assert abs(np.corrcoef(noise, means[:, 0])[0, 1]) < 5 / np.sqrt(noise.size)


def test_the_two_noises_have_keys_of_their_own():
    with jax.debug_key_reuse(True):
        AGGREGATOR.finish((jnp.zeros(2), jnp.float32(0)), jnp.float32(CLIP), jax.random.key(1))


def test_one_round_by_hand():
    aggregator = adaptive_clip_mean(1.0, denominator=4, quantile=0.75, learning_rate=0.5, **SILENT)
    updates = jnp.array([[3.0, 4.0], [0.1, 0.0], [0.0, 0.2]])
    mean, bound = testing.aggregate(aggregator, updates, np.ones(3), jax.random.key(0))
    np.testing.assert_allclose(mean, [(0.6 + 0.1) / 4, (0.8 + 0.2) / 4], rtol=2e-4)
    share = 0.5 + (0.5 + 0.5 - 0.5) / 4
    assert float(bound) == pytest.approx(np.exp(-0.5 * (share - 0.75)), rel=1e-5)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
def test_the_clip_norm_finds_a_known_quantile(quantile):
    # 200 clients whose norms are 1/200, 2/200, ..., 1: the quantile of the norms is `quantile` itself.
    aggregator = adaptive_clip_mean(2.0, 1.0, 200, quantile=quantile, count_noise=2.0)
    updates = jnp.arange(1, 201, dtype=jnp.float32)[:, None] / 200 * jnp.array([[0.6, 0.8]])

    def round_(bound, key):
        sums = jax.vmap(lambda update: aggregator.contribution(update, jnp.float32(1), bound))(updates)
        _, bound = aggregator.finish(jax.tree.map(lambda leaf: leaf.sum(0), sums), bound, key)
        return bound, bound

    _, bounds = jax.lax.scan(round_, aggregator.init(updates[0]), jax.random.split(jax.random.key(2), 300))
    assert np.mean(np.asarray(bounds)[-150:]) == pytest.approx(quantile, abs=0.02)


def test_a_client_at_the_clip_norm_counts_as_it_is_treated():
    _, bits = jax.vmap(lambda length: AGGREGATOR.contribution(length[None], jnp.float32(1), jnp.float32(1)))(
        jnp.array([1 - 2.0**-13, 1.0, 0.0, jnp.inf, jnp.nan])
    )
    np.testing.assert_array_equal(bits, [0.5, -0.5, 0.5, -0.5, -0.5])


def test_a_rejected_client_and_an_absent_one_add_nothing():
    updates = jnp.array([[0.1, 0.0], [jnp.nan, 0.0], [5.0, 5.0]])
    kept = testing.aggregate(AGGREGATOR, updates[:1], np.ones(1), jax.random.key(0))
    both = testing.aggregate(AGGREGATOR, updates, np.ones(3), jax.random.key(0), present=[True, True, False])
    np.testing.assert_array_equal(kept[0], both[0])
    assert kept[1] == both[1]


def test_the_clip_norm_stays_where_floats_can_hold_it():
    aggregator = adaptive_clip_mean(1.0, denominator=1, quantile=1e-3, learning_rate=30.0, **SILENT)
    bound = jnp.float32(1e-3)
    for _ in range(3):
        zeros = aggregator.contribution(jnp.zeros(1000), jnp.float32(1), bound)
        _, bound = aggregator.finish(zeros, bound, jax.random.key(0))
        assert float(bound) == 2.0**-40


@pytest.mark.parametrize("sampling", [PoissonSampling(300, 0.5, 0.0), FixedSampling(300, 150), FullParticipation(300)])
def test_the_claim_is_that_of_one_gaussian(sampling):
    claim, gaussian = AGGREGATOR.accountant(sampling, 10, 1e-3), gaussian_accountant(MULTIPLIER)(sampling, 10, 1e-3)
    assert claim == gaussian._replace(accountant=f"{gaussian.accountant}, of mean and count together")


@pytest.mark.parametrize("traced", ["count_noise", "denominator"])
def test_noise_on_the_count_that_is_not_known_gets_no_claim(traced):
    seen = []
    given = {"clip_norm": 1.0, "noise_multiplier": 1.0, "denominator": 100}
    jax.jit(lambda value: seen.append(adaptive_clip_mean(**{**given, traced: value})) or value)(10.0)
    with pytest.raises(PrivacyError, match="count_noise, or the denominator that it follows, is traced"):
        seen[0].accountant(FullParticipation(100), 1, 1e-5)


def test_the_split_is_that_of_two_gaussians_composed():
    # Independent: dp-accounting composes the two parts' events to the privacy of one with multiplier z.
    events = [dp_accounting.GaussianDpEvent(Z_DELTA), dp_accounting.GaussianDpEvent(2 * COUNT_NOISE)]
    accountant = dp_accounting.pld.PLDAccountant()
    for event in events:
        accountant.compose(event)
    assert accountant.get_epsilon(1e-5) == pytest.approx(dp_accounting.get_epsilon_gaussian(MULTIPLIER, 1e-5), rel=1e-3)
    testing.assert_no_claim_without_noise(lambda z: adaptive_clip_mean(1.0, z, 100))


@pytest.mark.parametrize("excess", [2.0**-52, 1e-12, 1e-9, 1e-3])
def test_noise_on_the_count_barely_above_the_least_leaves_a_finite_mean(excess):
    multiplier, count_noise = 2.0, 1 + excess
    aggregator = adaptive_clip_mean(1.0, multiplier, 100, count_noise=count_noise)
    mean, _ = jax.jit(aggregator.finish)((jnp.zeros(4000), jnp.float32(0)), jnp.float32(1), jax.random.key(0))
    expected = (float(1 / Fraction(multiplier) ** 2 - 1 / (2 * Fraction(count_noise)) ** 2)) ** -0.5
    assert float(jnp.std(mean)) * 100 == pytest.approx(expected, rel=0.05)
    gentle = [float(adaptive_clip_mean(norm, 1.0, 100).init(None)) for norm in (2.0**-40, 2.0**40)]
    assert gentle == [2.0**-40, 2.0**40]


def test_it_runs_traced_narrow_and_on_awkward_trees():
    tree = {"scalar": jnp.bfloat16(3.0), "empty": jnp.zeros((0, 2)), "one": jnp.ones(1, jnp.float16)}

    @jax.jit
    def released(clip_norm, noise_multiplier, denominator):
        aggregator = adaptive_clip_mean(clip_norm, noise_multiplier, denominator)
        total = aggregator.contribution(tree, jnp.float32(1), aggregator.init(tree))
        return aggregator.finish(total, aggregator.init(tree), jax.random.key(0))

    mean, bound = released(1.0, 0.0, 10.0)
    assert jax.tree.map(lambda leaf: leaf.dtype, mean) == {k: jnp.float32 for k in tree} and bound.dtype == jnp.float32
    assert float(optax.tree.norm(mean)) == pytest.approx(0.1, rel=2e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm must be"),
        ({"clip_norm": {"a": 1.0}}, "clip_norm must be"),
        ({"clip_norm": 2.0**-41}, r"clip_norm must be a number from 9.09e-13 to 1.1e\+12, got"),
        ({"clip_norm": 1e300}, "clip_norm must be a number from"),
        ({"noise_multiplier": -1.0}, "noise_multiplier must be"),
        ({"denominator": None}, "no bounded sensitivity"),
        ({"quantile": 0.0}, "quantile must be"),
        ({"quantile": 1.5}, "quantile must be"),
        ({"learning_rate": -0.1}, "learning_rate must be"),
        ({"count_noise": 0.0}, "count_noise must be"),
        ({"count_noise": 0.5}, "count_noise must be above noise_multiplier / 2 = 0.5"),
        ({"denominator": 10}, "count_noise must be above noise_multiplier / 2 = 0.5, got 0.5"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        adaptive_clip_mean(**{"clip_norm": 1.0, "noise_multiplier": 1.0, "denominator": 100, **change})
