"""Noise that is correlated over rounds, so that what was added in one round is partly taken back in later ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_edge.core import checks
from fedjax_edge.core.protocols import PyTree
from fedjax_edge.core.trees import zero_unless
from fedjax_edge.privacy.noise import normal


class Strategy(NamedTuple):
    """A stream of correlated standard noise, one slice a round, and all that its privacy depends on.

    Slices are jointly normal with mean zero: slice t is `sum_s mixing[t, s] z_s` with independent standard normal z_s,
    number by number. In the terms of matrix mechanisms the mixing is C^-1, if the strategy matrix is C.
    """

    rounds: int  # for which it was made
    init: Callable[[PyTree], PyTree]  # (update) -> state
    next: Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, PyTree]]  # (like, state, key) -> (slice, state)
    mixing: Callable[[], np.ndarray]  # () -> float64 [rounds, rounds], lower triangular


def tree_noise(rounds: int) -> Strategy:
    """Tree aggregation: a sum over any number of rounds has the noise of at most log2(rounds) + 1 nodes.

    Every node of a binary tree over the rounds has noise of its own, and the sum of the first t rounds has that of the
    nodes that t's binary digits name. What is known below a node improves it: its estimate is the mean of its own sum
    and that of its two children's estimates, weighted by their precision (the streaming half of Honaker's estimator,
    which costs no privacy, being made of what the tree releases). Memory: `log2(rounds) + 1` models.

    Args:
      rounds: how many there will be, at least 1; the claim is for these, or for the first of them.

    Raises:
      ValueError: `rounds` is not an integer of at least 1.

    Source: Kairouz et al., "Practical and Private (Deep) Learning without Sampling or Shuffling" (ICML 2021,
    arXiv:2103.00039), Appendix B; Honaker, "Efficient Use of Differentially Private Binary Trees" (TPDP 2015).

    >>> covariance = tree_noise(4).mixing() @ tree_noise(4).mixing().T
    >>> ones = np.ones(4)
    >>> round(float(ones[:3] @ covariance[:3, :3] @ ones[:3]), 3)  # a node of two rounds, 2/3, and one of one
    1.667
    """
    checks.integer("rounds", rounds)
    levels = int(rounds).bit_length()
    weights = _honaker_weights(levels)

    def init(update: PyTree) -> tuple[jax.Array, PyTree]:
        return jnp.int32(0), jax.tree.map(lambda leaf: jnp.zeros((levels, *leaf.shape), leaf.dtype), update)

    def next_(like: PyTree, state: tuple[jax.Array, PyTree], key: jax.Array) -> tuple[PyTree, tuple[jax.Array, PyTree]]:
        done, nodes = state
        top = jnp.minimum(jax.lax.population_count(done ^ (done + 1)) - 1, levels - 1)  # of the nodes this round ends

        def climb(level: jax.Array, below: PyTree) -> PyTree:
            own = optax.tree.random_like(jax.random.fold_in(key, level), like, normal)
            weight = jnp.asarray(weights)[level]

            def estimate(own: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
                share = weight.astype(own.dtype)
                return share * own + (1 - share) * (left[jnp.maximum(level - 1, 0)] + right)

            return jax.tree.map(estimate, own, nodes, below)

        new = jax.lax.fori_loop(0, top + 1, climb, optax.tree.zeros_like(like))
        kept = jax.vmap(zero_unless)(jnp.arange(levels, dtype=jnp.int32) < top, nodes)
        replaced = jax.tree.map(lambda leaf: leaf.sum(0), kept)
        nodes = jax.tree.map(lambda leaf, node: leaf.at[top].set(node), nodes, new)
        return optax.tree.sub(new, replaced), (done + 1, nodes)

    return Strategy(int(rounds), init, next_, partial(_tree_mixing, int(rounds)))


def banded_toeplitz_noise(rounds: int, bands: int) -> Strategy:
    """The best banded strategy whose columns are one sequence shifted, by `jax-privacy`, for the error of prefix sums.

    A client whose rounds are at least `bands` apart has the sensitivity of its number of rounds alone, its root; nearer
    ones cost more. More bands cancel more noise. Memory: `bands - 1` models.

    Args:
      rounds: how many there will be, at least 1; columns are normalized for these. The claim is for these, or for the
        first of them.
      bands: from 1 (independent noise) to `rounds`.

    Raises:
      ValueError: `rounds` or `bands` is out of range.
      ImportError: `jax-privacy` is not installed.

    Source: Choquette-Choo et al., "(Amplified) Banded Matrix Factorization" (NeurIPS 2023, arXiv:2306.08153), Algorithm
    9; McKenna, "Scaling up the Banded Matrix Factorization Mechanism" (2024, arXiv:2405.15913).
    """
    checks.integer("rounds", rounds)
    checks.integer("bands", bands, at_most=rounds)
    coefficients = _best_coefficients(int(rounds), int(bands))
    return streaming_noise(_jax_privacy().toeplitz.inverse_as_streaming_matrix(coefficients, int(rounds)), rounds)


def blt_noise(rounds: int, decays: Any, scales: Any) -> Strategy:
    """A buffered linear Toeplitz strategy: column entries `1, sum_i s_i, sum_i s_i d_i, sum_i s_i d_i^2, ...`.

    Memory: one model for each decay, however many rounds. `jax_privacy.matrix_factorization.buffered_toeplitz.optimize`
    finds the best decays and scales for a number of rounds and a separation (in a minute or so, in float64).

    Args:
      rounds: how many there will be, at least 1; the claim is for these, or for the first of them.
      decays: `buf_decay` d, in [0, 1], float [buffers].
      scales: `output_scale` s, above 0, float [buffers].

    Raises:
      ValueError: an argument is out of range.
      ImportError: `jax-privacy` is not installed.

    Source: Dvijotham et al., "Efficient and Near-Optimal Noise Generation for Streaming Differential Privacy" (FOCS
    2024, arXiv:2404.16706); McMahan, Xu and Zhang (EMNLP 2024 Industry Track, arXiv:2408.08868), Algorithm 3.
    """
    checks.integer("rounds", rounds)
    decays, scales = np.asarray(decays, np.float32), np.asarray(scales, np.float32)
    are_valid = ((decays >= 0) & (decays <= 1)).all() and ((scales > 0) & np.isfinite(scales)).all()
    if decays.ndim != 1 or decays.shape != scales.shape or not are_valid:
        raise ValueError(
            f"decays must be numbers from 0 to 1 and scales as many above 0, got {decays.tolist()}, {scales.tolist()}"
        )
    builder = _jax_privacy().buffered_toeplitz.StreamingMatrixBuilder(buf_decay=decays, output_scale=scales)
    return streaming_noise(builder.build_inverse(), rounds)


def streaming_noise(noising_matrix: Any, rounds: int) -> Strategy:
    """Any lower-triangular noising matrix C^-1 that comes row by row, such as a `jax_privacy` `StreamingMatrix`.

    Its privacy is computed from the rows that it really makes, so that it may be anything of full rank.

    Args:
      noising_matrix: has `init_multiply(like) -> state` and `multiply_next(value, state) -> (slice, state)`, both for
        pytrees, linear in the values.
      rounds: how many there will be, at least 1.

    Raises:
      ValueError: `rounds` is not an integer of at least 1.
    """
    checks.integer("rounds", rounds)
    init_multiply, multiply_next = noising_matrix.init_multiply, noising_matrix.multiply_next

    def step(state: PyTree, value: PyTree) -> tuple[PyTree, PyTree]:
        """The new state and the slice, in the dtypes of `state` and `value`: constants of float64 would widen them."""
        with _lenient():
            slice_, new = multiply_next(value, state)
        return optax.tree.cast_like(new, state), optax.tree.cast_like(slice_, value)

    def next_(like: PyTree, state: PyTree, key: jax.Array) -> tuple[PyTree, PyTree]:
        return step(state, optax.tree.random_like(key, like, normal))[::-1]

    def init(update: PyTree) -> PyTree:
        with _lenient():
            return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), init_multiply(update))

    @lru_cache(maxsize=1)
    def mixing() -> np.ndarray:
        units = jnp.eye(rounds, dtype=jnp.float32)
        _, rows = jax.lax.scan(step, init(units[0]), units)
        return np.asarray(rows, np.float64)

    return Strategy(int(rounds), init, next_, mixing)


@contextmanager
def _lenient() -> Iterator[None]:
    """jax-privacy relies on promotions that a user's strict settings may forbid, and on products that do not round."""
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.default_matmul_precision("highest"),
    ):
        yield


def _jax_privacy() -> Any:
    try:
        from jax_privacy import matrix_factorization
    except ImportError as error:
        raise ImportError("this strategy comes from jax-privacy: pip install 'fedjax-edge[privacy]'") from error
    return matrix_factorization


@lru_cache
def _best_coefficients(rounds: int, bands: int) -> np.ndarray:
    with _lenient(), jax.ensure_compile_time_eval():
        return np.asarray(_jax_privacy().toeplitz.optimize_banded_toeplitz(rounds, bands))


def _honaker_weights(levels: int) -> np.ndarray:
    """The weight of a node's own noise in its estimate, float32 [levels], leaves first."""
    weights, variance = [1.0], 1.0
    for _ in range(1, levels):
        weights.append(2 * variance / (1 + 2 * variance))
        variance = weights[-1]  # v / (1 + v), of a unit and of v = twice the variance below
    return np.array(weights, np.float32)


@lru_cache
def _tree_mixing(rounds: int) -> np.ndarray:
    """A square root of the slices' covariance, from the weights of every node's noise in every slice."""
    levels = rounds.bit_length()
    weights = _honaker_weights(levels).astype(np.float64)
    nodes, slices, draws = np.zeros((levels, 2 * rounds)), np.zeros((rounds, 2 * rounds)), 0
    for number in range(rounds):
        top = (number ^ (number + 1)).bit_length() - 1
        new = np.zeros(2 * rounds)
        for level in range(top + 1):
            new = (1 - weights[level]) * (nodes[level - 1] + new)
            new[draws] += weights[level]
            draws += 1
        slices[number] = new - nodes[:top].sum(0)
        nodes[top] = new
    return np.linalg.cholesky(slices @ slices.T)
