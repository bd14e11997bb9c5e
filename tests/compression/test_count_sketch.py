import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.compression import count_sketch
from fedjax_edge.compression.count_sketch import estimates, hashes, sketch

ROWS, COLUMNS, SIZE = 5, 40, 200
SEEDS = jnp.arange(2000, dtype=jnp.uint32)
UPDATE = np.random.default_rng(0).normal(0.2, 1, SIZE).astype(np.float32)


def matrix_of(seed, row, size, columns):
    """The sketch of one row as a matrix [columns, size]."""
    buckets, signs = map(np.asarray, hashes(jnp.uint32(row), seed, size, columns))
    matrix = np.zeros((columns, size))
    matrix[buckets, np.arange(size)] = signs
    return matrix


def test_a_table_is_the_product_with_sparse_signs_and_reading_it_is_the_transpose():
    seed = jnp.uint32(3)
    table = sketch(UPDATE, seed, ROWS, COLUMNS)
    matrices = [matrix_of(seed, row, SIZE, COLUMNS) for row in range(ROWS)]
    np.testing.assert_allclose(table, [matrix @ UPDATE for matrix in matrices], atol=1e-4)
    readings = [matrix.T @ np.asarray(row) for matrix, row in zip(matrices, table, strict=True)]
    np.testing.assert_allclose(estimates(table, seed, SIZE, median=False), np.mean(readings, 0), atol=1e-5)
    np.testing.assert_allclose(estimates(table, seed, SIZE, median=True), np.median(readings, 0), atol=1e-5)
    even = estimates(table[:4], seed, SIZE, median=True)
    np.testing.assert_allclose(even, np.median(readings[:4], 0), atol=1e-5)


def test_sketches_with_one_seed_add_up():
    one, other = UPDATE, UPDATE[::-1]
    together = sketch(2 * one - other, jnp.uint32(0), ROWS, COLUMNS)
    apart = 2 * sketch(one, jnp.uint32(0), ROWS, COLUMNS) - sketch(other, jnp.uint32(0), ROWS, COLUMNS)
    np.testing.assert_allclose(together, apart, atol=1e-4)


@pytest.mark.parametrize("columns", [7, 64])
def test_buckets_and_signs_are_even_and_pairwise_independent(columns):
    """Means over 2,000 seeds within 6 standard errors: were they not fixed, a false alarm below 1e-6 in all."""
    buckets, signs = map(np.asarray, jax.vmap(lambda seed: hashes(jnp.uint32(0), seed, 21, columns))(SEEDS))
    assert set(np.unique(signs)) == {-1, 1} and buckets.min() == 0 and buckets.max() == columns - 1
    share = 1 / columns
    allowed = 6 * np.sqrt(share * (1 - share) / len(SEEDS))
    assert np.abs((buckets[:, 1:] == buckets[:, :-1]).mean(0) - share).max() <= allowed  # collisions of neighbours
    assert np.abs((buckets[:, :1] == buckets[:, 1:]).mean(0) - share).max() <= allowed
    for bucket in range(columns):
        assert np.abs((buckets == bucket).mean(0) - share).max() <= allowed
    for even in (signs, signs[:, 1:] * signs[:, :-1], signs * (buckets % 2 * 2 - 1)):
        assert np.abs(even.mean(0)).max() <= 6 / len(SEEDS) ** 0.5


def test_rows_and_seeds_have_hashes_of_their_own():
    tables = [matrix_of(jnp.uint32(seed), row, SIZE, COLUMNS) for seed in range(2) for row in range(2)]
    for position, table in enumerate(tables):
        for other in tables[:position]:
            assert np.abs((table * other).sum()) <= 6 * np.sqrt(SIZE / COLUMNS)


def test_the_median_misses_a_number_no_more_often_than_documented_and_finds_the_large_ones():
    few = jnp.zeros(SIZE).at[jnp.array([3, 50, 120])].set(jnp.array([5.0, -4.0, 3.0])) + 0.02 * UPDATE

    def errors(median):
        codec = count_sketch(ROWS, COLUMNS, median)
        decoded = jax.jit(jax.vmap(lambda seed: codec.decode(codec.encode(few, jax.random.key(seed)))))(SEEDS[:500])
        return np.abs(np.asarray(decoded) - np.asarray(few))

    missed = errors(True) > np.sqrt(8 / COLUMNS) * np.linalg.norm(few)
    assert missed.mean() <= np.exp(-0.28 * ROWS)
    assert (errors(True) ** 2).mean() < 0.3 * (errors(False) ** 2).mean()


def test_a_bucket_that_overflows_is_seen():
    codec, key = count_sketch(1, 1), jax.random.key(0)
    _, signs = hashes(jnp.uint32(0), codec.encode(jnp.zeros(40), key).seed, 40, 1)
    assert not np.isfinite(codec.decode(codec.encode(3e38 * signs, key))).any()


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (33, 5), (3, 0), (2.5, 5), (3, True)])
def test_impossible_tables_are_refused(rows, columns):
    with pytest.raises(ValueError, match=r"(rows|columns) must be an integer from 1 to"):
        count_sketch(rows, columns)
