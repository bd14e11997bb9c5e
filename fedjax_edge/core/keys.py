"""Every random stream of a run, in one table. No key is used twice.

A run starts from one key; everything random hangs from it by `jax.random.fold_in`::

    run key
      |- INIT                        the model's parameters, where the command line makes them
      |- SPLIT                       which examples each client gets, likewise
      |- COHORT / round              who takes part
      |- DOWNLINK / round            given to the `Downlink`: compression of the broadcast
      |- SERVER / round              what the aggregator draws: the central noise of differential privacy
      '- CLIENTS / round / client    one key per client and round, independent of cohort order, chunks and devices
           |- TRAINING               given to `ClientUpdate.update`; `local_sgd` splits it again:
           |    |- BATCHES / epoch   the order of the examples
           |    '- LOSS / step       given to `loss_fn`: dropout and augmentation; `privacy.dp_sgd` splits it for noise
           |- UPLINK / position      given to each `UpdateTransform` of a chain: compression, local noise; `compose`
           |                         splits it among its codecs
           '- ATTACK                 what a malicious client draws

A client's stream in a round depends on nothing but the run key, the round and the client's id.
"""

from enum import IntEnum

import jax
import jax.numpy as jnp


class RunStream(IntEnum):
    """The streams of a run."""

    INIT = 0
    COHORT = 1
    SERVER = 2
    CLIENTS = 3
    SPLIT = 4
    DOWNLINK = 5


class ClientStream(IntEnum):
    """The streams of one client in one round."""

    TRAINING = 0
    UPLINK = 1
    ATTACK = 2


class TrainingStream(IntEnum):
    """The streams of one client's local training."""

    BATCHES = 0
    LOSS = 1


def derive(key: jax.Array, *path: IntEnum | int | jax.Array) -> jax.Array:
    """Returns the key at the end of `path`, folding in one element after another.

    >>> key = jax.random.key(0)
    >>> bool(derive(key, RunStream.COHORT, 3) == jax.random.fold_in(jax.random.fold_in(key, 1), 3))
    True
    """
    if len(path) < 2:
        return jax.random.fold_in(key, *path) if path else key
    steps = jnp.stack([jnp.asarray(step, jnp.uint32) for step in path])
    return jax.lax.scan(_fold_in, key, steps)[0]  # one hash to compile, whatever the length


def _fold_in(key: jax.Array, step: jax.Array) -> tuple[jax.Array, None]:
    return jax.random.fold_in(key, step), None


def client_key(run_key: jax.Array, round_number: jax.Array, client: jax.Array) -> jax.Array:
    """Returns the key of one client in one round, from which its `ClientStream`s are derived."""
    return derive(run_key, RunStream.CLIENTS, round_number, client)
