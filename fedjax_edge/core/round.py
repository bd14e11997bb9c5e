"""One federated round: where a server, a downlink, a client update, an uplink and an aggregator become an algorithm."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_edge.core import checks
from fedjax_edge.core.bundle import bundle, unbundle
from fedjax_edge.core.counts import MOST_TERMS, Count
from fedjax_edge.core.executor import ClientFn, map_clients
from fedjax_edge.core.keys import ClientStream, RunStream, derive
from fedjax_edge.core.memory import available_bytes, copies_in_one_memory, in_words
from fedjax_edge.core.plan import Plan, choose_plan
from fedjax_edge.core.protocols import (
    Accountant,
    Aggregator,
    ClientOutput,
    ClientUpdate,
    Codec,
    Cohort,
    Downlink,
    FederatedAlgorithm,
    Mean,
    Population,
    PrivacyError,
    PyTree,
    RoundRecord,
    ServerUpdate,
    Stacked,
    Traffic,
    UpdateTransform,
)
from fedjax_edge.core.server import as_server_update
from fedjax_edge.core.transforms import IDENTITY, as_downlink, as_transform
from fedjax_edge.core.trees import gather, is_finite, replicate, scatter, size_in_bits, zero_unless

_log = logging.getLogger(__name__)


class RoundState(NamedTuple):
    """What lasts from one round to the next."""

    server: PyTree
    clients: PyTree  # leaves [clients whose states are kept, ...]
    uplink: PyTree  # leaves [clients whose states are kept, ...]
    received: PyTree  # leaves [clients whose states are kept, ...]; what they remember of broadcasts
    downlink: PyTree
    aggregator: PyTree
    key: jax.Array  # the run's key; it never changes
    round: jax.Array  # int32 []


def federated(
    client: ClientUpdate,
    server: ServerUpdate | optax.GradientTransformation,
    aggregator: Aggregator,
    uplink: UpdateTransform | Codec = IDENTITY,
    downlink: Downlink | UpdateTransform | Codec = IDENTITY,
) -> FederatedAlgorithm:
    """Assembles an algorithm from its parts.

    A client whose update as received, contribution or own new state holds a NaN or an infinity is rejected: it adds
    nothing to any sum, weights and metrics included, its states stay as they were, and the record counts it. So is one
    that the population does not have. A metric that is not finite is left out by itself. Where the uplink adds a
    mechanism's noise, a weight or a new state rejects nobody: its client's states stay as they were, and no more.

    Args:
      client: what each device does.
      server: what the server makes of the aggregate; an optax optimizer is taken for one.
      aggregator: how contributions become one aggregate.
      uplink: what happens to each update on its way; nothing by default, at the full size of the update.
      downlink: what happens to the broadcast on its way, likewise. Clients train from what they receive, and the
        server goes on from its own exact state.

    Raises:
      TypeError: for a part that is none of the kind.
      PrivacyError: for one half of a privacy mechanism without the other.
    """
    server, uplink, downlink = as_server_update(server), as_transform(uplink), as_downlink(downlink)
    _check_parts(client, aggregator)
    train = jax.jit(lambda *arguments: client.update(*arguments), inline=True)  # traced once, by this algorithm

    def init(params: PyTree, key: jax.Array, population: Population) -> RoundState:
        checks.float_tree("params", params)
        server_state, client_state = server.init(params), client.init(params)
        message, examples = server.broadcast(server_state), population.examples(jnp.int32(0))
        output = jax.eval_shape(train, message, examples, client_state, key)
        _check_output(output)
        update = optax.tree.zeros_like(output.update)
        return RoundState(
            server=server_state,
            clients=replicate(client_state, population.num_states),
            uplink=replicate(uplink.init(update), population.num_states),
            received=replicate(downlink.client_init(), population.num_states),
            downlink=downlink.init(message),
            aggregator=aggregator.init(update),
            key=key,
            round=jnp.int32(0),
        )

    def one_client(shared: tuple, slot: tuple, active: jax.Array) -> tuple[PyTree, PyTree]:
        message, population, aggregator_state, round_key = shared
        client_id, is_known, client_state, uplink_state, bits_down = slot
        key_of = partial(derive, round_key, client_id)
        examples = population.examples(client_id)
        examples = examples._replace(size=jnp.where(active & is_known, examples.size, 0))
        output = train(unbundle(message), examples, client_state, key_of(ClientStream.TRAINING))
        received, memory, bits = uplink.apply(output.update, uplink_state, key_of(ClientStream.UPLINK))
        contribution = bundle(aggregator.contribution(received, output.weight, aggregator_state))
        states = (client.settle(output.state, received), memory)
        counts, keeps = is_known & is_finite((bundle(received), contribution)), is_finite((output.weight, states))
        counts &= keeps | (uplink.accountant is not None)  # to leave out a client's noise would tell of its data

        record = RoundRecord(
            metrics={name: zero_unless(counts & is_finite(mean), mean) for name, mean in output.metrics.items()},
            bits_up=Count.of(_payload_bits(bits, output.update)),
            bits_down=bits_down,
            clients=jnp.int32(1),
            rejected=1 - counts.astype(jnp.int32),
        )
        contribution = zero_unless(counts, contribution)
        summed, stacked = (None, contribution) if aggregator.stacked else (contribution, None)
        return (summed, record), (stacked, counts, (states, counts & keeps))

    def round_(
        state: RoundState, cohort: Cohort, population: Population, plan: Plan | None = None
    ) -> tuple[RoundState, RoundRecord]:
        checks.integer("the number of clients of a round", len(cohort.ids), at_most=MOST_TERMS)
        message, downlink_state, bits = downlink.apply(
            server.broadcast(state.server), state.downlink, derive(state.key, RunStream.DOWNLINK, state.round)
        )
        plan = plan or choose_plan(message, len(cohort.ids))
        round_key = derive(state.key, RunStream.CLIENTS, state.round)
        shared = (bundle(message), population, state.aggregator, round_key)
        state_rows = population.state_row(cohort.ids)
        client_states, uplink_states, received = gather((state.clients, state.uplink, state.received), state_rows)

        receive = jax.vmap(downlink.receive, (None, 0, None), axis_size=len(cohort.ids))
        bits_down, received = receive(_payload_bits(bits, message), received, downlink_state)
        known = (cohort.ids >= 0) & (cohort.ids < population.num_clients)
        slots = (cohort.ids, known, client_states, uplink_states, bits_down)
        cost = jnp.where(cohort.present & known, population.size(cohort.ids), 0)
        if aggregator.stacked:
            _check_stack_fits(one_client, shared, slots, plan)
        (total, record), (rows, counts, kept) = map_clients(one_client, shared, slots, cohort.present, plan, cost)

        total = Stacked(unbundle(rows), counts) if aggregator.stacked else unbundle(total)
        server_key = derive(state.key, RunStream.SERVER, state.round)
        aggregate, aggregator_state = aggregator.finish(total, state.aggregator, server_key)
        clients, memories = scatter((state.clients, state.uplink), state_rows, *kept)
        return RoundState(
            server=server.update(state.server, aggregate),
            clients=clients,
            uplink=memories,
            received=scatter(state.received, state_rows, received, cohort.present & known),
            downlink=downlink_state,
            aggregator=aggregator_state,
            key=state.key,
            round=state.round + 1,
        ), record

    accountant, traffic = _accountant(uplink, aggregator), partial(_traffic, client, server, uplink, downlink)
    return FederatedAlgorithm(init, round_, lambda state: server.params(state.server), accountant, traffic)


def _check_parts(client: ClientUpdate, aggregator: Aggregator) -> None:
    for name, part, protocol in (("client", client, ClientUpdate), ("aggregator", aggregator, Aggregator)):
        if not isinstance(part, protocol):
            raise TypeError(f"{name} must be of type {protocol.__name__}, got {part!r}")


def _check_output(output: ClientOutput) -> None:
    """Raises TypeError unless a client's output, or its shapes, is what rounds can work with."""
    if not isinstance(output, ClientOutput) or jnp.shape(output.weight) != ():
        raise TypeError(f"a client's update must return a ClientOutput with a weight [], got {output!r}")
    checks.float_tree("update", output.update)
    means = output.metrics.values() if isinstance(output.metrics, Mapping) else [None]
    if not all(isinstance(mean, Mean) and jnp.shape(mean.total) == jnp.shape(mean.count) == () for mean in means):
        raise TypeError(
            f"a client's metrics must be Means by name, of a total [] and a count [], got {output.metrics!r}"
        )


def _accountant(uplink: UpdateTransform, aggregator: Aggregator) -> Accountant | None:
    if uplink.accountant is not aggregator.accountant_of_uplink:
        raise PrivacyError(
            "the uplink and the aggregator are not the halves of one privacy mechanism, made by one call, so nothing "
            "can be claimed: give both, or take the noise without a claim, as uplink._replace(accountant=None)"
        )
    return uplink.accountant or aggregator.accountant


def _traffic(
    client: ClientUpdate,
    server: ServerUpdate,
    uplink: UpdateTransform,
    downlink: Downlink,
    params: PyTree,
    population: Population,
) -> Traffic:
    """Counts the bits of payloads really made: of a random update, and of two broadcasts of the same model."""
    key = jax.random.key(0)
    message, examples = server.broadcast(server.init(params)), population.examples(jnp.int32(0))
    update = jax.eval_shape(client.update, message, examples, client.init(params), key).update
    update = optax.tree.random_like(key, update)
    up = _payload_bits(uplink.apply(update, uplink.init(optax.tree.zeros_like(update)), key)[2], update)

    down, state, memory = [], downlink.init(message), downlink.client_init()
    for round_key in jax.random.split(key):
        received, state, bits = downlink.apply(message, state, round_key)
        count, memory = downlink.receive(_payload_bits(bits, received), memory, state)
        down.append(int(count.value()))
    return Traffic(int(up), *down)


def _payload_bits(bits: Any, sent: PyTree) -> Any:
    return size_in_bits(sent) if bits is None else bits


def _check_stack_fits(one_client: ClientFn, shared: PyTree, slots: PyTree, plan: Plan) -> None:
    """Says, while tracing, how much memory the contributions of all clients side by side will take."""
    count = jax.tree.leaves(slots)[0].shape[0]
    one = jax.eval_shape(one_client, shared, jax.tree.map(lambda leaf: leaf[0], slots), jnp.bool_(True))[1][0]
    needed, free = copies_in_one_memory(plan.devices) * count * size_in_bits(one) // 8, available_bytes()
    words = f"stacking the contributions of {count} clients takes {in_words(needed)}"
    _log.info(words)
    if free is not None and needed > free:
        raise MemoryError(
            f"{words}, and {in_words(free)} are free: draw a smaller cohort, or use an aggregator that sums"
        )
