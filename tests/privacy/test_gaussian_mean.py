import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from fedjax_edge import testing
from fedjax_edge.core.protocols import FixedSampling, PoissonSampling, PrivacyError
from fedjax_edge.privacy import gaussian_mean

CLIP_NORM, MAX_WEIGHT = 0.7, 3.0
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
any_float = st.floats(width=32)

uniform = jax.jit(gaussian_mean(CLIP_NORM, 1.0, denominator=5).contribution)
weighted = jax.jit(gaussian_mean(CLIP_NORM, 1.0, denominator=5, max_weight=MAX_WEIGHT).contribution)


def exact_norm(update):
    return np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(update)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(hnp.arrays(np.float32, (3, 4), elements=finite), hnp.arrays(np.float32, (5,), elements=finite), any_float)
def test_no_client_moves_the_sum_further_than_the_sensitivity(matrix, vector, weight):
    update = {"matrix": jnp.asarray(matrix), "vector": jnp.asarray(vector)}
    assert exact_norm(uniform(update, jnp.float32(weight), ())) <= CLIP_NORM
    assert exact_norm(weighted(update, jnp.float32(weight), ())) <= CLIP_NORM * MAX_WEIGHT


def test_uniform_contributions_ignore_weights():
    update = {"w": jnp.array([0.1, 0.2])}
    for weight in (0.0, 1.0, 1000.0, np.nan):
        np.testing.assert_array_equal(uniform(update, jnp.float32(weight), ())["w"], update["w"])


@pytest.mark.parametrize(
    ("weight", "counted"), [(2.0, 2.0), (3.0, 3.0), (50.0, 3.0), (np.inf, 3.0), (0.0, 0.0), (-1.0, 0.0), (np.nan, 0.0)]
)
def test_weights_are_bounded(weight, counted):
    update = {"w": jnp.array([0.1, 0.2])}
    np.testing.assert_allclose(weighted(update, jnp.float32(weight), ())["w"], counted * update["w"], rtol=1e-6)


def test_without_noise_it_is_the_sum_of_clipped_updates_over_the_denominator():
    aggregator = gaussian_mean(1.0, 0.0, denominator=4)
    updates = jnp.array([[3.0, 4.0], [0.1, 0.0]])
    total = sum(aggregator.contribution(update, jnp.float32(1), aggregator.init(update)) for update in updates)
    aggregate, state = aggregator.finish(total, (), jax.random.key(0))
    np.testing.assert_allclose(aggregate, [(0.6 + 0.1) / 4, 0.8 / 4], rtol=2e-4)
    assert state == ()


FALSE_ALARM = 1e-6  # of each chi-square test below, were the sigma right; keys are fixed, so it passes always or never


def has_standard_deviation(samples, sigma):
    samples = np.ravel(np.asarray(samples, np.float64))
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], df=samples.size)
    return low <= np.sum(np.square(samples / sigma)) <= high


@pytest.mark.parametrize("max_weight", [None, 2.5])
def test_noise_has_the_standard_deviation_that_is_accounted_for(max_weight):
    clip_norm, multiplier, denominator = 0.3, 2.0, 50.0
    aggregator = gaussian_mean(clip_norm, multiplier, denominator, max_weight)
    zero = {"a": jnp.zeros((40, 50)), "b": jnp.zeros((2000,)), "c": jnp.zeros((1,))}
    aggregate, _ = aggregator.finish(zero, (), jax.random.key(0))
    sigma = multiplier * clip_norm * (max_weight or 1)
    for leaf in (aggregate["a"], aggregate["b"]):
        noise = leaf * denominator
        assert has_standard_deviation(noise, sigma)
        assert not has_standard_deviation(noise, sigma * 2 / 3)
        assert not has_standard_deviation(noise, sigma * 3 / 2)
        assert stats.kstest(np.ravel(noise) / sigma, "norm").pvalue > FALSE_ALARM
        assert abs(np.mean(noise)) < 5 * sigma / np.sqrt(leaf.size)


def test_leaves_entries_and_keys_have_noise_of_their_own():
    aggregator = gaussian_mean(1.0, 1.0, denominator=1)
    zero = {"a": jnp.zeros((2000,)), "b": jnp.zeros((2000,))}
    first, _ = aggregator.finish(zero, (), jax.random.key(0))
    again, _ = aggregator.finish(zero, (), jax.random.key(0))
    other, _ = aggregator.finish(zero, (), jax.random.key(1))
    np.testing.assert_array_equal(first["a"], again["a"])
    streams = np.stack([first["a"], first["b"], other["a"], other["b"], np.roll(first["a"], 1)])
    correlation = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlation).max() < 5 / np.sqrt(2000)  # five standard errors


def test_narrow_updates_are_summed_and_noised_in_float32():
    update = {"w": jnp.full((3,), 0.1, jnp.bfloat16)}
    aggregator = gaussian_mean(1.0, 1.0, denominator=1)
    contribution = aggregator.contribution(update, jnp.float32(1), ())
    assert contribution["w"].dtype == jnp.float32
    np.testing.assert_array_equal(contribution["w"], update["w"].astype(jnp.float32))
    assert aggregator.finish(contribution, (), jax.random.key(0))[0]["w"].dtype == jnp.float32


@pytest.mark.parametrize("denominator", [None, "cohort", len])
def test_denominators_that_depend_on_data_are_refused(denominator):
    with pytest.raises(ValueError, match="no bounded sensitivity"):
        gaussian_mean(1.0, 1.0, denominator)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm must be"),
        ({"clip_norm": np.inf}, "clip_norm must be"),
        ({"noise_multiplier": -1.0}, "noise_multiplier must be"),
        ({"noise_multiplier": np.nan}, "noise_multiplier must be"),
        ({"denominator": 0}, "denominator must be"),
        ({"denominator": True}, "denominator must be"),
        ({"max_weight": 0.0}, "max_weight must be"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        gaussian_mean(**{"clip_norm": 1.0, "noise_multiplier": 1.0, "denominator": 10, **change})


def test_hyperparameters_may_be_numpy_scalars_and_arrays():
    scalars = [(1.0, 2.0, 4), tuple(np.float64(v) for v in (1, 2, 4)), tuple(jnp.float32(v) for v in (1, 2, 4))]
    results = [gaussian_mean(*s, max_weight=s[1]).finish(jnp.ones(3), (), jax.random.key(0))[0] for s in scalars]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_accountant_is_that_of_the_noise_multiplier():
    claim = gaussian_mean(0.1, 2.75, denominator=150, max_weight=7.0).accountant(
        PoissonSampling(300, 0.5, 0.0), 40, 1e-3
    )
    assert claim.epsilon == pytest.approx(3.95, abs=0.005)
    assert gaussian_mean(0.1, 2.75, 150).accountant(FixedSampling(300, 150), 40, 1e-3).relation == "replace one client"


def test_one_compilation_serves_a_sweep_and_claims_nothing():
    seen = []

    @jax.jit
    def noisy(noise_multiplier, clip_norm):
        aggregator = gaussian_mean(clip_norm, noise_multiplier, denominator=10)
        seen.append(aggregator)
        return aggregator.finish(jnp.zeros(2000), (), jax.random.key(0))[0]

    assert has_standard_deviation(noisy(1.0, 0.5), 0.05)
    assert has_standard_deviation(noisy(2.0, 0.5), 0.1)
    assert len(seen) == 1
    with pytest.raises(PrivacyError, match="noise_multiplier is traced"):
        seen[0].accountant(PoissonSampling(300, 0.5, 0.0), 40, 1e-3)


def test_clipping_by_layer_has_the_noise_of_its_whole_sensitivity():
    norms = {"a": 0.3, "b": 0.4}
    aggregator = gaussian_mean(norms, 2.0, denominator=5.0)
    updates = {"a": np.ones((3, 2), np.float32), "b": np.ones(3, np.float32)}
    testing.assert_sensitivity(aggregator, updates, np.ones(3), 0.5, rtol=0)
    testing.assert_sensitivity(aggregator, updates, np.ones(3), 0.3, released=lambda total: total["a"], rtol=0)
    with pytest.raises(AssertionError, match="the sensitivity is claimed"):
        testing.assert_sensitivity(aggregator, updates, np.ones(3), 0.49)
    testing.assert_noise_scale(aggregator, {"a": jnp.zeros(2), "b": jnp.zeros(1)}, 2.0 * 0.5 / 5, jax.random.key(0))
