"""`describe`: what a run will take, in words and numbers, before it is started."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from fedjax_edge.core import checks
from fedjax_edge.core.cohort import check_sampler
from fedjax_edge.core.memory import in_words
from fedjax_edge.core.plan import Plan, choose_plan
from fedjax_edge.core.protocols import FederatedAlgorithm, Population, PrivacyClaim, PyTree, Sampler, Traffic
from fedjax_edge.core.trees import size_in_bits
from fedjax_edge.data import HostedDataset
from fedjax_edge.simulation.recipe import as_params
from fedjax_edge.simulation.report import check_memories, claim_of


class Description(NamedTuple):
    """What a run will take; printed, it says so in words."""

    parameters: int
    model_bits: int
    num_clients: int
    expected_cohort: float
    widest_cohort: int  # the most clients that a round has room for
    traffic: Traffic  # bits of one client in one round
    rounds: int
    plan: Plan
    claim: PrivacyClaim | None

    @property
    def megabytes_up(self) -> float:
        """What all clients together are expected to send in all rounds."""
        return self.rounds * self.expected_cohort * self.traffic.up / 8e6

    @property
    def megabytes_down(self) -> float:
        """What they are expected to be sent, if all took part in the round before: at least this."""
        return self.rounds * self.expected_cohort * self.traffic.down_next / 8e6

    def __str__(self) -> str:
        up, first, following = (in_words(bits // 8) for bits in self.traffic)
        down, sent_down = first, f"{self.megabytes_down:.4g}"
        if self.traffic.down_first != self.traffic.down_next:
            down, sent_down = f"{first} the first time, {following} in the next round", f"at least {sent_down}"
        privacy = "no privacy mechanism that was asked for a claim"
        if self.claim is not None:
            claim = self.claim
            privacy = f"epsilon {claim.epsilon:.3g} at delta {claim.delta:g}, to {claim.relation} ({claim.accountant})"
        return "\n".join(
            (
                f"model: {self.parameters:,} parameters, {in_words(self.model_bits // 8)}",
                f"cohort: {self.expected_cohort:g} of {self.num_clients:,} clients, at most {self.widest_cohort:,}",
                f"a client sends {up} a round ({self.traffic.up / self.model_bits:.3g} of the model) and gets {down}",
                f"{self.rounds} rounds: {self.megabytes_up:.4g} MB up, {sent_down} MB down",
                f"plan: {self.plan.explain(self.widest_cohort)}",
                f"privacy: {privacy}",
            )
        )


def describe(
    algorithm: FederatedAlgorithm,
    params: PyTree | Callable[[jax.Array], PyTree],
    population: Population | HostedDataset,
    *,
    sampler: Sampler,
    rounds: int,
    delta: float | None = None,
    plan: Plan | None = None,
) -> Description:
    """Returns what a run of these arguments will take: traffic both ways, memory, privacy; it trains nothing.

    The bits are counted on payloads really made: of a random update, and of two broadcasts of the initial model. So
    where the number of bits depends on the data, they are an example.

    Args:
      algorithm: made by `fe.federated`, or by what calls it, such as `algorithms.fedavg(...)`.
      params, population, sampler, rounds, delta, plan: as for `fe.run`.

    Raises:
      TypeError: for an algorithm that does not count its traffic.
      ValueError: for a sampler of another population.
      PrivacyError: if `delta` asks for a guarantee that cannot be given.

    >>> import optax
    >>> import fedjax_edge as fe
    >>> population = fe.data.from_client_arrays([{"x": np.ones((3, 2), np.float32)}] * 10)
    >>> algorithm = fe.algorithms.fedavg(
    ...     lambda params, batch, key: (batch["x"] @ params) ** 2, optax.sgd(0.1), batch_size=1, epochs=1,
    ...     uplink=fe.compression.stochastic_uniform(8),
    ... )
    >>> print(fe.describe(algorithm, np.ones(2, np.float32), population, sampler=fe.data.uniform(10, 4), rounds=5))
    model: 2 parameters, 8 bytes
    cohort: 4 of 10 clients, at most 4
    a client sends 10 bytes a round (1.25 of the model) and gets 8 bytes
    5 rounds: 0.0002 MB up, 0.00016 MB down
    plan: 4 clients = ...
    privacy: no privacy mechanism that was asked for a claim
    """
    checks.integer("rounds", rounds)
    if algorithm.traffic is None:
        raise TypeError("describe needs an algorithm that counts its traffic, as those made by fe.federated do")
    check_sampler(sampler, population.num_clients)
    params = as_params(params, jax.random.key(0))
    seen = population.view_of_nobody() if isinstance(population, HostedDataset) else population
    claim = claim_of(algorithm, sampler, rounds, delta)
    check_memories(claim, algorithm, params, population)
    return Description(
        parameters=sum(np.size(leaf) for leaf in jax.tree.leaves(params)),
        model_bits=size_in_bits(params),
        num_clients=population.num_clients,
        expected_cohort=sampler.expected_size,
        widest_cohort=sampler.width,
        traffic=algorithm.traffic(params, seen),
        rounds=rounds,
        plan=plan or choose_plan(params, sampler.width),
        claim=claim,
    )
