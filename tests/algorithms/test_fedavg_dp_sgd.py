import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_edge as fe

CLIP, MULTIPLIER = 0.5, 2.0
SIZES = [5, 8, 3]
RNG = np.random.default_rng(0)
POPULATION = fe.data.from_client_arrays(
    [{"x": RNG.normal(size=(n, 3)).astype(np.float32), "y": RNG.normal(size=n).astype(np.float32)} for n in SIZES]
)
GIVEN = {"sampler": fe.data.everyone(3), "key": jax.random.key(0), "progress": False}


def squared_error(params, batch, key):
    return (batch["x"] @ params["w"][:3] - batch["y"]) ** 2


def build(noise_multiplier, clip_norm=CLIP, batch_size=4, **change):
    return fe.algorithms.fedavg_dp_sgd(
        squared_error,
        optax.sgd(0.1),
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        batch_size=batch_size,
        epochs=2,
        **change,
    )


def test_without_noise_or_clipping_it_is_fedavg():
    # Batches of one: no batch is short, so that the fixed denominator is the true one.
    private = fe.run(build(0.0, 1e6, batch_size=1), {"w": jnp.zeros(3)}, POPULATION, rounds=1, **GIVEN)
    plain = fe.algorithms.fedavg(squared_error, optax.sgd(0.1), batch_size=1, epochs=2)
    expected = fe.run(plain, {"w": jnp.zeros(3)}, POPULATION, rounds=1, **GIVEN)
    np.testing.assert_allclose(private.params["w"], expected.params["w"], rtol=1e-4, atol=1e-6)
    assert private.history.last("train_loss") == pytest.approx(expected.history.last("train_loss"), rel=1e-4)


def test_each_step_of_each_client_draws_noise_of_its_own():
    # Parameters that no example moves gather the noise of 4, 4 and 2 steps, weighted by 5, 8 and 3 of 16 examples.
    result = fe.run(build(MULTIPLIER), {"w": jnp.zeros(4003)}, POPULATION, rounds=1, delta=1e-5, **GIVEN)
    weights = np.array(SIZES) / 16
    expected = 0.1 * MULTIPLIER * CLIP / 4 * np.sqrt(np.sum(weights**2 * np.array([4, 4, 2])))
    assert float(jnp.std(result.params["w"][3:])) == pytest.approx(expected, rel=5 / (2 * 4000) ** 0.5)
    assert result.claim.relation == "replace one example of one client"
    assert result.history.last("epsilon") == result.claim.epsilon > 0


def test_a_second_claim_and_full_batches_are_refused():
    with pytest.raises(ValueError, match="states one epsilon"):
        build(1.0, aggregator=fe.privacy.gaussian_mean(1.0, 1.0, 3))
    local = fe.privacy.local_gaussian(1.0, 1.0, 3)
    with pytest.raises(ValueError, match="states one epsilon"):
        build(1.0, uplink=local.uplink, aggregator=local.aggregator)
    with pytest.raises(ValueError, match="batch_size must be"):
        build(1.0, batch_size=None)
    with pytest.raises(ValueError, match="needs a batch_size"):
        fe.clients.local_sgd(squared_error, optax.sgd(0.1), batch_size=None, epochs=1, gradient=lambda *a: None)
