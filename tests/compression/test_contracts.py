"""What every codec promises, one table row each: structure, dtypes, bits, bias, error, rejection, error feedback."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_edge.compression import (
    compose,
    drive,
    eden,
    error_feedback,
    fixed_point,
    half_precision,
    natural_compression,
    per_leaf,
    qsgd,
    random_k,
    rotated,
    scaled_sign,
    sign,
    stochastic_uniform,
    terngrad,
    top_k,
)
from fedjax_edge.core.protocols import Codec
from fedjax_edge.core.trees import size_in_bits

CLIENTS = 4000  # rows of the one compiled program of each codec; as many draws for the statistics
SIZE = 14  # numbers of a client; three zeros are added
VALUES = np.random.default_rng(1).normal(0.2, 1, SIZE).astype(np.float32)
VALUES[10:] = 0  # where decoded numbers are rounded to bfloat16
SIZES = [8, 4, 0, 1, 1, 3]  # of the leaves, in the order of `as_tree`


def as_tree(vector):
    return {
        "a": vector[:8].reshape(2, 4),
        "bfloat16": vector[10:].astype(jnp.bfloat16),
        "empty": jnp.zeros((2, 0)),
        "one": vector[8:9],
        "scalar": vector[9],
        "zero": jnp.zeros(3),
    }


def as_vector(tree):
    return jnp.concatenate([leaf.astype(jnp.float32).ravel() for leaf in jax.tree.leaves(tree)])


def described(tree):
    return jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def whole_bytes(bits):
    return 8 * -(-bits // 8)


def each_leaf(bits, extra):
    return sum(whole_bytes(size * bits) + extra for size in SIZES)


def squared(leaves):
    return sum((leaf**2).sum() for leaf in leaves)


def qsgd_bound(levels):
    return lambda leaves: sum(min(x.size / levels**2, x.size**0.5 / levels) * (x**2).sum() for x in leaves)


def grid_bound(levels):
    return lambda leaves: sum(x.size * (np.ptp(x) / (levels - 1) / 2) ** 2 for x in leaves if x.size)


def terngrad_error(leaves):
    return sum(np.abs(x).max() * np.abs(x).sum() - (x**2).sum() for x in leaves if x.size)


def natural_error(leaves):
    x = np.abs(np.concatenate([leaf.ravel() for leaf in leaves]))
    x = x[x > 0]
    low = 2.0 ** np.floor(np.log2(x))
    return ((x - low) * (2 * low - x)).sum()


def scaled_sign_error(leaves):
    return sum((x**2).sum() - np.abs(x).sum() ** 2 / x.size for x in leaves if x.size)


class Row(NamedTuple):
    codec: Codec
    bits: int  # of the payload for 17 numbers in leaves of SIZES
    unbiased: bool = False
    error: Callable | None = None  # (leaves) -> the expected squared error of what is decoded, or a bound
    exact: bool = False  # whether it is that error itself
    contracts: bool = False  # error feedback makes up for what is lost
    draws: bool = True


TOP = -1e-9 + 0.25  # of 17 numbers: 4
CODECS = {
    "stochastic_uniform": Row(stochastic_uniform(3), each_leaf(3, 64), True, grid_bound(8)),
    "fixed_point": Row(fixed_point(3), whole_bytes(17 * 4), draws=False),
    "top_k": Row(
        top_k(TOP), 4 * 32 + whole_bytes(4 * 5), error=lambda x: 13 / 17 * squared(x), contracts=True, draws=False
    ),
    "top_k per leaf": Row(
        per_leaf(top_k(0.5)),
        (4 + 2 + 0 + 1 + 1 + 2) * 32 + 16 + 8 + 0 + 8 + 8 + 8,
        error=lambda x: 0.5 * squared(x),
        contracts=True,
        draws=False,
    ),
    "random_k": Row(random_k(TOP), 4 * 32 + 32, True, lambda x: 13 / 4 * squared(x), exact=True),
    "random_k unscaled": Row(
        random_k(TOP, unbiased=False), 4 * 32 + 32, False, lambda x: 13 / 17 * squared(x), exact=True, contracts=True
    ),
    "qsgd 1": Row(qsgd(1), each_leaf(2, 32), True, qsgd_bound(1)),
    "qsgd 3": Row(qsgd(3), each_leaf(3, 32), True, qsgd_bound(3)),
    "terngrad": Row(terngrad(), each_leaf(2, 32), True, terngrad_error, exact=True),
    "natural_compression": Row(natural_compression(), whole_bytes(17 * 9), True, natural_error, exact=True),
    "sign": Row(sign(), 24 + 8, draws=False),
    "scaled_sign": Row(
        scaled_sign(), each_leaf(1, 32), False, scaled_sign_error, exact=True, contracts=True, draws=False
    ),
    "rotated": Row(
        rotated(stochastic_uniform(3)), 32 * 3 + 64 + 32, True, lambda x: (2 * np.log(32) + 2) / 49 * squared(x)
    ),
    "drive": Row(drive(), 32 + 32 + 32, error=lambda x: (np.pi / 2 - 1) * squared(x)),
    "eden": Row(eden(3), 32 * 3 + 32 + 32, error=lambda x: 0.0358 * squared(x)),
    "bfloat16": Row(half_precision(), 17 * 16, error=lambda x: 2.0**-18 * squared(x), contracts=True, draws=False),
    "float8": Row(
        half_precision(jnp.float8_e4m3fn), 17 * 8, error=lambda x: 2.0**-8 * squared(x), contracts=True, draws=False
    ),
    "top_k, then 8 bits": Row(
        compose(top_k(TOP), stochastic_uniform(8)), 4 * 8 + whole_bytes(4 * 5) + 64, contracts=True
    ),
    "random_k, then qsgd": Row(compose(random_k(TOP), qsgd(127)), 4 * 8 + 32 + 32, True),
}
UNBIASED = [name for name, row in CODECS.items() if row.unbiased]
WITH_ERROR = [name for name, row in CODECS.items() if row.error]
CONTRACTING = [name for name, row in CODECS.items() if row.contracts]


@cache
def program(name):
    """Returns what is decoded of CLIENTS updates, [CLIENTS, SIZE] and seeds -> [CLIENTS, 17]: compiled once."""
    codec = CODECS[name].codec

    def one(vector, seed):
        update = as_tree(vector)
        decoded = codec.decode(codec.encode(update, jax.random.key(seed)))
        assert described(decoded) == described(update)
        return as_vector(decoded)

    return jax.jit(jax.vmap(one))


def decoded_of(name, *vectors):
    """Returns what is decoded of a few updates, each with a seed of its own."""
    rows = np.zeros((CLIENTS, SIZE), np.float32)
    rows[: len(vectors)] = vectors
    return np.asarray(program(name)(rows, np.arange(CLIENTS)))[: len(vectors)]


@cache
def draws_of(name):
    return np.asarray(program(name)(np.tile(VALUES, (CLIENTS, 1)), np.arange(CLIENTS)), np.float64)


def leaves_of(vector):
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(as_tree(jnp.asarray(vector)))]


EXACT = np.concatenate([leaf.ravel() for leaf in leaves_of(VALUES)])


def is_unbiased(draws, exact):
    """Within 5 standard errors: for normal means a false alarm of 6e-7 a number, were the seeds not fixed."""
    tolerance = 5 * draws.std(0) / np.sqrt(len(draws)) + 1e-6
    return (np.abs(draws.mean(0) - exact) <= tolerance).all()


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=10)
@given(
    values=hnp.arrays(np.float32, SIZE, elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    bad=st.sampled_from([np.nan, -np.nan, np.inf, -np.inf]),
    position=st.integers(0, SIZE - 1),
)
def test_what_is_finite_stays_so_and_what_is_not_is_never_made_finite(name, values, bad, position):
    spoilt = values.copy()
    spoilt[position] = bad
    decoded = decoded_of(name, values, spoilt, np.full(SIZE, bad, np.float32), np.zeros(SIZE, np.float32))
    assert np.isfinite(decoded).all(1).tolist() == [True, False, False, True]
    assert name == "sign" or not decoded[3].any()


@pytest.mark.parametrize("name", CODECS)
def test_the_payload_has_the_bits_that_are_documented(name):
    update = as_tree(jnp.asarray(VALUES))
    assert [leaf.size for leaf in jax.tree.leaves(update)] == SIZES
    assert size_in_bits(jax.eval_shape(CODECS[name].codec.encode, update, jax.random.key(0))) == CODECS[name].bits


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("empty", [{}, {"a": jnp.zeros((0, 2))}, jnp.zeros(0, jnp.bfloat16)], ids=str)
def test_an_update_without_numbers_comes_back(name, empty):
    codec = CODECS[name].codec
    assert described(jax.eval_shape(lambda u, k: codec.decode(codec.encode(u, k)), empty, jax.random.key(0))) == (
        described(empty)
    )


@pytest.mark.parametrize("name", CODECS)
def test_clients_draw_for_themselves_and_only_those_that_draw_differ(name):
    draws = draws_of(name)
    assert (len(np.unique(draws[:50], axis=0)) > 1) == CODECS[name].draws
    again = np.asarray(program(name)(np.tile(VALUES, (CLIENTS, 1)), np.arange(CLIENTS)[::-1]))
    np.testing.assert_array_equal(again[::-1], draws.astype(np.float32))


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased(name):
    assert is_unbiased(draws_of(name), EXACT)


def test_the_check_of_bias_notices_what_is_biased():
    for name in ("random_k unscaled", "scaled_sign", "top_k", "float8"):
        assert not is_unbiased(draws_of(name), EXACT)


@pytest.mark.parametrize("name", WITH_ERROR)
def test_the_squared_error_is_as_documented(name):
    errors = ((draws_of(name) - EXACT) ** 2).sum(1)
    tolerance = 5 * errors.std() / np.sqrt(CLIENTS) + 1e-5
    documented = CODECS[name].error(leaves_of(VALUES))
    assert errors.mean() <= documented + tolerance
    if CODECS[name].exact:
        assert errors.mean() >= documented - tolerance


@pytest.mark.parametrize("name", CONTRACTING)
def test_error_feedback_sends_all_in_the_end_and_remembers_little(name):
    transform, rounds = error_feedback(CODECS[name].codec), 60
    updates = np.random.default_rng(2).normal(0.2, 1, (rounds, SIZE)).astype(np.float32)
    updates[:, 10:] = 0

    @jax.jit
    def run(updates, keys):
        def one_round(memory, update_and_key):
            sent, memory, _ = transform.apply(as_tree(update_and_key[0]), memory, update_and_key[1])
            return memory, as_vector(sent)

        memory, sent = jax.lax.scan(one_round, transform.init(as_tree(updates[0])), (updates, keys))
        return sent, as_vector(memory)

    sent, memory = run(updates, jax.random.split(jax.random.key(0), rounds))
    total = np.concatenate([leaf.ravel() for leaf in leaves_of(updates.sum(0))])
    np.testing.assert_allclose(np.asarray(sent).sum(0) + memory, total, atol=1e-3)
    assert np.linalg.norm(memory) <= 13 / 4 * 4 * np.sqrt(SIZE)  # (1 / delta - 1) times the updates' norms, roughly


@pytest.mark.parametrize("wrapper", [per_leaf, rotated, compose])
def test_wrappers_refuse_what_is_no_codec(wrapper):
    with pytest.raises(TypeError, match="Codec"):
        wrapper(error_feedback(sign()))
