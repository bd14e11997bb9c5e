"""What a codec, or any transform of an update, does to the numbers on average and to the form of the update always.

Every assertion takes a `Codec` or an `UpdateTransform`, and applies it as a round does, with a fresh memory.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_edge.core.protocols import Codec, PyTree, UpdateTransform
from fedjax_edge.core.transforms import as_transform
from fedjax_edge.core.trees import is_finite
from fedjax_edge.testing.comparing import assert_close, assert_same_kind, named_leaves, rounding

Transform = Codec | UpdateTransform


def assert_unbiased(
    codec: Transform, update: PyTree, key: jax.Array, *, draws: int = 1000, standard_errors: float = 5.0
) -> None:
    """Raises AssertionError unless what is received equals what was sent on average over keys.

    Tested are every number, and of every leaf three sums to which a common bias adds up: the error's components along
    the leaf itself (shrinkage), along its signs and along ones (drift). A mean error may reach `standard_errors`
    standard errors, with the standard deviation of the number itself or, where larger, the root mean square of those of
    its leaf (an event that is rarer than the number of draws shows no deviation of its own), and the rounding of the
    leaf's dtype.

    False alarms: with 5 standard errors, below 6e-7 for each number and sum that is tested, in the normal
    approximation; 6e-5 for 100 numbers. It holds where the rarest event that matters comes up some 20 times in `draws`.
    Power: a bias of twice the bound of a number is found with a probability above 1 - 6e-7.

    Args:
      codec: the component.
      update: pytree of floats; numbers on a quantizer's own grid test nothing.
      key: split into `draws` keys.
      draws: how often the update is sent; memory grows with draws times update.
      standard_errors: allowed.
    """
    received, sent = received_under(codec, update, jax.random.split(key, draws)), named_leaves(update)
    for name, leaf in named_leaves(received).items():
        if not leaf.size:
            continue
        _assert_finite(name, leaf)
        exact = sent[name].astype(np.float64)
        errors = (leaf.astype(np.float64) - exact).reshape(draws, -1)
        slack = rounding(sent[name].dtype) / 4 * np.maximum(np.abs(exact).max(), np.abs(leaf).max().astype(np.float64))
        spread = errors.std(0, ddof=1)
        spread = np.maximum(spread, np.sqrt(np.mean(spread**2)))
        _assert_mean_is_zero(f"each number of leaf {name}", errors.mean(0), spread, slack, draws, standard_errors)
        flat = exact.ravel()
        for words, direction in {"itself": flat, "its signs": np.sign(flat), "ones": np.ones_like(flat)}.items():
            if length := np.linalg.norm(direction):
                along = errors @ (direction / length)
                room = slack * np.abs(direction / length).sum()
                what = f"leaf {name} along {words}"
                _assert_mean_is_zero(what, along.mean(), along.std(ddof=1), room, draws, standard_errors)


def _assert_mean_is_zero(
    what: str, mean: np.ndarray, spread: np.ndarray, slack: float, draws: int, standard_errors: float
) -> None:
    allowed = standard_errors * spread / math.sqrt(draws) + slack
    excess = np.abs(mean) - allowed
    worst = np.unravel_index(np.argmax(excess), np.shape(excess))
    bias, limit = np.asarray(mean)[worst], np.asarray(allowed)[worst]
    where = f" (number {int(worst[0])})" if worst else ""
    assert excess[worst] <= 0, (
        f"biased: {what}{where} is off by {bias:.4g} on average over {draws} draws, and {limit:.4g} is allowed"
    )


def assert_variance_bounded(
    codec: Transform,
    update: PyTree,
    bound: float | Callable[[PyTree], float],
    key: jax.Array,
    *,
    draws: int = 1000,
    standard_errors: float = 5.0,
) -> None:
    """Raises AssertionError if the mean squared error over keys exceeds the bound that the codec documents.

    The error is `E ||received - update||^2` over all numbers together: the variance of an unbiased codec, the variance
    and the squared bias of another (for `top_k`, the contraction `(1 - k / n) ||update||^2`).

    False alarms: below 3e-7 with 5 standard errors for a codec whose error equals the bound, in the normal
    approximation; none for one well below it.

    Args:
      codec: the component.
      update: pytree of floats.
      bound: a number, or a function of the update (in float64) that gives it.
      key: split into `draws` keys.
      draws: how often the update is sent.
      standard_errors: by which the measured mean may exceed the bound.
    """
    received, sent = named_leaves(received_under(codec, update, jax.random.split(key, draws))), named_leaves(update)
    squares, slack = np.zeros(draws), 0.0
    for name, leaf in received.items():
        if leaf.size:
            _assert_finite(name, leaf)
            exact = sent[name].astype(np.float64)
            squares += ((leaf.astype(np.float64) - exact) ** 2).reshape(draws, -1).sum(1)
            slack += np.sum((rounding(sent[name].dtype) / 4 * exact) ** 2)
    claimed = bound(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), update)) if callable(bound) else bound
    allowed = float(claimed) * (1 + 1e-6) + slack + standard_errors * squares.std(ddof=1) / math.sqrt(draws)
    assert squares.mean() <= allowed, (
        f"the mean squared error is {squares.mean():.4g} over {draws} draws; the bound is {float(claimed):.4g}, "
        f"and with the error of measuring {allowed:.4g} is allowed"
    )


def assert_round_trip(
    codec: Transform, update: PyTree, key: jax.Array, *, exact: bool = False, rtol: float | None = None
) -> None:
    """Raises AssertionError unless the update comes back with its structure, shapes and dtypes, and finite.

    The memory a transform keeps must also keep its form, compiled and mapped over clients must give what one client
    alone gives, and the bits must be a number of at least zero (or `None`).

    Args:
      codec: the component.
      update: pytree of finite floats; try scalar, empty, size-1, constant and zero leaves, and bfloat16.
      key: one key.
      exact: whether the numbers must come back too: for a lossless codec, or an update it can represent.
      rtol: with `exact`, as in `assert_permutation_invariant`.
    """
    transform = as_transform(codec)
    update = jax.tree.map(jnp.asarray, update)
    memory = transform.init(update)
    received, kept, bits = _apply(codec, update, memory, key)
    assert_same_kind("what is received", received, update)
    assert_same_kind("the memory after one round", kept, memory)
    for name, leaf in named_leaves(received).items():
        _assert_finite(name, leaf)
    if exact:
        assert_close("what is received", received, update, rtol)
    if bits is not None:
        assert np.shape(bits) == () and int(bits) >= 0, f"the bits are {bits!r}, expected one number of at least 0"
    two = jax.tree.map(lambda leaf: jnp.asarray(np.stack([np.asarray(leaf)] * 2)), (update, memory))
    largest = max((np.abs(leaf).max() for leaf in named_leaves(update).values() if leaf.size), default=0)
    beside = jax.tree.map(lambda leaf: np.asarray(largest, leaf.dtype), update)  # a rotation mixes the leaves
    together, _, _ = _apply_to_many(codec, *two, jnp.stack([key, key]))
    for client in range(2):
        row = jax.tree.map(lambda leaf, client=client: np.asarray(leaf)[client], together)
        assert_close(f"what is received from client {client} of 2, mapped over", row, received, beside=(beside,))


def assert_rejects_non_finite(codec: Transform, update: PyTree, key: jax.Array) -> None:
    """Raises AssertionError if a NaN or an infinity in the update is turned into finite numbers.

    A round rejects and counts a client whose update as received, or whose memory, is not finite; a codec that clips an
    infinity, or casts a NaN to an integer, makes a hostile client pass for an honest one. Tried: NaN and both
    infinities as the first and the last number of each leaf, one at a time.

    Args:
      codec: the component.
      update: pytree of finite floats.
      key: one key.
    """
    memory = as_transform(codec).init(update)
    leaves, structure = jax.tree.flatten(update)
    names = list(named_leaves(update))
    for position, leaf in enumerate(leaves):
        for index in {0, np.size(leaf) - 1} if np.size(leaf) else ():
            for bad in (np.nan, np.inf, -np.inf):
                spoilt = np.array(leaf)
                spoilt.flat[index] = bad
                tree = structure.unflatten([*leaves[:position], jnp.asarray(spoilt), *leaves[position + 1 :]])
                received, kept, _ = _apply(codec, tree, memory, key)
                assert not bool(is_finite((received, kept))), (
                    f"a {bad} as number {index} of leaf {names[position]} came out as finite numbers: the round would "
                    "count the client as an honest one"
                )


def assert_error_feedback_conserves(
    transform: UpdateTransform,
    updates: PyTree,
    key: jax.Array,
    *,
    memory: Callable[[PyTree], PyTree] = lambda state: state,
    rtol: float | None = None,
) -> None:
    """Raises AssertionError unless all that was received plus the memory equals all that was to be sent.

    Checked after every round. The sums are those of one client, whose state goes from one round to the next.

    Args:
      transform: the component.
      updates: leaves [rounds, ...]: what the client has to send in each round.
      key: folded with the round's number for each round.
      memory: which part of the transform's state holds what is still to be sent; leaves like an update's.
      rtol: allowed of the largest number of a leaf; by default 64 units in the last place (4 in bfloat16) per round.
    """
    rows = jax.tree.map(np.asarray, updates)
    (rounds,) = {leaf.shape[0] for leaf in jax.tree.leaves(rows)}
    owed = sent = jax.tree.map(lambda leaf: np.zeros(leaf.shape[1:], np.float64), rows)
    state = transform.init(optax.tree.zeros_like(jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), rows)))
    for number in range(rounds):
        update = jax.tree.map(lambda leaf, number=number: jnp.asarray(leaf[number]), rows)
        received, state, _ = _apply(transform, update, state, jax.random.fold_in(key, number))
        owed = jax.tree.map(lambda total, leaf: total + np.asarray(leaf, np.float64), owed, update)
        sent = jax.tree.map(lambda total, leaf: total + np.asarray(leaf, np.float64), sent, received)
        remembered = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), memory(state))
        assert_same_kind("the memory", remembered, owed)
        precision = max(rounding(leaf.dtype) for leaf in jax.tree.leaves(rows)) * (number + 1)
        assert_close(
            f"after round {number + 1}, all that was received plus the memory, against all updates",
            jax.tree.map(np.add, sent, remembered),
            owed,
            precision if rtol is None else rtol,
            beside=(rows,),
        )


def _assert_finite(name: str, leaf: np.ndarray) -> None:
    assert np.isfinite(leaf).all(), f"leaf {name} of a finite update is received with a number that is not finite"


@partial(jax.jit, static_argnums=0)
def _apply(codec: Transform, update: PyTree, memory: PyTree, key: jax.Array) -> tuple[PyTree, PyTree, object]:
    return as_transform(codec).apply(update, memory, key)


@partial(jax.jit, static_argnums=0)
def _apply_to_many(codec: Transform, update: PyTree, memory: PyTree, keys: jax.Array) -> tuple[PyTree, PyTree, object]:
    transform = as_transform(codec)

    def one(*slot: PyTree) -> tuple[PyTree, PyTree, jax.Array]:
        received, kept, bits = transform.apply(*slot)
        return received, kept, jnp.int32(0 if bits is None else bits)

    return jax.vmap(one)(update, memory, keys)


@partial(jax.jit, static_argnums=0)
def received_under(codec: Transform, update: PyTree, keys: jax.Array) -> PyTree:
    """Returns what is received of one update under each key, leaves [draws, ...]."""
    transform = as_transform(codec)
    update = jax.tree.map(jnp.asarray, update)
    received = jax.vmap(lambda key: transform.apply(update, transform.init(update), key)[0])(keys)
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), received)
    assert_same_kind("what is received", one, update)
    return received
