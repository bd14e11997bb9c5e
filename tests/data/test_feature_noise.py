import jax
import numpy as np
import pytest

from fedjax_edge.data.feature_noise import add_feature_noise, feature_noise_levels
from fedjax_edge.data.partition import iid

KEY = jax.random.key(3)


def test_levels_rise_evenly_to_the_maximum():
    levels = feature_noise_levels(5, 0.5)
    np.testing.assert_allclose(levels, [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)
    assert levels.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_each_client_gets_noise_of_its_own_level(dtype):
    features = np.full((40, 50, 20), 100, dtype)
    clients = iid(KEY, 40, 4)
    levels = feature_noise_levels(4, 8.0)
    noisy = add_feature_noise(KEY, features, clients, levels)
    assert noisy.dtype == np.float32
    assert noisy.shape == features.shape
    for rows, level in zip(clients, levels, strict=True):
        noise = noisy[rows] - 100.0
        assert abs(noise.std() - level) < 4 * level / np.sqrt(2 * noise.size)
        assert abs(noise.mean()) < 4 * level / np.sqrt(noise.size)


def test_features_of_one_axis_and_examples_of_no_client():
    noisy = add_feature_noise(KEY, np.arange(4.0), [np.array([3]), np.array([1])], np.array([0.0, 2.0]))
    np.testing.assert_array_equal(noisy[[0, 2, 3]], [0.0, 2.0, 3.0])
    assert noisy[1] != 1.0


def test_the_key_determines_the_noise_and_the_input_stays_as_it_is():
    features, clients, levels = np.zeros((6, 2), np.float32), [np.arange(6)], np.array([1.0])
    noisy = add_feature_noise(KEY, features, clients, levels)
    np.testing.assert_array_equal(noisy, add_feature_noise(KEY, features, clients, levels))
    assert (noisy != add_feature_noise(jax.random.key(4), features, clients, levels)).all()
    assert not features.any()


@pytest.mark.parametrize("levels", [[1.0], [1.0, -1.0], [1.0, np.nan], [1.0, np.inf], [[1.0, 1.0]]])
def test_levels_must_be_one_finite_number_per_client(levels):
    with pytest.raises(ValueError, match="levels must hold a finite number of at least 0 for each of 2 clients, got"):
        add_feature_noise(KEY, np.zeros(4), [np.array([0]), np.array([1])], np.array(levels))


@pytest.mark.parametrize("features", [np.array(["a"]), np.array([True]), np.array([1j])])
def test_features_must_be_real_numbers(features):
    with pytest.raises(ValueError, match="features must be real numbers, got dtype"):
        add_feature_noise(KEY, features, [np.array([0])], np.array([1.0]))


def test_a_negative_maximum_is_refused():
    with pytest.raises(ValueError, match=r"max_std must be a finite number of at least 0, got -1\.0"):
        feature_noise_levels(3, -1.0)
