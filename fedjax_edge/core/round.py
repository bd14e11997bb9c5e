"""One federated round: where a client update, an uplink, an aggregator and a server update become an algorithm."""

import logging
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_edge.core import checks
from fedjax_edge.core.counts import Count
from fedjax_edge.core.executor import ClientFn, map_clients
from fedjax_edge.core.keys import ClientStream, RunStream, client_key, derive
from fedjax_edge.core.memory import available_bytes, in_words
from fedjax_edge.core.plan import Plan, choose_plan
from fedjax_edge.core.protocols import (
    Aggregator,
    ClientUpdate,
    Codec,
    Cohort,
    FederatedAlgorithm,
    Population,
    PyTree,
    RoundRecord,
    ServerUpdate,
    Stacked,
    UpdateTransform,
)
from fedjax_edge.core.server import as_server_update
from fedjax_edge.core.transforms import IDENTITY, as_transform
from fedjax_edge.core.trees import gather, is_finite, replicate, scatter, size_in_bits, zero_unless

_log = logging.getLogger(__name__)


class RoundState(NamedTuple):
    """What lasts from one round to the next."""

    server: PyTree
    clients: PyTree  # leaves [clients whose states are kept, ...]
    uplink: PyTree  # leaves [clients whose states are kept, ...]
    aggregator: PyTree
    key: jax.Array  # the run's key; it never changes
    round: jax.Array  # int32 []


def federated(
    client: ClientUpdate,
    server: ServerUpdate | optax.GradientTransformation,
    aggregator: Aggregator,
    uplink: UpdateTransform | Codec = IDENTITY,
) -> FederatedAlgorithm:
    """Assembles an algorithm from its four parts.

    A client whose update as received, contribution or own new state holds a NaN or an infinity is rejected: it adds
    nothing to any sum, weights and metrics included, its states stay as they were, and the record counts it. A metric
    that is not finite is left out by itself.

    Args:
      client: what each device does.
      server: what the server makes of the aggregate; an optax optimizer is taken for one.
      aggregator: how contributions become one aggregate.
      uplink: what happens to each update on its way; nothing by default, at the full size of the update.

    Raises:
      TypeError: for a part that is none of the kind.
    """
    server, uplink = as_server_update(server), as_transform(uplink)
    for name, part, protocol in (("client", client, ClientUpdate), ("aggregator", aggregator, Aggregator)):
        if not isinstance(part, protocol):
            raise TypeError(f"{name} must be of type {protocol.__name__}, got {part!r}")

    train = jax.jit(client.update, inline=True)

    def init(params: PyTree, key: jax.Array, population: Population) -> RoundState:
        checks.float_tree("params", params)
        server_state, client_state = server.init(params), client.init(params)
        example = (server.broadcast(server_state), population.examples(jnp.int32(0)), client_state, key)
        update = optax.tree.zeros_like(jax.eval_shape(train, *example).update)
        checks.float_tree("update", update)
        return RoundState(
            server=server_state,
            clients=replicate(client_state, population.num_states),
            uplink=replicate(uplink.init(update), population.num_states),
            aggregator=aggregator.init(update),
            key=key,
            round=jnp.int32(0),
        )

    @partial(jax.jit, inline=True)  # so that it is traced once, wherever the executor calls it
    def one_client(shared: tuple, slot: tuple, active: jax.Array) -> tuple[PyTree, PyTree]:
        message, population, aggregator_state = shared
        client_id, training_key, uplink_key, client_state, uplink_state = slot
        examples = population.examples(client_id)
        examples = examples._replace(size=jnp.where(active, examples.size, 0))

        output = train(message, examples, client_state, training_key)
        received, memory, bits = uplink.apply(output.update, uplink_state, uplink_key)
        contribution = aggregator.contribution(received, output.weight, aggregator_state)
        counts = is_finite((received, output.weight, contribution, output.state, memory))

        record = RoundRecord(
            metrics={name: zero_unless(counts & is_finite(mean), mean) for name, mean in output.metrics.items()},
            bits_up=Count.of(size_in_bits(output.update) if bits is None else bits),
            bits_down=Count.of(size_in_bits(message)),
            clients=jnp.int32(1),
            rejected=1 - counts.astype(jnp.int32),
        )
        contribution = zero_unless(counts, contribution)
        summed, stacked = (None, contribution) if aggregator.stacked else (contribution, None)
        return (summed, record), (stacked, counts, (output.state, memory))

    def round_(
        state: RoundState, cohort: Cohort, population: Population, plan: Plan | None = None
    ) -> tuple[RoundState, RoundRecord]:
        message = server.broadcast(state.server)
        plan = plan or choose_plan(message, len(cohort.ids))
        shared = (message, population, state.aggregator)
        state_rows = population.state_row(cohort.ids)
        keys = jax.vmap(client_key, (None, None, 0))(state.key, state.round, cohort.ids)
        streams = (jax.vmap(derive, (0, None))(keys, stream) for stream in (ClientStream.TRAINING, ClientStream.UPLINK))
        slots = (cohort.ids, *streams, *gather((state.clients, state.uplink), state_rows))
        cost = jnp.where(cohort.present, population.size(cohort.ids), 0)

        if aggregator.stacked:
            _check_stack_fits(one_client, shared, slots)
        (total, record), (rows, counts, states) = map_clients(one_client, shared, slots, cohort.present, plan, cost)

        total = Stacked(rows, counts) if aggregator.stacked else total
        key = derive(state.key, RunStream.SERVER, state.round)
        aggregate, aggregator_state = aggregator.finish(total, state.aggregator, key)
        clients, memories = scatter((state.clients, state.uplink), state_rows, states, counts)
        return RoundState(
            server=server.update(state.server, aggregate),
            clients=clients,
            uplink=memories,
            aggregator=aggregator_state,
            key=state.key,
            round=state.round + 1,
        ), record

    return FederatedAlgorithm(init, round_, lambda state: server.params(state.server), aggregator.accountant)


def _check_stack_fits(one_client: ClientFn, shared: PyTree, slots: PyTree) -> None:
    """Says, while tracing, how much memory the contributions of all clients side by side will take."""
    count = jax.tree.leaves(slots)[0].shape[0]
    one = jax.eval_shape(one_client, shared, jax.tree.map(lambda leaf: leaf[0], slots), jnp.bool_(True))[1][0]
    needed, free = count * size_in_bits(one) // 8, available_bytes()
    words = f"stacking the contributions of {count} clients takes {in_words(needed)}"
    _log.info(words)
    if free is not None and needed > free:
        raise MemoryError(
            f"{words}, and {in_words(free)} are free: draw a smaller cohort, or use an aggregator that sums"
        )
