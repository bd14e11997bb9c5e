"""Distributed differential privacy: each device adds its share of the noise, in integers for a secure sum."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.core import checks
from fedjax_edge.core.flatten import TreeShape, flatten
from fedjax_edge.core.hadamard import hadamard, power_of_two, random_signs
from fedjax_edge.core.protocols import (
    Accountant,
    Aggregator,
    PrivacyClaim,
    PrivacyError,
    PyTree,
    Sampling,
    UpdateTransform,
)
from fedjax_edge.core.trees import at_least_float32
from fedjax_edge.privacy.accounting import ZERO_OUT, check_question, in_words, most_participations
from fedjax_edge.privacy.clipping import clip_by_norm, l2_norm
from fedjax_edge.privacy.integer_noise import LARGEST, IntegerNoise, discrete_gaussian_noise, skellam_noise
from fedjax_edge.privacy.mechanism import Mechanism

_DEVIATIONS = 4.0  # of the sum that fit into the modulus on either side
_BETA = math.exp(-0.5)  # how often rounding may be tried again, as in the papers' experiments
_ATTEMPTS = 64
_NORM_ERROR = 1 + 2.0**-13  # of an accepted vector's true norm, above that computed in float32
_ORDERS = [*range(2, 129), *(2**i for i in range(8, 15))]
_DELTA_FOR_SAMPLING = 1e-3  # the part of delta that pays for noise which is not drawn exactly


class Grid(NamedTuple):
    """The integers that updates are sent in; all in units of the grid's step, whatever the clip norm."""

    size: int  # numbers sent: the update's, padded to a power of two
    bits: int  # of each
    clients: int  # whose shares are accounted for
    norm: float  # of a clipped update
    rounded_norm: float  # of what is rounded of it, at most
    deviation: float  # standard deviation of one client's noise


def discrete_gaussian(
    params: PyTree, clip_norm: float | jax.Array, noise_multiplier: float, clients: int, *, bits: int, seed: int = 0
) -> Mechanism:
    """The distributed discrete Gaussian mechanism: a private mean from a sum of integers alone.

    A device clips its update to the norm S, flattens it (random signs and a Hadamard rotation), rounds it at random to
    a grid (again, until the norm is no longer than it should be), adds discrete Gaussian noise of standard deviation
    `noise_multiplier * S / sqrt(clients)`, and sends the lowest `bits` of each number. The server adds modulo
    `2^bits`, as a secure sum does, and undoes grid and rotation. The grid is as fine as the modulus allows: four
    standard deviations of the sum fit into half of it (the paper's Section 4.4).

    | device or round                            | what happens                                                       |
    |--------------------------------------------|--------------------------------------------------------------------|
    | an update with a NaN or an infinity        | sends its share of the noise round zeros                           |
    | more than `clients` devices                | more noise than claimed; the mean is divided by `clients` still    |
    | fewer than `clients` devices               | the noise would fall short: nothing is released, the mean is zero  |
    | the sum leaves the modulus                 | wraps around: wrong by a multiple of it, and no less private       |
    | a scalar, empty or constant leaf, bfloat16 | one vector with all others; the mean is float32                    |

    The claim is about the sums, at most one for each round in which a client takes part, for one client whose
    contributions become zero (it still sends noise). By Rényi divergences of order a, a release costs
    `a D^2 / (2 s^2) + d t (1 + 1 / (2 (a - 1)))`, where s is the standard deviation of `clients` shares, D the largest
    norm of a rounded update, d how many numbers are sent and t = `10 sum_k exp(-2 pi^2 l^2 k / (k + 1))` what a sum of
    discrete Gaussians of deviation l differs from one. Nothing is gained from the sampling of clients.

    - It trusts the devices to clip and to add noise, and the sum to be all that anyone sees. Codecs may come before the
      mechanism: `chain(top_k(0.1), mechanism.uplink)`. Nothing may follow it, since what alters a device's share of the
      noise alters more than the sum: `chain` refuses it, and a transform of one's own that does so has no such claim.
    - What is not its update (a weight, or a state such as a memory before the mechanism, that is not finite) rejects
      no device: it would take its share of the noise with it. Its states stay as they were.
    - The rotation is the same in every round. It is there for accuracy, not for privacy.
    - Draws differ from the law by 1e-24 in total variation at most (see `integer_noise`); delta pays for it.

    Args:
      params: a tree of the updates' form, such as the model's parameters; only shapes matter.
      clip_norm: S, above 0; a number or a traced float32 [].
      noise_multiplier: the standard deviation of the noise of the sum of `clients` shares over S, above 0. It decides
        the grid, and so it is not traced.
      clients: how many must take part for a sum to be released, and what it is divided by.
      bits: of each number sent, 2 to 30: the modulus is `2^bits`.
      seed: of the rotation's signs.

    Returns:
      A `Mechanism`, whose uplink counts `bits` for each number sent (the update's, padded to a power of two).

    Raises:
      ValueError: an argument is out of range, or `bits` too few for the noise of so many clients.
      TypeError: `params` holds a leaf that is not floating point; by the aggregator, for what is not integers.
      PrivacyError: by `chain`, for anything after the uplink.

    Source: Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
    Aggregation" (ICML 2021, arXiv:2102.06387), Algorithms 1 and 2, Theorem 1 and Proposition 14.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_edge.core.protocols import FullParticipation
      >>> mechanism = discrete_gaussian(jnp.zeros(6), clip_norm=1.0, noise_multiplier=2.0, clients=50, bits=16)
      >>> sent, _, bits = mechanism.uplink.apply(jnp.ones(6), (), jax.random.key(0))
      >>> print(sent.dtype, sent.shape, bits)
      int32 (8,) 128
      >>> print(round(mechanism.accountant(FullParticipation(50), rounds=1, delta=1e-5).epsilon, 2))
      2.17
    """
    grid = _grid(params, noise_multiplier, clients, bits)
    if grid.deviation < 0.5:
        raise ValueError(
            f"a client's noise would have a standard deviation of {grid.deviation:.3g} grid steps, where a sum of "
            "discrete Gaussians is none; it must be 0.5 or more: take more bits, more noise or fewer clients"
        )
    decay = -2 * (math.pi * grid.deviation) ** 2
    gap = 10 * sum(math.exp(decay * k / (k + 1)) for k in range(1, clients))

    def divergence(order: int) -> float:
        scale = grid.rounded_norm / (grid.deviation * math.sqrt(clients))
        return order / 2 * scale**2 + grid.size * gap * (1 + 0.5 / (order - 1))

    noise = discrete_gaussian_noise(grid.deviation)
    return _mechanism(params, clip_norm, noise_multiplier, grid, seed, noise, divergence, "discrete Gaussians")


def skellam(
    params: PyTree, clip_norm: float | jax.Array, noise_multiplier: float, clients: int, *, bits: int, seed: int = 0
) -> Mechanism:
    """The Skellam mechanism: `discrete_gaussian` with noise that stays of its kind when it is summed.

    A share is the difference of two Poisson variables; a sum of shares is one of larger mean, whatever their number, so
    that no term for the sum is due and more clients need no finer grid. With s^2 the variance of the sum, D the largest
    norm of a rounded update and `D_1 = D min(sqrt(d), D)` the largest sum of its magnitudes, a release costs, by Rényi
    divergences of integer order a, `a D^2 / (2 s^2) + min(((2 a - 1) D^2 + 6 D_1) / (4 s^4), 3 D_1 / (2 s^2))`.

    All else, arguments and errors included, is as in `discrete_gaussian`.

    Source: Agarwal, Kairouz and Liu, "The Skellam Mechanism for Differentially Private Federated Learning" (NeurIPS
    2021, arXiv:2110.04995), Algorithms 1 and 2 and Corollary 3.6.

    Example:
      >>> from fedjax_edge.core.protocols import FullParticipation
      >>> mechanism = skellam(jnp.zeros(6), clip_norm=1.0, noise_multiplier=2.0, clients=50, bits=16)
      >>> print(round(mechanism.accountant(FullParticipation(50), rounds=1, delta=1e-5).epsilon, 2))
      2.17
    """
    grid = _grid(params, noise_multiplier, clients, bits)
    variance = clients * grid.deviation**2
    squared, total = grid.rounded_norm**2, grid.rounded_norm * min(math.sqrt(grid.size), grid.rounded_norm)

    def divergence(order: int) -> float:
        excess = min(((2 * order - 1) * squared + 6 * total) / (4 * variance**2), 3 * total / (2 * variance))
        return order / 2 * squared / variance + excess

    noise = skellam_noise(grid.deviation**2)
    return _mechanism(params, clip_norm, noise_multiplier, grid, seed, noise, divergence, "Skellam noise")


def _grid(params: PyTree, noise_multiplier: float, clients: int, bits: int) -> Grid:
    checks.float_tree("params", params)
    if isinstance(noise_multiplier, jax.core.Tracer):
        raise TypeError("noise_multiplier is traced, but the grid depends on it: make it static")
    checks.positive("noise_multiplier", noise_multiplier)
    checks.integer("clients", clients)
    checks.integer("bits", bits, at_least=2, at_most=30)
    size = power_of_two(sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params)))
    # The sum of n clipped and rotated updates with noise has, in each number, a variance of about
    # (S n)^2 / d + step^2 n / 4 + (z S)^2: so much that _DEVIATIONS of it are half of the modulus.
    room = 4.0**bits - clients * _DEVIATIONS**2
    if room <= 0:
        raise ValueError(f"bits={bits} is too few to sum the rounding of {clients} clients; take more")
    norm = math.sqrt(room / (clients**2 / size + float(noise_multiplier) ** 2)) / (2 * _DEVIATIONS)
    deviation = float(noise_multiplier) * norm / math.sqrt(clients)
    if deviation > LARGEST:
        raise ValueError(f"bits={bits} make a grid so fine that noise has deviation {deviation:.3g}; take fewer bits")
    likely = norm**2 + size / 4 + math.sqrt(-2 * math.log(_BETA)) * (norm + math.sqrt(size) / 2)
    rounded_norm = min(norm + math.sqrt(size), math.sqrt(likely)) * _NORM_ERROR
    return Grid(size, int(bits), int(clients), norm, rounded_norm, deviation)


def _mechanism(
    params: PyTree,
    clip_norm: float | jax.Array,
    noise_multiplier: float,
    grid: Grid,
    seed: int,
    noise: IntegerNoise,
    divergence: Callable[[int], float],
    words: str,
) -> Mechanism:
    checks.positive_float32("clip_norm", clip_norm)
    checks.integer("seed", seed, at_least=0, at_most=2**32 - 1)
    shape = _shape_of(params)

    def signs() -> jax.Array:
        return random_signs(jax.lax.optimization_barrier(jnp.uint32(seed)), grid.size)  # not folded while compiling

    def init(update: PyTree) -> tuple:
        if _shape_of(update) != shape:
            raise ValueError(f"the mechanism was made for updates of the form {shape}, got {_shape_of(update)}")
        return ()

    def apply(update: PyTree, state: tuple, key: jax.Array) -> tuple[jax.Array, tuple, int]:
        round_key, noise_key = jax.random.split(key)
        vector, _ = flatten(clip_by_norm(at_least_float32(update), clip_norm))  # zeros for what is not finite
        scale = jnp.float32(grid.norm) / jnp.asarray(clip_norm, jnp.float32)
        flat = hadamard(jnp.pad(vector, (0, grid.size - vector.size)) * signs()) * scale
        sent = _round(flat, grid.rounded_norm / _NORM_ERROR, round_key) + noise.draw(noise_key, grid.size)
        return sent & (2**grid.bits - 1), state, grid.size * grid.bits

    def contribution(update: PyTree, weight: jax.Array, state: tuple) -> tuple[jax.Array, jax.Array]:
        if not isinstance(update, jax.Array) or update.dtype != jnp.int32 or update.shape != (grid.size,):
            raise TypeError("this aggregator sums the integers that its uplink sends: nothing may follow in the chain")
        return update, jnp.int32(1)

    def finish(total: tuple[jax.Array, jax.Array], state: tuple, key: jax.Array) -> tuple[PyTree, tuple]:
        numbers, count = total
        half = 2 ** (grid.bits - 1)
        centred = ((numbers + half) & (2**grid.bits - 1)) - half
        step = jnp.asarray(clip_norm, jnp.float32) / (grid.norm * grid.clients)
        vector = hadamard(centred.astype(jnp.float32)) * signs() * step
        vector = jnp.where(count >= grid.clients, vector, 0)
        return shape.unflatten(vector[: shape.size]), state

    accountant = _accountant(float(noise_multiplier), grid, divergence, noise.total_variation, words)
    aggregator = Aggregator(init, contribution, finish, accountant_of_uplink=accountant)
    return Mechanism(UpdateTransform(init, apply, accountant), aggregator)


def _shape_of(tree: PyTree) -> TreeShape:
    """The form of the mean: structure and shapes of `tree`, all float32."""
    leaves, structure = jax.tree.flatten(tree)
    return TreeShape(structure, tuple(jnp.shape(leaf) for leaf in leaves), (np.dtype(np.float32),) * len(leaves))


def _round(vector: jax.Array, longest: float, key: jax.Array) -> jax.Array:
    """Returns a vector rounded at random to integers, without bias but for being no longer than that; or zeros.

    A try fails with a probability below `_BETA`, whatever the vector (Proposition 22 of the paper).
    """
    below = jnp.floor(vector)

    def again(carry: tuple) -> jax.Array:
        attempt, rounded = carry
        return (l2_norm(rounded) > longest) & (attempt < _ATTEMPTS)

    def once(carry: tuple) -> tuple:
        attempt, _ = carry
        coins = jax.random.uniform(jax.random.fold_in(key, attempt), vector.shape)
        return attempt + 1, below + (coins < vector - below).astype(vector.dtype)

    _, rounded = jax.lax.while_loop(again, once, once((jnp.int32(0), vector)))
    return jnp.where(l2_norm(rounded) <= longest, rounded, 0).astype(jnp.int32)


def _accountant(
    noise_multiplier: float, grid: Grid, divergence: Callable[[int], float], total_variation: float, words: str
) -> Accountant:
    def accountant(sampling: Sampling, rounds: int, delta: float) -> PrivacyClaim:
        from dp_accounting.rdp import compute_epsilon

        check_question(noise_multiplier, rounds, delta)
        most = most_participations(sampling, rounds)
        left = delta * (1 - _DELTA_FOR_SAMPLING)
        costs = [most * divergence(order) for order in _ORDERS]
        epsilon = float(compute_epsilon(_ORDERS, costs, left)[0]) if most else 0.0
        drawn = int(rounds) * int(sampling.num_clients) * grid.size
        price = drawn * total_variation * (1 + math.exp(min(epsilon, 700.0)))
        if not math.isfinite(epsilon) or price > delta - left:
            raise PrivacyError(
                f"no finite epsilon for {noise_multiplier=}, {rounds} rounds and delta={delta}: the noise is too "
                f"coarse (standard deviation {grid.deviation:.3g} grid steps a client), or delta too small"
            )
        return PrivacyClaim(
            epsilon=epsilon,
            delta=float(delta),
            relation=ZERO_OUT,
            sampling=f"{in_words(sampling)}; a sum of fewer than {grid.clients} clients is not released, and of the "
            "others every share of the noise is in the sum",
            accountant=f"RDP of a sum of {words}, of at most {most} rounds of a client",
            rounds=int(rounds),
            noise_multiplier=noise_multiplier,
        )

    return accountant
