import jax
import numpy as np
import optax
import pytest

from fedjax_edge.cli.build import build
from fedjax_edge.cli.config import RunConfig
from fedjax_edge.core import FixedSampling, PoissonSampling


def parts(**options):
    return build(RunConfig(**options).resolved())


def test_the_main_job_is_what_it_says():
    main = parts()
    sizes = np.diff(main.population.offsets)
    assert main.population.num_clients == 300
    assert set(sizes) == {33, 34}
    assert optax.tree.size(main.params) == 6_746
    assert main.sampler.sampling == PoissonSampling(300, 0.5, 1e-12)
    claim = main.algorithm.accountant(main.sampler.sampling, 40, 1e-3)
    assert 3.9 < claim.epsilon <= 4


@pytest.mark.parametrize(
    "options",
    [
        dict(partition="iid"),
        dict(partition="shards"),
        dict(partition="classes", skew=3),
        dict(partition="power-law", model="logistic"),
        dict(partition="log-normal", model="2nn"),
        dict(dataset="shakespeare", bits=4, server_optimizer="adam"),
        dict(client_optimizer="adam", client_gradient_clip=1.0, server_optimizer="yogi"),
        dict(sampling="all", server_optimizer="adagrad", bits_down=4),
    ],
)
def test_every_choice_builds(options):
    built = parts(**options)
    with jax.numpy_dtype_promotion("standard"):
        built.algorithm.init(built.params, jax.random.key(0), built.population)


def test_the_noise_is_calibrated_to_a_target():
    built = parts(target_epsilon=2.0, clients=100, rounds=10, delta=1e-2)
    assert built.algorithm.accountant(built.sampler.sampling, 10, 1e-2).epsilon <= 2
    assert built.noise_multiplier != 2.75


def test_without_noise_there_is_no_accountant():
    assert parts(noise_multiplier=None).algorithm.accountant is None
    assert parts(noise_multiplier=None, clip_norm=None).algorithm.accountant is None


def test_a_fixed_cohort_is_declared_as_one():
    assert parts(sampling="uniform", cohort=20).sampler.sampling == FixedSampling(300, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(cohort=301), "cohort must be from 1 to the 300 clients, got 301"),
        (dict(cohort=301, sampling="uniform"), "cohort_size must be an integer from 1 to 300, got 301"),
        (dict(bits=0), "bits must be an integer from 1 to 16, got 0"),
        (dict(partition="shards", skew=1.5), "skew must be a whole number"),
        (dict(clients=20_000), "20000"),
        (dict(noise_multiplier=-1.0), "noise_multiplier must be"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        parts(**options)


def test_one_client_is_drawn_from_one():
    assert parts(clients=1).sampler.expected_size == 1
