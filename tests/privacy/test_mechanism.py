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
