import math

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dp_accounting.pld import PLDAccountant
from scipy import stats

import fedjax_edge as fe
from fedjax_edge import testing
from fedjax_edge.core.protocols import CyclicSampling, FixedSampling, FullParticipation, PoissonSampling, PrivacyError
from fedjax_edge.privacy import calibrate_noise_multiplier, local_gaussian, local_laplace

CLIP, MULTIPLIER, DENOMINATOR = 0.5, 3.0, 10.0
GAUSSIAN, LAPLACE = (make(CLIP, MULTIPLIER, DENOMINATOR) for make in (local_gaussian, local_laplace))
SILENT = {1: local_laplace(CLIP, 0.0, DENOMINATOR), 2: local_gaussian(CLIP, 0.0, DENOMINATOR)}
MAKERS = {"gaussian": local_gaussian, "laplace": local_laplace}
each_mechanism = pytest.mark.parametrize("name", MAKERS)
FALSE_ALARM = 1e-6


def norm(tree, order):
    numbers = np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])
    return np.linalg.norm(numbers, order)


def sent(mechanism, update, seed=0):
    return jax.jit(mechanism.uplink.apply)(update, (), jax.random.key(seed))[0]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("size", [1, 257, 70_000])
def test_what_is_noised_keeps_the_norm_in_floating_point(order, size):
    for scale in (1e-30, 1e-3, 1.0, 1e30):
        update = {"a": scale * jax.random.normal(jax.random.key(size), (size,)), "b": jnp.bfloat16(scale)}
        clipped = sent(SILENT[order], update)
        assert norm(clipped, order) <= CLIP
        assert norm(clipped, order) >= min(norm(update, order), (1 - 2**-12) * CLIP) or scale == 1e30
        assert {leaf.dtype for leaf in jax.tree.leaves(clipped)} == {jnp.dtype(jnp.float32)}


@each_mechanism
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_device_whose_update_is_not_finite_sends_noise_alone(name, bad):
    mechanism = MAKERS[name](CLIP, MULTIPLIER, DENOMINATOR)
    broken, zero = jnp.array([1.0, bad]), jnp.zeros(2)
    np.testing.assert_array_equal(sent(mechanism, broken), sent(mechanism, zero))


def test_gaussian_noise_has_the_scale_that_is_accounted_for():
    form = {"a": jnp.zeros(3), "b": jnp.zeros(())}
    testing.assert_noise_scale(GAUSSIAN.uplink, form, MULTIPLIER * CLIP, jax.random.key(0))
    with pytest.raises(AssertionError, match="has a standard deviation of"):
        testing.assert_noise_scale(GAUSSIAN.uplink, form, MULTIPLIER * CLIP * 2 / 3, jax.random.key(0))
    testing.assert_keys_independent(GAUSSIAN.uplink, jax.random.key(0), leaves=2)
    layered = local_gaussian({"a": 0.3, "b": 0.4}, MULTIPLIER, DENOMINATOR)
    testing.assert_noise_scale(layered.uplink, form, MULTIPLIER * 0.5, jax.random.key(0))


def test_laplace_noise_has_the_scale_that_is_accounted_for():
    noise = np.asarray(sent(LAPLACE, jnp.zeros(20_000)), np.float64) / (MULTIPLIER * CLIP)
    assert stats.kstest(noise, "laplace").pvalue > FALSE_ALARM
    for factor in (2 / 3, 3 / 2):
        assert stats.kstest(noise * factor, "laplace").pvalue < FALSE_ALARM
    testing.assert_keys_independent(LAPLACE.uplink, jax.random.key(0), leaves=2)


@each_mechanism
def test_the_mean_ignores_weights_and_who_is_missing(name):
    aggregator = MAKERS[name](CLIP, MULTIPLIER, DENOMINATOR).aggregator
    updates = jnp.array([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]])
    for weights in (np.ones(3), np.array([5.0, 0.0, 100.0])):
        mean, _ = testing.aggregate(aggregator, updates, weights, jax.random.key(0), present=[True, True, False])
        np.testing.assert_allclose(mean, [0.4, 0.6], rtol=1e-6)


def test_the_gaussians_claim_is_that_of_a_doubled_sensitivity_for_each_round():
    claim = local_gaussian(1.0, 8.0, 10).accountant(FullParticipation(10), 4, 1e-5)
    independent = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_ONE)
    independent.compose(dp_accounting.GaussianDpEvent(8.0), 4)  # which doubles the sensitivity itself
    assert claim.epsilon == pytest.approx(independent.get_epsilon(1e-5), rel=1e-3)
    assert claim.relation == "replace one client's update, as the server sees it"


def test_laplace_claims_are_pure_and_compose_as_at_worst():
    accountant = local_laplace(1.0, 4.0, 10).accountant
    assert accountant(FullParticipation(10), 1, 1e-12).epsilon == pytest.approx(0.5, rel=1e-6)
    assert accountant(FullParticipation(10), 3, 1e-12).epsilon == pytest.approx(1.5, rel=1e-3)
    # Kairouz, Oh and Viswanath, Theorem 3.3: k rounds of epsilon are (k - 2 i) epsilon at this delta.
    rounds, one, i = 20, 0.5, 4
    deltas = [
        math.comb(rounds, j) * (math.exp((rounds - j) * one) - math.exp((rounds - 2 * i + j) * one)) for j in range(i)
    ]
    delta = sum(deltas) / (1 + math.exp(one)) ** rounds
    found = accountant(FullParticipation(10), rounds, delta).epsilon
    assert (rounds - 2 * i) * one * (1 - 1e-9) <= found <= (rounds - 2 * i) * one * 1.01


@pytest.mark.parametrize("multiplier", [1e-4, 0.02, 4.0])
@pytest.mark.parametrize("delta", [1e-300, 1e-15, 1e-5])
def test_laplace_claims_never_exceed_the_sum_however_little_noise_and_delta_there_is(multiplier, delta):
    accountant = local_laplace(1.0, multiplier, 10).accountant
    for rounds in (1, 30):
        claimed, plain = accountant(FullParticipation(10), rounds, delta).epsilon, rounds * 2 / multiplier
        assert 0 < claimed <= plain
        if multiplier < 1 or delta < 1e-12:
            assert claimed == pytest.approx(plain)


@each_mechanism
def test_rounds_count_as_often_as_a_client_takes_part(name):
    accountant = MAKERS[name](1.0, 8.0, 10).accountant
    two = accountant(FullParticipation(10), 2, 1e-5).epsilon
    assert accountant(CyclicSampling(40, 10), 8, 1e-5).epsilon == two
    for sampling in (PoissonSampling(100, 0.01, 0.0), FixedSampling(100, 10)):
        assert accountant(sampling, 2, 1e-5).epsilon == two
    assert accountant(FullParticipation(10), 0, 1e-5).epsilon == 0
    with pytest.raises(PrivacyError, match="in how many rounds a client takes part"):
        accountant(None, 2, 1e-5)
    testing.assert_no_claim_without_noise(lambda z: MAKERS[name](1.0, z, 10))


@each_mechanism
def test_calibration_meets_the_budget(name):
    def accountant_of(multiplier):
        return MAKERS[name](1.0, multiplier, 10).accountant

    found = calibrate_noise_multiplier(1.0, 1e-5, FullParticipation(10), 1, accountant_of)
    assert 0.998 < accountant_of(found)(FullParticipation(10), 1, 1e-5).epsilon <= 1.0
    if name == "laplace":
        assert found == pytest.approx(2.0, rel=2e-3)


@each_mechanism
def test_noise_fills_what_a_codec_before_it_had_emptied(name):
    uplink, update = fe.chain(fe.compression.top_k(0.01), MAKERS[name](1.0, 4.0, 10).uplink), jnp.arange(1000.0)
    sent, _, bits = uplink.apply(update, uplink.init(update), jax.random.key(0))
    assert (sent != 0).all() and bits == 32 * 1000


def test_a_codec_may_follow_and_a_run_claims():
    population = fe.data.from_client_arrays([{"x": np.full((1, 3), k, np.float32)} for k in range(4)])
    algorithm = fe.algorithms.fedavg(
        lambda params, batch, key: batch["x"] @ params, optax.sgd(0.1), batch_size=1, epochs=1,
        uplink=fe.chain(LAPLACE.uplink, fe.compression.stochastic_uniform(8)), aggregator=LAPLACE.aggregator,
    )  # fmt: skip
    given = {"sampler": fe.data.everyone(4), "rounds": 2, "key": jax.random.key(0), "delta": 1e-5, "progress": False}
    result = fe.run(algorithm, jnp.zeros(3), population, **given)
    assert result.claim.epsilon == pytest.approx(2 * 2 / MULTIPLIER, rel=1e-3)
    assert result.history["bits_up"][0] < 4 * 3 * 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm must be"),
        ({"noise_multiplier": -1.0}, "noise_multiplier must be"),
        ({"denominator": None}, "no bounded sensitivity"),
    ],
)
@each_mechanism
def test_values_out_of_range_are_refused(name, change, message):
    with pytest.raises(ValueError, match=message):
        MAKERS[name](**{"clip_norm": 1.0, "noise_multiplier": 1.0, "denominator": 10, **change})
