"""Audits of what is really run: canary clients with known coins, and the epsilon that their traces prove."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from fedjax_edge.core import checks
from fedjax_edge.core.cohort import draw
from fedjax_edge.core.plan import Plan, choose_plan
from fedjax_edge.core.protocols import (
    Aggregator,
    ClientOutput,
    ClientUpdate,
    Cohort,
    Examples,
    FederatedAlgorithm,
    FullParticipation,
    Population,
    PrivacyClaim,
    PrivacyError,
    PyTree,
    Sampler,
)
from fedjax_edge.core.round import federated
from fedjax_edge.privacy.accounting import REPLACE_EXAMPLE, check_delta
from fedjax_edge.privacy.audit_bounds import LowerBound, audit_estimate, audit_scores, check_probabilities

Insert = Callable[[ClientUpdate], ClientUpdate]


class Audit(NamedTuple):
    """What an audit found. Only `lower_bound` is a proof, and only against a claim, never for one."""

    lower_bound: LowerBound  # with `confidence` the epsilon at `delta` is not below `lower_bound.epsilon`
    estimate: float  # what epsilon it looks like, without confidence; NaN with fewer than two canaries in or out
    claim: PrivacyClaim | None  # what the mechanism itself claims; None if it claims nothing
    delta: float
    confidence: float
    scores: np.ndarray  # float64 [runs, canaries]: cosine of each canary and what was observed
    included: np.ndarray  # bool [runs, canaries]: the coins

    @property
    def refutes_claim(self) -> bool:
        """Whether the claimed epsilon is below the lower bound; of a correct mechanism at most a rare accident."""
        return self.claim is not None and self.lower_bound.epsilon > self.claim.epsilon


def audit_algorithm(
    make: Callable[[Insert], FederatedAlgorithm],
    params: PyTree,
    population: Population,
    *,
    sampler: Sampler,
    rounds: int,
    delta: float,
    key: jax.Array,
    canaries: int = 1000,
    runs: int = 20,
    norm: float = 1e3,
    final_only: bool = False,
    confidence: float = 0.95,
    plan: Plan | None = None,
) -> Audit:
    """Runs an algorithm with canary clients and says what epsilon their traces prove.

    A canary is a client more, with ids from `population.num_clients` on, that trains nothing: it sends a vector of
    length `norm` in a random direction, and all canaries' directions are orthogonal (random and nearly so in Andrew et
    al. 2023, arXiv:2302.03098). A fair coin of its own says whether it is in the data at all; if not, it sends zeros
    with weight zero whenever it is drawn. Its score is the cosine of its direction and what was observed, and the
    coins are guessed from the scores (Steinke, Nasr and Jagielski 2023, arXiv:2305.08846). Independent runs pool their
    canaries: a coin matters in its own run only, so that together they are one run with more canaries.

    As a canary that is left out sends zeros, what is proven is about a client whose contributions become zero, and a
    claim for adding or removing one covers that only where a silent client adds nothing. For `adaptive_clip_mean` it
    does not: a silent client is counted as unclipped, so that a coin moves the count by 1, where a client may by 1/2.

    The observer sees the model after every round, and canaries change sign from round to round: it adds the changes of
    the model with the same signs. Of independent noise that is as good as a plain sum; noise that comes back (a reused
    key) cancels, as does what honest clients send in every round. With `final_only` signs stay, and the observer sees
    the first and the last model.

    | bug                                          | what shows it                                                  |
    |----------------------------------------------|----------------------------------------------------------------|
    | too little noise, or an accountant's mistake | scores lie further apart than claimed; needs thousands of them |
    | updates or weights that are not clipped      | a canary counts `norm` times as much as it may                 |
    | a small leaf that is not clipped             | likewise, with few canaries and many runs: more drown there    |
    | the same noise in every round                | it cancels, over an even number of rounds                      |
    | one client of many treated specially         | nothing: one guess of thousands proves nothing                 |

    Args:
      make: `make(insert)` returns the algorithm, with `insert(client)` in the place of its client update:
        `lambda insert: federated(insert(local_sgd(...)), server, aggregator, uplink)`. Its updates must have the form
        of `params`. It is called while tracing, and by itself for its accountant.
      params: where each run starts, at least as many numbers as canaries.
      population: the honest clients.
      sampler: draws from `population.num_clients + canaries` clients, as claimed.
      rounds: of each run; even, for reused keys to cancel.
      delta: of the claim, above 0; well below 1 / (canaries * runs).
      key: all randomness of the audit comes from it.
      canaries, runs: how many in a run, and runs. Canaries times parameters numbers are held in memory.
      norm: length of a canary's update and its weight; well above what the mechanism should let through.
      final_only: whether only the first and the last model are seen.
      confidence: of the lower bound. A correct mechanism is wrongly refuted with probability at most `1 - confidence`.
      plan: how the executor spreads clients.

    Returns:
      An `Audit`. Sampling and several rounds make a bound looser: it is far below the true epsilon for Poisson cohorts.

    Raises:
      ValueError: for an argument out of range, more canaries than parameters, a sampler of another population, or a
        claim about single examples, which canaries that are whole clients cannot test.
      TypeError: if updates have another form than `params`.
    """
    for name, count in (("rounds", rounds), ("canaries", canaries), ("runs", runs)):
        checks.integer(name, count)
    checks.integer("canaries * runs", canaries * runs, at_least=2)
    checks.positive("norm", norm)
    check_delta(delta)
    check_probabilities(delta, confidence)
    honest = population.num_clients
    flat, unravel = ravel_pytree(params)
    _check_numbers(sampler, honest, canaries, flat.size)
    claim = _claim(make(lambda client: client), sampler, rounds, delta)
    everyone = _WithCanaries(population, canaries)
    signs = np.ones(rounds, np.float32) if final_only else np.resize(np.float32([1, -1]), rounds)

    def one_run(run: tuple, shared: tuple) -> jax.Array:
        run_key, included = run
        directions, params, everyone = shared
        vectors = jnp.float32(norm) * directions * included[:, None].astype(jnp.float32)
        start = make(lambda client: client).init(params, run_key, everyone)

        def one_round(state: PyTree, step: tuple) -> tuple[PyTree, jax.Array]:
            number, sign = step
            insert = partial(_with_canaries, honest=honest, vectors=sign * vectors, weight=norm, unravel=unravel)
            algorithm = make(insert)
            cohort = draw(sampler, run_key, number)
            before = algorithm.params(state)
            state, _ = algorithm.round(state, cohort, everyone, plan or choose_plan(before, sampler.width))
            change = ravel_pytree(optax.tree.sub(algorithm.params(state), before))[0]
            return state, sign * change.astype(jnp.float32)

        steps = jnp.arange(rounds, dtype=jnp.int32), jnp.asarray(signs)
        seen = jax.lax.scan(one_round, start, steps)[1].sum(0)
        length = jnp.linalg.norm(seen)
        return directions @ seen / jnp.where(length > 0, length, 1)

    direction_key, coin_key, *run_keys = jax.random.split(key, runs + 2)
    included = jax.random.bernoulli(coin_key, 0.5, (runs, canaries))
    directions = jnp.linalg.qr(jax.random.normal(direction_key, (flat.size, canaries)))[0].T
    every_run = jax.jit(lambda each, *shared: jax.lax.map(lambda run: one_run(run, shared), each))
    scores = np.asarray(every_run((jnp.stack(run_keys), included), directions, params, everyone), np.float64)
    coins = np.asarray(included)
    lower_bound = audit_scores(scores.ravel(), coins.ravel(), delta, confidence)
    has_both = min(coins.sum(), (~coins).sum()) >= 2
    estimate = audit_estimate(scores.ravel(), coins.ravel(), delta) if has_both else math.nan
    return Audit(lower_bound, estimate, claim, delta, confidence, scores, coins)


def audit_aggregator(
    aggregator: Aggregator,
    update: PyTree,
    *,
    delta: float,
    key: jax.Array,
    rounds: int = 2,
    sampler: Sampler | None = None,
    canaries: int = 1000,
    runs: int = 20,
    norm: float = 1e3,
    confidence: float = 0.95,
) -> Audit:
    """Audits an aggregator alone: canaries are its only clients, and what is observed is the aggregate of each round.

    `audit_algorithm` says how, and what its arguments mean.

    Args:
      aggregator: the component; its aggregate must have the form of an update.
      update: pytree of floats with at least as many numbers as canaries; only its form matters.
      sampler: of `canaries` clients; everyone in every round if None, where an audit is sharpest.
      delta, key, rounds, canaries, runs, norm, confidence: see there.

    Returns:
      An `Audit`.

    Raises:
      ValueError, TypeError: see there.

    Example:
      >>> from fedjax_edge.privacy.gaussian_mean import gaussian_mean
      >>> aggregator = gaussian_mean(clip_norm=1.0, noise_multiplier=3.0, denominator=100)
      >>> settings = dict(delta=1e-5, key=jax.random.key(0), canaries=200, runs=2)
      >>> audit = audit_aggregator(aggregator, jnp.zeros(400), **settings)
      >>> round(audit.claim.epsilon, 2), audit.refutes_claim
      (1.87, False)
      >>> noiseless = aggregator._replace(finish=lambda total, state, key: (total / 100, state))
      >>> audit_aggregator(noiseless, jnp.zeros(400), **settings).refutes_claim
      True
    """
    silent = ClientUpdate(
        init=lambda params: (),
        update=lambda broadcast, examples, state, key: ClientOutput(
            optax.tree.zeros_like(broadcast), jnp.float32(0), state, {}
        ),
    )
    return audit_algorithm(
        lambda insert: federated(insert(silent), optax.sgd(1.0), aggregator),
        optax.tree.zeros_like(update),
        _Nobody(),
        sampler=sampler or _everyone(canaries),
        rounds=rounds,
        delta=delta,
        key=key,
        canaries=canaries,
        runs=runs,
        norm=norm,
        confidence=confidence,
    )


def _with_canaries(
    client: ClientUpdate, *, honest: int, vectors: jax.Array, weight: float, unravel: Callable
) -> ClientUpdate:
    """The client update in which clients from id `honest` on send rows of `vectors`, [canaries, parameters]."""

    def update(broadcast: PyTree, examples: Examples, state: PyTree, key: jax.Array) -> ClientOutput:
        output = client.update(broadcast, examples, state, key)
        row = examples.client - honest
        canary = vectors[jnp.clip(row, 0, len(vectors) - 1)]
        sent = unravel(canary.astype(ravel_pytree(output.update)[0].dtype))
        if jax.tree.structure(sent) != jax.tree.structure(output.update):
            raise TypeError(
                "an audit needs updates of the form of the parameters, got "
                f"{jax.tree.structure(output.update)} for {jax.tree.structure(sent)}"
            )
        heavy = jnp.where(canary.any(), jnp.float32(weight), jnp.float32(0))
        return output._replace(
            update=jax.tree.map(lambda c, u: jnp.where(row >= 0, c, u), sent, output.update),
            weight=jnp.where(row >= 0, heavy, output.weight),
        )

    return client._replace(update=update)


@partial(jax.tree_util.register_dataclass, data_fields=["honest"], meta_fields=["canaries"])
@dataclass(frozen=True)
class _WithCanaries:
    """A population and canaries after it, which hold no examples."""

    honest: Population
    canaries: int

    @property
    def num_clients(self) -> int:
        return self.honest.num_clients + self.canaries

    @property
    def num_states(self) -> int:
        return self.num_clients

    def state_row(self, client: jax.Array) -> jax.Array:
        return client

    def size(self, client: jax.Array) -> jax.Array:
        return jnp.where(client < self.honest.num_clients, self.honest.size(self._within(client)), 0)

    def examples(self, client: jax.Array) -> Examples:
        return self.honest.examples(self._within(client))._replace(size=self.size(client), client=client)

    def _within(self, client: jax.Array) -> jax.Array:
        return jnp.minimum(client, max(self.honest.num_clients - 1, 0))


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Nobody:
    """A population without clients."""

    num_clients: int = 0

    def size(self, client: jax.Array) -> jax.Array:
        return jnp.zeros_like(client)

    def examples(self, client: jax.Array) -> Examples:
        return Examples((), client, client, client)


def _everyone(num_clients: int) -> Sampler:
    checks.integer("canaries", num_clients)
    cohort = Cohort(np.arange(num_clients, dtype=np.int32), np.ones(num_clients, bool))
    sampling = FullParticipation(num_clients)
    return Sampler(
        lambda key, number: jax.tree.map(jnp.asarray, cohort), num_clients, num_clients, num_clients, sampling
    )


def _check_numbers(sampler: Sampler, honest: int, canaries: int, numbers: int) -> None:
    if canaries > numbers:
        raise ValueError(f"{canaries} orthogonal canaries need as many parameters, got {numbers}")
    if sampler.num_clients != honest + canaries:
        raise ValueError(
            f"sampler must draw from {honest} clients and {canaries} canaries, got one of {sampler.num_clients}"
        )


def _claim(algorithm: FederatedAlgorithm, sampler: Sampler, rounds: int, delta: float) -> PrivacyClaim | None:
    try:
        claim = algorithm.accountant and algorithm.accountant(sampler.sampling, rounds, delta)
    except PrivacyError:
        return None
    if claim and claim.relation == REPLACE_EXAMPLE:
        raise ValueError(
            f"the claim is about neighbours that {claim.relation}, got an audit whose canaries are whole clients: it "
            "can test claims about clients only"
        )
    return claim
