import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.compression import compose, low_rank, power_sgd, stochastic_uniform
from fedjax_edge.compression.power_sgd import Factors
from fedjax_edge.core.trees import size_in_bits
from fedjax_edge.testing import assert_draws_independent

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(9, 6)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 1000)


def decoded_under(codec, update, keys):
    return jax.jit(jax.vmap(lambda key: codec.decode(codec.encode(update, key))))(keys)


def test_the_error_is_that_of_a_projection_and_the_share_that_is_documented_in_expectation():
    decoded = np.asarray(decoded_under(low_rank(2), MATRIX, KEYS), np.float64)
    errors = ((decoded - MATRIX) ** 2).sum((1, 2))
    total = (MATRIX.astype(np.float64) ** 2).sum()
    np.testing.assert_allclose(errors, total - (decoded**2).sum((1, 2)), rtol=1e-4)  # Pythagoras
    tail = (np.linalg.svd(MATRIX, compute_uv=False)[2:] ** 2).sum()
    assert tail * (1 - 1e-5) <= errors.min() and errors.max() <= total
    assert errors.mean() <= (1 - 2 / 6) * total
    assert (np.linalg.matrix_rank(decoded[:20], tol=1e-4) == 2).all()


def test_the_documented_share_is_reached_where_all_directions_are_alike():
    eye = np.eye(6, dtype=np.float32)[:, :5]  # rank 1 of 5 equal singular values
    errors = ((np.asarray(decoded_under(low_rank(1), eye, KEYS[:50])) - eye) ** 2).sum((1, 2))
    np.testing.assert_allclose(errors, (1 - 1 / 5) * 5, rtol=1e-5)


def test_a_kernel_is_a_matrix_of_its_output_channels_and_what_is_small_is_sent_as_it_is():
    kernel = np.einsum("abc,d->abcd", RNG.normal(size=(3, 3, 4)), RNG.normal(size=8)).astype(np.float32)
    update = {"bias": jnp.arange(8.0, dtype=jnp.bfloat16), "kernel": kernel, "scalar": jnp.float32(2), "small": MATRIX}
    payload = low_rank(4).encode(update, KEYS[0])
    assert payload["kernel"].left.shape == (36, 4) and payload["kernel"].right.shape == (8, 4)
    assert size_in_bits(payload) == 8 * 16 + 32 * 4 * (36 + 8) + 32 + 32 * 54  # 4 * (9 + 6) numbers would be more
    decoded = low_rank(4).decode(payload)
    np.testing.assert_allclose(decoded["kernel"], kernel, atol=1e-5)
    for name in ("bias", "scalar", "small"):
        np.testing.assert_array_equal(decoded[name], update[name])


def run(transform, updates, key):
    """Returns what is sent of `updates` [rounds, n, m] and the state after each round, by a scan."""

    def one_round(state, slot):
        sent, state, _ = transform.apply(*slot[:1], state, slot[1])
        return state, (sent, state)

    keys = jax.random.split(key, len(updates))
    return jax.jit(lambda u: jax.lax.scan(one_round, transform.init(u[0]), (u, keys))[1])(jnp.asarray(updates))


@pytest.mark.parametrize(("dtype", "ranks"), [(jnp.float32, 4), (jnp.bfloat16, 2), (jnp.float64, 4)])
def test_a_matrix_is_factored_as_long_as_that_takes_fewer_numbers_and_bits(dtype, ranks):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        matrix = jnp.ones((10, 10), dtype)  # 100 numbers; a rank costs 20 of 32 bits
        for rank in range(1, 7):
            payload = low_rank(rank).encode(matrix, jax.random.key(0))
            assert isinstance(payload, Factors) == (rank <= ranks)
            assert size_in_bits(payload) <= size_in_bits(matrix)
            assert len(power_sgd(rank).init(matrix).rights) == (rank <= ranks)


def test_a_warm_start_finds_the_leading_singular_vectors_where_the_cold_one_does_not():
    left, _ = np.linalg.qr(RNG.normal(size=(30, 30)))
    right, _ = np.linalg.qr(RNG.normal(size=(20, 20)))
    matrix = (left[:, :20] * 0.8 ** np.arange(20) @ right).astype(np.float32)
    transform = power_sgd(2)

    @jax.jit
    def iterated(keys):
        def one_round(rights, key):
            state = transform.init(matrix)._replace(rights=rights)  # the same matrix each time: no memory
            sent, state, _ = transform.apply(matrix, state, key)
            return state.rights, ((sent - matrix) ** 2).sum()

        return jax.lax.scan(one_round, transform.init(matrix).rights, keys)[1]

    errors = np.asarray(iterated(KEYS[:40]))
    best = (np.linalg.svd(matrix, compute_uv=False)[2:].astype(np.float64) ** 2).sum()
    assert (np.diff(errors) <= 1e-4).all() and errors[0] > 1.1 * best
    assert errors[-1] == pytest.approx(best, rel=1e-3)


def test_the_memory_stays_small_and_what_was_lost_is_sent_later():
    updates = np.concatenate([np.tile(MATRIX, (5, 1, 1)), np.zeros((25, 9, 6), np.float32)])
    sent, states = run(power_sgd(1), updates, jax.random.key(3))
    np.testing.assert_allclose(np.cumsum(sent, 0) + states.memory, np.cumsum(updates, 0), atol=1e-4)
    lengths = np.linalg.norm(states.memory, axis=(1, 2))
    assert lengths[4] > 1 and lengths[-1] < 1e-3 * lengths[4]


def test_a_start_that_vanished_is_drawn_anew():
    matrix = (RNG.normal(size=(9, 2)) @ RNG.normal(size=(2, 6))).astype(np.float32)
    sent, states = run(power_sgd(2), np.stack([np.zeros_like(matrix), matrix]), jax.random.key(0))
    assert not sent[0].any() and not states.rights[0][0].any()
    np.testing.assert_allclose(sent[1], matrix, atol=1e-4)  # of rank 2: found from any start but none


def test_large_updates_one_after_another_do_not_overflow():
    sent, states = run(power_sgd(1), np.full((4, 9, 6), 1e30, np.float32), jax.random.key(0))
    assert np.isfinite(sent).all() and np.isfinite(states.memory).all() and np.isfinite(states.rights[0]).all()


def test_starts_are_drawn_for_each_client_and_each_leaf():
    update = {"a": jnp.eye(64), "b": jnp.eye(64)}  # a matrix whose product with the start is the start

    def lefts(key):
        return jax.tree.map(lambda part: part.left[:, 0], low_rank(1).encode(update, key), is_leaf=is_factors)

    drawn = jax.vmap(lefts)(KEYS[:4])
    assert_draws_independent({f"{leaf}{client}": drawn[leaf][client] for leaf in "ab" for client in range(4)})


def is_factors(node):
    return isinstance(node, Factors)


def test_factors_can_be_quantized():
    codec = compose(low_rank(1), stochastic_uniform(8))
    update = np.outer(RNG.normal(size=20), RNG.normal(size=10)).astype(np.float32)
    payload = codec.encode(update, KEYS[0])
    assert size_in_bits(payload) == 8 * (20 + 10) + 2 * 64
    np.testing.assert_allclose(codec.decode(payload), update, atol=0.05 * np.abs(update).max())


@pytest.mark.parametrize("constructor", [low_rank, power_sgd])
@pytest.mark.parametrize("rank", [0, 1.5, True])
def test_impossible_ranks_are_refused(constructor, rank):
    with pytest.raises(ValueError, match=f"rank must be an integer of at least 1, got {rank!r}"):
        constructor(rank)
