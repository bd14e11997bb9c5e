from functools import cache

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from scipy import stats

from fedjax_edge import testing
from fedjax_edge.core.protocols import CyclicSampling, FixedSampling, FullParticipation, PoissonSampling, PrivacyError
from fedjax_edge.privacy import dp_sgd

CLIP, MULTIPLIER, BATCH = 0.5, 3.0, 8
KEY = jax.random.key(0)
FALSE_ALARM = 1e-6
RNG = np.random.default_rng(0)
ROWS = {"x": RNG.normal(size=(BATCH, 3)).astype(np.float32), "y": RNG.normal(size=BATCH).astype(np.float32)}
PARAMS = jnp.array([0.3, -0.2, 0.5])
EVERYONE = np.ones(BATCH, bool)


def squared_error(params, batch, key):
    error = batch["x"] @ params - batch["y"]
    return error**2, {"error": error}


@cache
def compiled(mechanism, loss_fn):
    return jax.jit(lambda p, b, m, k: mechanism.gradient(loss_fn, p, b, m, m.sum(dtype=jnp.float32), k))


def gradient_of(mechanism, batch=ROWS, mask=EVERYONE, params=PARAMS, key=KEY, loss_fn=squared_error):
    return compiled(mechanism, loss_fn)(params, batch, mask, key)


@cache
def silent(chunk=16, **change):
    return dp_sgd(
        **{"clip_norm": CLIP, "noise_multiplier": 0.0, "batch_size": BATCH, "epochs": 1, "chunk": chunk, **change}
    )


def by_hand(batch, mask, clip_norm=CLIP):
    own = 2 * (batch["x"] @ np.asarray(PARAMS) - batch["y"])[:, None] * batch["x"].astype(np.float64)
    own *= np.minimum(1, clip_norm / np.linalg.norm(own, axis=1))[:, None]
    return own[mask].sum(0) / BATCH


@pytest.mark.parametrize("chunk", [1, 3, 8, 16])
@pytest.mark.parametrize("real", [8, 5])
def test_each_example_is_clipped_by_itself_and_the_denominator_is_fixed(chunk, real):
    mask = np.arange(BATCH) < real
    gradient, metrics = gradient_of(silent(chunk), mask=mask)
    np.testing.assert_allclose(gradient, by_hand(ROWS, mask), rtol=3e-4)
    error = ROWS["x"] @ np.asarray(PARAMS) - ROWS["y"]
    np.testing.assert_allclose(metrics["loss"].total, np.sum(error[mask] ** 2), rtol=1e-5)
    np.testing.assert_allclose(metrics["error"].total, np.sum(error[mask]), rtol=1e-4)
    assert metrics["loss"].count == real


@pytest.mark.parametrize("hostile", [1e-3, 1.0, 1e4, 1e19, np.inf, np.nan])
def test_one_example_moves_a_steps_sum_by_at_most_twice_the_clip_norm(hostile):
    before, _ = gradient_of(silent())
    for sign in (1, -1):
        other = {"x": ROWS["x"].copy(), "y": ROWS["y"].copy()}
        other["x"][2] = sign * hostile
        other["y"][2] = -hostile
        after, _ = gradient_of(silent(), other)
        moved = BATCH * np.linalg.norm(np.asarray(after, np.float64) - np.asarray(before, np.float64))
        assert moved <= 2 * CLIP * (1 + 1e-5)
    own = dict(ROWS, x=np.full_like(ROWS["x"], hostile))
    alone, _ = gradient_of(silent(), own, mask=np.arange(BATCH) == 2)
    assert BATCH * np.linalg.norm(np.asarray(alone, np.float64)) <= CLIP * (1 + 1e-6)


def test_every_step_has_the_noise_that_is_accounted_for():
    mechanism = dp_sgd(CLIP, MULTIPLIER, batch_size=BATCH, epochs=1)
    params = {"a": jnp.zeros(2000), "b": jnp.zeros(2000)}

    def nothing(params, batch, key):
        return 0 * (params["a"].sum() + params["b"].sum()) * batch["y"]

    first, _ = gradient_of(mechanism, params=params, loss_fn=nothing)
    other, _ = gradient_of(mechanism, params=params, loss_fn=nothing, key=jax.random.key(1))
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], df=2000)
    for leaf in (first["a"], first["b"], other["a"]):
        noise = np.asarray(leaf, np.float64) * BATCH / (CLIP * MULTIPLIER)
        assert low <= np.sum(noise**2) <= high
        assert not low <= np.sum((noise * 1.5) ** 2) <= high and not low <= np.sum((noise / 1.5) ** 2) <= high
        assert stats.kstest(noise, "norm").pvalue > FALSE_ALARM
    correlation = np.corrcoef(np.stack([first["a"], first["b"], other["a"]])) - np.eye(3)
    assert np.abs(correlation).max() < 5 / np.sqrt(2000)


def test_examples_draw_from_keys_of_their_own_and_not_from_the_noises():
    def random_loss(params, batch, key):
        return params[0] * jax.random.normal(key, batch["y"].shape)

    mechanism = silent(clip_norm=1e6)
    alone = [gradient_of(mechanism, mask=np.arange(BATCH) == row, loss_fn=random_loss)[0][0] for row in range(3)]
    assert len({float(draw) for draw in alone}) == 3


def test_layers_narrow_parameters_and_awkward_leaves():
    params = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.float32(0), "empty": jnp.zeros((0, 2))}

    def loss(params, batch, key):
        return batch["x"] @ params["w"].astype(jnp.float32) * 10 + params["b"] * 10 + params["empty"].sum()

    mechanism = dp_sgd({"w": 0.3, "b": 0.4, "empty": 1.0}, 0.0, batch_size=BATCH, epochs=1)
    gradient, _ = gradient_of(mechanism, params=params, loss_fn=loss)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), gradient) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), params
    )
    assert float(gradient["b"]) == pytest.approx(0.4, rel=3e-4)  # every example is clipped to it


def test_the_claim_is_one_gaussian_an_epoch_of_doubled_sensitivity():
    accountant = dp_sgd(CLIP, 10.0, batch_size=BATCH, epochs=3).accountant
    claim = accountant(FullParticipation(7), 4, 1e-5)
    independent = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_ONE)
    independent.compose(dp_accounting.GaussianDpEvent(10.0), 12)  # which doubles the sensitivity itself
    assert claim.epsilon == pytest.approx(independent.get_epsilon(1e-5), rel=1e-3)
    assert claim.relation == "replace one example of one client" and "3 epochs a round" in claim.sampling
    assert "at most 12 epochs" in claim.accountant
    assert accountant(CyclicSampling(8, 2), 4, 1e-5).epsilon == accountant(FullParticipation(7), 1, 1e-5).epsilon
    for sampling in (PoissonSampling(300, 0.01, 0.0), FixedSampling(300, 3)):
        assert accountant(sampling, 4, 1e-5).epsilon == claim.epsilon
    assert accountant(FullParticipation(7), 0, 1e-5).epsilon == 0


def test_what_cannot_be_claimed_is_refused():
    with pytest.raises(PrivacyError, match="in how many rounds a client takes part"):
        dp_sgd(1.0, 1.0, batch_size=8, epochs=1).accountant(None, 1, 1e-5)
    testing.assert_no_claim_without_noise(lambda z: dp_sgd(1.0, z, batch_size=8, epochs=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm must be"),
        ({"noise_multiplier": -1.0}, "noise_multiplier must be"),
        ({"batch_size": None}, "batch_size must be"),
        ({"epochs": 0}, "epochs must be"),
        ({"chunk": 0}, "chunk must be"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        silent(**change)
