from itertools import combinations

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_edge as fe
from fedjax_edge import testing
from fedjax_edge.core.protocols import (
    CyclicSampling,
    FixedSampling,
    FullParticipation,
    PoissonSampling,
    PrivacyError,
)
from fedjax_edge.privacy import (
    banded_toeplitz_noise,
    blt_noise,
    calibrate_noise_multiplier,
    correlated_mean,
    gaussian_accountant,
    streaming_noise,
    tree_noise,
)

jax_privacy = pytest.importorskip("jax_privacy.matrix_factorization")

MULTIPLIER, DELTA = 4.0, 1e-5
TREE, BANDED, BLT = tree_noise(12), banded_toeplitz_noise(12, 4), blt_noise(12, [0.98, 0.7], [0.17, 0.31])
FOURTH = CyclicSampling(100, 25)


def sensitivity(strategy, sampling, rounds=12):
    """What the claim says, undone: the multiplier of the one Gaussian with this epsilon."""
    aggregator = correlated_mean(strategy, 1.0, MULTIPLIER, 25)
    epsilon = aggregator.accountant(sampling, rounds, DELTA).epsilon
    return MULTIPLIER / dp_accounting.get_sigma_gaussian(epsilon, DELTA)


def gram(strategy):
    return np.linalg.inv(strategy.mixing() @ strategy.mixing().T)


@pytest.mark.parametrize("strategy", [TREE, BANDED, BLT], ids=["tree", "banded", "blt"])
def test_sensitivities_are_those_of_jax_privacy(strategy):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        matrix = jnp.asarray(gram(strategy))
        fourth = jax_privacy.sensitivity.fixed_epoch_sensitivity_for_X(matrix, epochs=3)
        every = jax_privacy.sensitivity.fixed_epoch_sensitivity_for_X(matrix, epochs=12)
        apart = jax_privacy.sensitivity.get_min_sep_sensitivity_upper_bound_for_X(matrix, min_sep=3)
    assert sensitivity(strategy, FOURTH) == pytest.approx(fourth, rel=1e-4)
    assert sensitivity(strategy, FullParticipation(100)) == pytest.approx(every, rel=1e-4)
    assert sensitivity(strategy, CyclicSampling(100, 30)) == pytest.approx(apart, rel=1e-4)


@pytest.mark.parametrize("strategy", [TREE, BLT], ids=["tree", "blt"])
def test_no_pattern_and_no_signs_beat_the_sensitivity(strategy):
    root = np.linalg.cholesky(gram(strategy)).T
    rng = np.random.default_rng(0)
    patterns = [p for k in (1, 2, 3, 4) for p in combinations(range(12), k) if all(np.diff(p) >= 3)]
    for pattern in patterns:
        signs = rng.choice([-1.0, 1.0], size=(len(pattern), 5)) * 1.0
        moved = max(np.linalg.norm(root[:, pattern] @ s) for s in [*signs.T, np.ones(len(pattern))])
        assert moved <= sensitivity(strategy, CyclicSampling(100, 30)) * (1 + 1e-6)
        if set(np.diff(pattern)) <= {4}:
            assert moved <= sensitivity(strategy, FOURTH) * (1 + 1e-6)


def test_columns_that_oppose_one_another_cost_what_opposed_updates_make_of_them():
    opposed = streaming_noise(jax_privacy.toeplitz.inverse_as_streaming_matrix(jnp.array([1.0, -0.5])), 12)
    encoder = np.linalg.inv(opposed.mixing())
    alternating = np.linalg.norm(encoder @ (-1.0) ** np.arange(12))
    assert sensitivity(opposed, FullParticipation(100)) == pytest.approx(alternating, rel=1e-5)


def test_without_noise_it_is_the_clipped_mean():
    updates = jnp.array([[3.0, 4.0], [0.1, 0.0]])
    mean, _ = testing.aggregate(correlated_mean(TREE, 1.0, 0.0, 4), updates, np.ones(2), jax.random.key(0))
    np.testing.assert_allclose(mean, [(0.6 + 0.1) / 4, 0.8 / 4], rtol=2e-4)


def test_bands_within_the_separation_cost_the_root_of_the_participations():
    assert sensitivity(BANDED, FOURTH) == pytest.approx(3**0.5, rel=1e-5)
    assert sensitivity(BANDED, CyclicSampling(100, 50)) > 1.2 * 6**0.5  # rounds only 2 apart


def test_independent_noise_has_the_claim_of_the_gaussian_mean():
    independent = correlated_mean(banded_toeplitz_noise(12, 1), 1.0, MULTIPLIER, 25)
    for sampling in (FOURTH, CyclicSampling(100, 30), FullParticipation(100)):
        claim = independent.accountant(sampling, 12, DELTA)
        assert claim.epsilon == pytest.approx(gaussian_accountant(MULTIPLIER)(sampling, 12, DELTA).epsilon, rel=1e-5)


def test_fewer_rounds_claim_what_was_released_by_then():
    accountant = correlated_mean(TREE, 1.0, MULTIPLIER, 25).accountant
    curve = [accountant(FOURTH, rounds, DELTA).epsilon for rounds in range(13)]
    assert curve[0] == 0 and (np.diff(curve) >= 0).all()
    assert curve[1] == pytest.approx(dp_accounting.get_epsilon_gaussian(MULTIPLIER, DELTA))
    root = np.sqrt(np.linalg.inv((TREE.mixing() @ TREE.mixing().T)[:4, :4]).diagonal().max())
    assert curve[4] == pytest.approx(dp_accounting.get_epsilon_gaussian(MULTIPLIER / root, DELTA))


def test_the_claim_says_what_it_is_about():
    claim = correlated_mean(BANDED, 1.0, MULTIPLIER, 25).accountant(FOURTH, 12, DELTA)
    assert claim.sampling == "25 of 100 clients in turn, a client's rounds 4 or more apart"
    assert claim.relation == "zero out one client (its contributions become zero)"
    assert claim.accountant.endswith("over 12 rounds, at most 3 of them a client's")
    assert (claim.rounds, claim.noise_multiplier) == (12, MULTIPLIER)


@pytest.mark.parametrize("sampling", [PoissonSampling(100, 0.25, 1e-12), FixedSampling(100, 25)])
def test_nothing_is_gained_from_chance(sampling):
    claim = correlated_mean(TREE, 1.0, MULTIPLIER, 25).accountant(sampling, 12, DELTA)
    full = correlated_mean(TREE, 1.0, MULTIPLIER, 25).accountant(FullParticipation(100), 12, DELTA)
    assert claim.epsilon == full.epsilon and "no gain from chance" in claim.sampling


@pytest.mark.parametrize("samplings", [(FOURTH, FixedSampling(100, 25)), (FixedSampling(100, 25), FOURTH)])
def test_samplings_that_are_equal_as_tuples_are_not_mistaken_for_one_another(samplings):
    asked = correlated_mean(TREE, 1.0, MULTIPLIER, 25).accountant
    for sampling in samplings:
        fresh = correlated_mean(TREE, 1.0, MULTIPLIER, 25).accountant
        assert asked(sampling, 12, DELTA) == fresh(sampling, 12, DELTA)
    assert len({asked(sampling, 12, DELTA).epsilon for sampling in samplings}) == 2


def test_more_rounds_than_planned_and_unknown_participation_are_refused():
    accountant = correlated_mean(TREE, 1.0, MULTIPLIER, 25).accountant
    with pytest.raises(PrivacyError, match="made for 12 rounds, and nothing is claimed for 13"):
        accountant(FOURTH, 13, DELTA)
    with pytest.raises(PrivacyError, match="this sampler does not say"):
        accountant(None, 3, DELTA)
    with pytest.raises(PrivacyError, match="counts to 2\\^32"):
        gaussian_accountant(1.0)(CyclicSampling(2**31 - 1, 2**30), 4, DELTA)
    testing.assert_no_claim_without_noise(lambda z: correlated_mean(TREE, 1.0, z, 25))
    seen = []
    jax.jit(lambda z: seen.append(correlated_mean(TREE, 1.0, z, 25)) or z)(1.0)
    with pytest.raises(PrivacyError, match="noise_multiplier is traced"):
        seen[0].accountant(FOURTH, 1, DELTA)


@pytest.mark.parametrize("strategy", [TREE, BANDED], ids=["tree", "banded"])
def test_the_sum_is_clipped_and_noised_on_the_scale_of_the_sum(strategy):
    aggregator = correlated_mean(strategy, 0.5, MULTIPLIER, 20.0)
    updates = {"a": np.ones((3, 2), np.float32), "b": np.ones(3, np.float32)}
    testing.assert_sensitivity(aggregator, updates, np.ones(3), 0.5, rtol=0)
    scale = MULTIPLIER * 0.5 / 20 * strategy.mixing()[0, 0]
    testing.assert_noise_scale(aggregator, {"a": jnp.zeros(2), "b": jnp.zeros(())}, scale, jax.random.key(0))
    for factor in (2 / 3, 3 / 2):
        with pytest.raises(AssertionError, match="has a standard deviation of"):
            testing.assert_noise_scale(
                aggregator, {"a": jnp.zeros(2), "b": jnp.zeros(())}, factor * scale, jax.random.key(0)
            )


def test_a_run_adds_the_noise_that_cancels():
    # All gradients are zero: what the model ends with after 8 rounds is the noise of the tree's third level alone.
    population = fe.data.from_client_arrays([{"x": np.zeros((1, 2000), np.float32)}] * 4)
    algorithm = fe.algorithms.fedavg(
        lambda params, batch, key: 0 * (batch["x"] @ params), optax.sgd(1.0), batch_size=1, epochs=1,
        aggregator=correlated_mean(tree_noise(8), 1.0, 3.0, denominator=2),
    )  # fmt: skip
    given = {"sampler": fe.data.cyclic(4, 2), "key": jax.random.key(1), "delta": DELTA, "progress": False}
    result = fe.run(algorithm, jnp.zeros(2000), population, rounds=8, **given)
    expected = 3.0 / 2 * (8 / 15) ** 0.5
    assert float(jnp.std(result.params)) == pytest.approx(expected, rel=5 / (2 * 2000) ** 0.5)
    assert result.claim.sampling == "2 of 4 clients in turn, a client's rounds 2 or more apart"
    with pytest.raises(PrivacyError, match="nothing is claimed for 9"):
        fe.run(algorithm, jnp.zeros(2000), population, rounds=9, **given)


def test_calibration_finds_the_multiplier_of_any_mechanism():
    def accountant_of(multiplier):
        return correlated_mean(TREE, 1.0, multiplier, 25).accountant

    found = calibrate_noise_multiplier(2.0, DELTA, FOURTH, 12, accountant_of)
    assert found == pytest.approx(dp_accounting.get_sigma_gaussian(2.0, DELTA) * sensitivity(TREE, FOURTH), rel=2e-3)
    assert accountant_of(found)(FOURTH, 12, DELTA).epsilon <= 2.0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"strategy": None}, TypeError, "strategy must be a Strategy"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm must be"),
        ({"noise_multiplier": -1.0}, ValueError, "noise_multiplier must be"),
        ({"denominator": len}, ValueError, "no bounded sensitivity"),
    ],
)
def test_values_out_of_range_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        correlated_mean(**{"strategy": TREE, "clip_norm": 1.0, "noise_multiplier": 1.0, "denominator": 10, **change})
