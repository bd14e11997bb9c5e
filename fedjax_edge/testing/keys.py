"""Whether everything random is drawn once: over rounds, clients and leaves no two streams may be the same.

A key that is closed over where it should have been given is the same for every client under `vmap`, and JAX's own
checker of key reuse does not see it; only the draws show it.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.core.keys import ClientStream, RunStream, client_key, derive
from fedjax_edge.core.protocols import Aggregator, Codec, PyTree, UpdateTransform
from fedjax_edge.testing.aggregating import total_of
from fedjax_edge.testing.codecs import received_under
from fedjax_edge.testing.comparing import assert_close, named_leaves

DrawFn = Callable[[jax.Array, jax.Array, jax.Array], PyTree]
"""`draw(run_key, round, ids) -> tree`, leaves [clients, ...]: what clients `ids`, int32 [clients], draw in a round."""

_OTHER_RUNS = 64  # whose mean is taken for what is not random


def assert_keys_independent(
    component: Aggregator | Codec | UpdateTransform | DrawFn,
    key: jax.Array,
    *,
    rounds: int = 3,
    clients: int = 4,
    leaves: int = 3,
    size: int = 256,
    standard_errors: float = 6.0,
) -> None:
    """Raises AssertionError if two draws are related, over rounds, clients and leaves, or depend on the company.

    Every client sends the same update, of `leaves` leaves of the same `size` numbers, and keys are derived as a round
    derives them. What is received, less its mean under 64 other run keys, is the draw. Two streams are the same where
    their draws correlate by more than `standard_errors / sqrt(size)`, so that a draw used again at another scale or
    sign is caught as well. An aggregator is tested over rounds and leaves, as it draws once for all clients. Of a
    function, what clients draw must stay as it was when one is added and the order is reversed; the others get their
    keys from the kit, as from a round, by their clients' ids.

    False alarms: with 6 standard errors, below 2e-9 for each pair of streams; 2e-6 for the 630 pairs of the defaults.

    Args:
      component: one that draws (without any randomness it fails), or a function `draw(run_key, round, ids)` of what
        clients `ids`, int32 [clients], draw: any tree with leaves [clients, ...]. Functions serve for components
        that are none of the three, such as a round of one's own or a client update.
      key: the run's.
      rounds, clients: how many.
      leaves, size: of the update that is sent; unused with a function of one's own.
      standard_errors: of a correlation, beyond which it is no accident.
    """
    ids = jnp.arange(10, 10 + clients, dtype=jnp.int32)
    run_keys = jnp.concatenate([jnp.stack([key] * rounds), jax.random.split(jax.random.fold_in(key, 1), _OTHER_RUNS)])
    numbers = jnp.asarray(np.minimum(np.arange(rounds + _OTHER_RUNS), rounds) % rounds, jnp.int32)
    is_part = isinstance(component, Aggregator | Codec | UpdateTransform)
    if is_part:
        drawn = _of_a_probe(component, leaves, size, run_keys, numbers, ids)
    else:
        drawn = jax.jit(jax.vmap(component, (0, 0, None)))(run_keys, numbers, ids)

    streams, is_central = {}, isinstance(component, Aggregator)
    for name, leaf in named_leaves(drawn).items():
        wide = leaf.astype(np.float64).reshape(len(leaf), leaf.shape[1], -1)
        noise = wide[:rounds] - wide[rounds:].mean(0)
        for number, client in np.ndindex(noise.shape[:2]):
            place = f"round {number}" if is_central else f"round {number}, client {client}"
            streams[f"{place}, leaf {name}"] = noise[number, client]
    assert_draws_independent(streams, standard_errors)
    if is_part:
        return
    more = jnp.concatenate([jnp.array([3], jnp.int32), ids])[::-1]
    actual = jax.tree.map(lambda leaf: np.asarray(leaf)[::-1][1:], jax.jit(component)(key, numbers[0], more))
    expected = jax.tree.map(lambda leaf: np.asarray(leaf)[0], drawn)
    assert_close("what clients draw after one is added and the order reversed", actual, expected)


def assert_draws_independent(streams: dict[str, np.ndarray], standard_errors: float = 6.0) -> None:
    """Raises AssertionError if two streams of draws correlate, or if one has no randomness, and names them.

    Args:
      streams: named draws [numbers], at least 32 each, less what is not random in them; of unequal lengths, the first
        numbers count.
      standard_errors: of a correlation, `1 / sqrt(numbers)`, beyond which it is no accident.

    >>> draws = {name: jax.random.normal(jax.random.key(0), 100) for name in ("mine", "yours")}
    >>> assert_draws_independent(draws)
    Traceback (most recent call last):
    AssertionError: the same draws twice: mine and yours correlate by 1.000 over 100 numbers; ...
    """
    names, size = list(streams), min(map(np.size, streams.values()))
    if len(names) < 2 or size < 32:
        raise ValueError(f"it takes two streams of at least 32 numbers, got {len(names)} of at least {size}")
    rows = np.stack([np.asarray(streams[name], np.float64).ravel()[:size] for name in names])
    rows -= rows.mean(1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1)
    assert lengths.any(), f"{len(names)} streams draw nothing of their own: one key for all, or nothing is random"
    for name, length in zip(names, lengths, strict=True):
        assert length > 0, f"{name} draws nothing of its own, and other streams do"
    correlation = rows @ rows.T / np.outer(lengths, lengths)
    np.fill_diagonal(correlation, 0)
    first, second = sorted(np.unravel_index(np.abs(correlation).argmax(), correlation.shape))
    worst, allowed = correlation[first, second], standard_errors / np.sqrt(size)
    assert abs(worst) <= allowed, (
        f"the same draws twice: {names[first]} and {names[second]} correlate by {worst:.3f} over {size} numbers; "
        f"independent ones would by less than {allowed:.3f}"
    )


def _of_a_probe(
    component: Aggregator | Codec | UpdateTransform,
    leaves: int,
    size: int,
    run_keys: jax.Array,
    numbers: jax.Array,
    ids: jax.Array,
) -> PyTree:
    """What is received of a probe, leaves [runs, clients, size]; of an aggregator, [runs, 1, size]."""
    values = np.sin(1.7 * np.arange(size)).astype(np.float32) + np.float32(0.1)  # on no quantizer's grid
    probe = {f"{position}": jnp.asarray(values) for position in range(leaves)}
    if isinstance(component, Aggregator):
        received = _aggregates(
            component.contribution,
            component.finish,
            component.stacked,
            probe,
            component.init(probe),
            _server_keys(run_keys, numbers),
        )
    else:
        received = received_under(component, probe, _uplink_keys(run_keys, numbers, ids).ravel())
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(len(run_keys), -1, *leaf.shape[1:]), received)


@jax.jit
def _uplink_keys(run_keys: jax.Array, numbers: jax.Array, ids: jax.Array) -> jax.Array:
    """The keys of each run, round and client, [runs, clients]."""

    def one(run_key: jax.Array, number: jax.Array, client: jax.Array) -> jax.Array:
        return derive(client_key(run_key, number, client), ClientStream.UPLINK)

    return jax.vmap(jax.vmap(one, (None, None, 0)), (0, 0, None))(run_keys, numbers, ids)


@jax.jit
def _server_keys(run_keys: jax.Array, numbers: jax.Array) -> jax.Array:
    return jax.vmap(lambda run_key, number: derive(run_key, RunStream.SERVER, number))(run_keys, numbers)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _aggregates(
    contribution: Callable, finish: Callable, stacked: bool, probe: PyTree, state: PyTree, keys: jax.Array
) -> PyTree:
    """The aggregate of a cohort of one that sends the probe, under each key, leaves [keys, size]."""
    one = jnp.ones(1, jnp.float32)
    total = total_of(contribution, stacked, jax.tree.map(lambda leaf: leaf[None], probe), one, one > 0, state)
    return jax.vmap(lambda key: finish(total, state, key)[0])(keys)
