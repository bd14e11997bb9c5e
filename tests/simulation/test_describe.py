import jax
import numpy as np
import pytest

import fedjax_edge as fe
from fedjax_edge.compression import delta_broadcast, half_precision, stochastic_uniform, top_k


def describe(linear, algorithm, population=None, **options):
    return fe.describe(algorithm, linear.params, population or linear.population, sampler=linear.sampler, **options)


@pytest.mark.parametrize(
    "links", [{}, {"uplink": top_k(0.5), "downlink": half_precision()}, {"uplink": stochastic_uniform(3)}]
)
def test_the_bits_are_those_of_a_run(linear, links):
    algorithm = linear.fedavg(**links)
    described = describe(linear, algorithm, rounds=2)
    history = fe.run(
        algorithm, linear.params, linear.population, sampler=fe.data.everyone(10), rounds=2, key=jax.random.key(0),
        progress=False,
    ).history  # fmt: skip
    np.testing.assert_array_equal(history["bits_up"], 10 * described.traffic.up)
    np.testing.assert_array_equal(history["bits_down"], 10 * described.traffic.down_first)
    assert described.traffic.down_next == described.traffic.down_first


def test_two_rounds_of_a_delta_broadcast(linear):
    algorithm = linear.scaffold(downlink=delta_broadcast(half_precision()))
    described = describe(linear, algorithm, rounds=10)
    sent = 2 * 4 * 16  # parameters and controls: three weights and a bias
    assert described.traffic == (2 * sent, 2 * sent, sent)
    assert described.megabytes_up == 10 * 5 * 256 / 8e6
    assert described.megabytes_down == 10 * 5 * sent / 8e6
    assert "gets 32 bytes the first time, 16 bytes in the next round" in str(described)
    assert "MB up, at least " in str(described)


def test_it_says_what_is_guaranteed(linear):
    private = linear.fedavg(aggregator=fe.privacy.gaussian_mean(1.0, 2.75, denominator=5))
    described = describe(linear, private, rounds=40, delta=1e-3)
    assert described.claim == private.accountant(linear.sampler.sampling, 40, 1e-3)
    assert f"epsilon {described.claim.epsilon:.3g} at delta 0.001, to add-or-remove one client (PLD)" in str(described)


def test_a_population_on_the_host_is_described_alike(linear):
    algorithm = linear.fedavg(uplink=top_k(0.5))
    hosted = fe.data.on_host(linear.population)
    assert describe(linear, algorithm, hosted, rounds=3) == describe(linear, algorithm, rounds=3)


def test_parameters_may_be_a_function_of_a_key(linear):
    algorithm = linear.fedavg(uplink=top_k(0.5))
    described = fe.describe(algorithm, lambda key: linear.params, linear.population, sampler=linear.sampler, rounds=3)
    assert described == describe(linear, algorithm, rounds=3)


def test_what_cannot_be_described_is_refused(linear):
    with pytest.raises(TypeError, match="describe needs an algorithm that counts its traffic"):
        describe(linear, linear.fedavg()._replace(traffic=None), rounds=3)
    with pytest.raises(ValueError, match="rounds must be an integer of at least 1, got 0"):
        describe(linear, linear.fedavg(), rounds=0)
