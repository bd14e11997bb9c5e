"""Rounds compiled: one program for a run, with sampling and evaluation inside."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_edge.core.keys import RunStream, derive
from fedjax_edge.core.plan import Plan
from fedjax_edge.core.protocols import FederatedAlgorithm, LossFn, Mean, Population, PyTree, RoundRecord, Sampler
from fedjax_edge.simulation.evaluation import measure

LONGEST_SEGMENT = 64  # rounds whose reports one call can hold


class Report(NamedTuple):
    """What one round leads to."""

    record: RoundRecord
    evaluated: dict[str, Mean]  # zeros in a round that is not evaluated


class Schedule(NamedTuple):
    """Which rounds a segment runs and which of them it evaluates; traced, so that one compilation serves them all."""

    start: jax.Array  # int32 []
    stop: jax.Array  # int32 []; at most `LONGEST_SEGMENT` after `start`
    rounds: jax.Array  # int32 []; of the whole run, the last of which is evaluated
    eval_every: jax.Array  # int32 []


@partial(jax.jit, static_argnames=("algorithm", "sampler", "plan", "loss_fn", "eval_batch_size"), donate_argnums=0)
def run_segment(
    state: PyTree,
    schedule: Schedule,
    population: Population,
    columns: PyTree,
    key: jax.Array,
    *,
    algorithm: FederatedAlgorithm,
    sampler: Sampler,
    plan: Plan,
    loss_fn: LossFn | None,
    eval_batch_size: int,
) -> tuple[PyTree, Report]:
    """Runs the rounds of a segment and returns the state, which is donated, and their reports, [LONGEST_SEGMENT]."""

    def one_round(number: jax.Array, state: PyTree) -> tuple[PyTree, Report]:
        cohort = sampler.sample(derive(key, RunStream.COHORT, number), number)
        state, record = algorithm.round(state, cohort, population, plan)

        def evaluate() -> dict[str, Mean]:
            return measure(algorithm.params(state), columns, loss_fn, eval_batch_size, plan)

        def skip() -> dict[str, Mean]:
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(evaluate))

        is_due = is_evaluated(number + 1, schedule.rounds, schedule.eval_every)
        return state, Report(record, jax.lax.cond(is_due, evaluate, skip))

    def step(number: jax.Array, carry: tuple[PyTree, Report]) -> tuple[PyTree, Report]:
        state, reports = carry
        state, report = one_round(number, state)
        return state, jax.tree.map(lambda rows, row: rows.at[number - schedule.start].set(row), reports, report)

    report = jax.eval_shape(one_round, schedule.start, state)[1]
    reports = jax.tree.map(lambda leaf: jnp.zeros((LONGEST_SEGMENT, *leaf.shape), leaf.dtype), report)
    return jax.lax.fori_loop(schedule.start, schedule.stop, step, (state, reports))


def is_evaluated(number: Any, rounds: Any, eval_every: Any) -> Any:
    """Returns whether the model is evaluated after so many rounds; of numbers, or of arrays."""
    return (number % eval_every == 0) | (number == rounds)
