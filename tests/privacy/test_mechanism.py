"""Noise on the devices and the sum it belongs to are claimed for together, or not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_edge as fe
from fedjax_edge.core.protocols import FullParticipation, PrivacyError
from fedjax_edge.privacy import discrete_gaussian, gaussian_mean, local_gaussian, local_laplace, skellam

PARAMS = jnp.zeros(3)
MAKERS = {
    "local_gaussian": lambda z: local_gaussian(1.0, z, 4),
    "local_laplace": lambda z: local_laplace(1.0, z, 4),
    "discrete_gaussian": lambda z: discrete_gaussian(PARAMS, 1.0, z, 4, bits=12),
    "skellam": lambda z: skellam(PARAMS, 1.0, z, 4, bits=12),
}
each_mechanism = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def fedavg(**parts):
    return fe.algorithms.fedavg(
        lambda params, batch, key: batch["x"] @ params, optax.sgd(0.1), batch_size=1, epochs=1, **parts
    )


@each_mechanism
def test_both_halves_claim(make):
    mechanism = make(2.0)
    algorithm = fedavg(uplink=fe.chain(fe.compression.top_k(0.5), mechanism.uplink), aggregator=mechanism.aggregator)
    claims = [accountant(FullParticipation(4), 2, 1e-3) for accountant in (algorithm.accountant, mechanism.accountant)]
    assert claims[0] == claims[1] and claims[0].epsilon > 0


@each_mechanism
def test_one_half_is_refused(make):
    one, other = make(2.0), make(2.0)
    for parts in (
        {"aggregator": one.aggregator},
        {"uplink": one.uplink},
        {"uplink": one.uplink, "aggregator": fe.aggregation.uniform_mean()},
        {"uplink": one.uplink, "aggregator": gaussian_mean(1.0, 2.0, 4)},
        {"uplink": one.uplink, "aggregator": other.aggregator},
        {"uplink": fe.compression.top_k(0.5), "aggregator": one.aggregator},
    ):
        with pytest.raises(PrivacyError, match="are not the halves of one privacy mechanism"):
            fedavg(**parts)
    with pytest.raises(ValueError, match="a chain holds at most one half of a privacy mechanism, got 2"):
        fe.chain(one.uplink, other.uplink)


def test_the_noise_may_be_had_without_a_claim():
    noisy = fedavg(uplink=local_gaussian(1.0, 2.0, 4).uplink._replace(accountant=None))
    assert noisy.accountant is None


def test_a_traced_multiplier_keeps_its_halves_together():
    def make(noise_multiplier):
        mechanism = local_gaussian(1.0, noise_multiplier, 4)
        return fedavg(uplink=mechanism.uplink, aggregator=mechanism.aggregator)

    population = fe.data.from_client_arrays([{"x": np.full((1, 3), k, np.float32)} for k in range(4)])
    result = fe.run(
        make, PARAMS, population, sampler=fe.data.everyone(4), rounds=2, key=jax.random.key(0), delta=1e-3,
        hyperparameters={"noise_multiplier": 8.0}, progress=False,
    )  # fmt: skip
    assert result.claim == local_gaussian(1.0, 8.0, 4).accountant(FullParticipation(4), 2, 1e-3)


FOLLOWERS = {
    "codec": fe.compression.top_k(0.5),
    "composed": fe.core.transforms.compose(fe.compression.top_k(0.5), fe.compression.stochastic_uniform(8)),
    "memory": fe.compression.error_feedback(fe.compression.top_k(0.5)),
    "own": fe.core.UpdateTransform(lambda update: (), lambda update, state, key: (0 * update, state, None)),
    "chain": fe.chain(fe.compression.top_k(0.5)),
}


@pytest.mark.parametrize("name", ["discrete_gaussian", "skellam"])
@pytest.mark.parametrize("follower", FOLLOWERS.values(), ids=FOLLOWERS)
def test_nothing_may_follow_a_mechanism_whose_claim_is_about_the_sum_alone(name, follower):
    uplink = MAKERS[name](2.0).uplink
    rewritten = fe.core.UpdateTransform(uplink.init, uplink.apply, uplink.accountant)
    for start in (uplink, fe.chain(uplink), fe.chain(fe.chain(fe.compression.top_k(0.5)), uplink), rewritten):
        with pytest.raises(PrivacyError, match="nothing may follow a mechanism whose claim is about the sum alone"):
            fe.chain(start, follower)
    with pytest.raises(PrivacyError, match="nothing may follow"):
        fe.chain(uplink, fe.compression.sign(), follower)


@pytest.mark.parametrize("follower", FOLLOWERS.values(), ids=FOLLOWERS)
@pytest.mark.parametrize("name", ["local_gaussian", "local_laplace"])
def test_anything_may_follow_local_noise(name, follower):
    mechanism = MAKERS[name](2.0)
    uplink = fe.chain(fe.chain(mechanism.uplink, follower), fe.compression.top_k(0.5))
    algorithm = fedavg(uplink=uplink, aggregator=mechanism.aggregator)
    assert algorithm.accountant is mechanism.accountant


def test_codecs_do_not_wrap_a_mechanism():
    uplink = MAKERS["skellam"](2.0).uplink
    for wrap in (fe.compression.error_feedback, fe.core.transforms.compose, fe.compression.rotated):
        with pytest.raises(TypeError, match="Codec"):
            wrap(uplink)
