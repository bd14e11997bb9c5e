import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.compression import drive, eden
from fedjax_edge.compression.eden import normal_levels
from fedjax_edge.compression.packing import unpack
from fedjax_edge.core.hadamard import hadamard, random_signs

DRAWS, SIZE = 2000, 500
UPDATE = np.random.default_rng(0).normal(0.3, 1, SIZE).astype(np.float32)
VALUES = UPDATE.astype(np.float64)


def draws_of(codec, update=UPDATE):
    decoded = jax.jit(jax.vmap(lambda key: codec.decode(codec.encode(update, key))))
    return np.asarray(decoded(jax.random.split(jax.random.key(0), DRAWS)), np.float64)


# Within 5 standard errors: were the seed not fixed, a false alarm over 500 numbers below 3e-4 a test.
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_unbiased_with_an_exact_inner_product_and_the_documented_error(bits):
    draws = draws_of(drive() if bits == 1 else eden(bits))
    np.testing.assert_allclose(draws @ VALUES, VALUES @ VALUES, rtol=1e-4)
    assert (np.abs(draws.mean(0) - VALUES) <= 5 * draws.std(0) / DRAWS**0.5 + 1e-6).all()
    error = ((draws - VALUES) ** 2).sum(1).mean() / (VALUES @ VALUES)
    documented = {1: 0.571, 2: 0.133, 4: 0.00959}[bits] * SIZE / 512  # of 512 coordinates, 12 are padding
    assert error == pytest.approx(documented, rel=0.02)


def test_drive_sends_the_signs_of_the_rotated_update_and_its_norm_over_their_sum():
    update = jnp.array([3.0, 1.0])  # rotated, up to signs: 4 and 2 over the square root of 2, then 3 and 1
    payload = drive().encode(update, jax.random.key(2))
    content = payload.payload.content
    level = float(content.scale) * normal_levels(2)[1]
    assert level == pytest.approx(10 / 4, rel=1e-5)
    np.testing.assert_allclose(np.abs(drive().decode(payload)), level, rtol=1e-5)


@pytest.mark.parametrize("bits", [1, 3])
def test_a_sparse_update_is_nearly_unbiased_too(bits):  # one rotation decodes it to (2.5, 0, 0, ...) with 1 bit, always
    update = np.zeros(SIZE, np.float32)
    update[:2] = 2, 1
    draws = draws_of(eden(bits), update)
    assert (np.abs(draws.mean(0) - update) <= 5 * draws.std(0) / DRAWS**0.5 + 0.02).all()
    error = ((draws - update) ** 2).sum(1).mean() / 5
    assert error == pytest.approx({1: 0.571, 3: 0.0358}[bits] * SIZE / 512, rel=0.05)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_a_coordinate_goes_to_the_nearest_level(bits):
    payload = eden(bits).encode(UPDATE, jax.random.key(0))
    first, second = random_signs(payload.seed, 1024).reshape(2, 512)
    rotated = hadamard(hadamard(jnp.pad(UPDATE, (0, 12)) * first) * second)
    unit = np.asarray(rotated) / np.linalg.norm(UPDATE) * 512**0.5
    levels = normal_levels(2**bits)
    sent = levels[unpack(payload.payload.content.codes)]
    np.testing.assert_allclose(np.abs(unit - sent), np.abs(unit[:, None] - levels).min(1), atol=1e-5)


def test_levels_are_those_of_max():
    np.testing.assert_allclose(normal_levels(2), [-0.7979, 0.7979], atol=1e-4)
    np.testing.assert_allclose(normal_levels(8)[4:], [0.2451, 0.7560, 1.3439, 2.1520], atol=1e-4)  # Max 1960, Table I


@pytest.mark.parametrize("bits", [0, 9, 2.5, True])
def test_impossible_bits_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits must be an integer from 1 to 8, got {bits!r}"):
        eden(bits)
