"""Rounds compiled: one program for a run, with sampling and evaluation inside."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.core import checks
from fedjax_edge.core.bundle import Bundle, bundle, unbundle
from fedjax_edge.core.cohort import draw
from fedjax_edge.core.executor import on_all_devices, on_each_device
from fedjax_edge.core.plan import Plan
from fedjax_edge.core.protocols import LossFn, Mean, Population, PyTree, RoundRecord, Sampler
from fedjax_edge.simulation.evaluation import measure
from fedjax_edge.simulation.recipe import Recipe, Setup, needed_as_numbers

LONGEST_SEGMENT = 512  # rounds whose reports one call can hold
SECONDS_PER_SEGMENT = 0.5  # between two looks at the progress bar and at Ctrl-C


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


class Pace(NamedTuple):
    """How long a run is, and how often it evaluates."""

    rounds: int
    eval_every: int

    @classmethod
    def of(cls, rounds: int, eval_every: int) -> "Pace":
        """Returns the pace of a run; raises ValueError unless both are integers of at least 1."""
        checks.integer("rounds", rounds)
        checks.integer("eval_every", eval_every)
        return cls(int(rounds), int(eval_every))

    def schedule(self, start: int, stop: int) -> Schedule:
        """Returns the schedule of a segment."""
        return Schedule(*(np.int32(number) for number in (start, stop, *self)))


class Variant(NamedTuple):
    """What makes one run of a recipe differ from another."""

    key: jax.Array
    hyperparameters: dict[str, jax.Array]


class Program(NamedTuple):
    """What a run is compiled from: all that is not an array."""

    recipe: Recipe
    sampler: Sampler
    plan: Plan
    loss_fn: LossFn | None  # of the evaluation, unless the recipe makes its own
    eval_batch_size: int

    @classmethod
    def of(cls, recipe: Recipe, setup: Setup, default: Setup, plan: Plan) -> "Program":
        """Returns the program of a setup that `recipe` made, its gaps filled by `default`."""
        evaluation = setup.evaluation
        loss_fn = evaluation.loss_fn if evaluation is default.evaluation else None
        return cls(recipe, setup.sampler, Plan(plan.width, plan.devices), loss_fn, evaluation.batch_size)


Advance = Callable[[PyTree, int, int], tuple[PyTree, Report]]
"""`advance(state, start, stop)`: the state, which is donated, after these rounds, and their reports on the host."""


def run_rounds(
    state: PyTree, schedule: Schedule, population: Population, columns: PyTree, variant: Variant, program: Program
) -> tuple[PyTree, Bundle]:
    """Runs the rounds of a segment and returns the state and their reports, bundled, [LONGEST_SEGMENT, ...]."""
    setup = program.recipe(variant.hyperparameters)
    algorithm = setup.algorithm
    loss_fn = program.loss_fn if setup.evaluation is None else setup.evaluation.loss_fn

    @partial(jax.jit, inline=True)  # so that it is traced once
    def one_round(number: jax.Array, state: PyTree) -> tuple[PyTree, Bundle]:
        cohort = draw(program.sampler, variant.key, number)
        state, record = algorithm.round(state, cohort, population, program.plan)

        def evaluate() -> dict[str, Mean]:
            return measure(algorithm.params(state), columns, loss_fn, program.eval_batch_size, program.plan)

        def skip() -> dict[str, Mean]:
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(evaluate))

        is_due = is_evaluated(number + 1, schedule.rounds, schedule.eval_every)
        return state, bundle(Report(record, jax.lax.cond(is_due, evaluate, skip)))

    def step(number: jax.Array, carry: tuple[PyTree, Bundle]) -> tuple[PyTree, Bundle]:
        state, reports = carry
        state, report = one_round(number, state)
        return state, jax.tree.map(lambda rows, row: rows.at[number - schedule.start].set(row), reports, report)

    with needed_as_numbers(variant.hyperparameters):
        report = jax.eval_shape(one_round, schedule.start, state)[1]
    reports = jax.tree.map(lambda leaf: jnp.zeros((LONGEST_SEGMENT, *leaf.shape), leaf.dtype), report)
    return jax.lax.fori_loop(schedule.start, schedule.stop, step, (state, reports))


@partial(jax.jit, static_argnames="program", donate_argnums=0)
def run_segment(
    state: PyTree, schedule: Schedule, population: Population, columns: PyTree, variant: Variant, *, program: Program
) -> tuple[PyTree, Bundle]:
    """`run_rounds` compiled, the state donated."""
    return run_rounds(state, schedule, population, columns, variant, program)


@partial(jax.jit, static_argnames="program")
def initial_state(params: PyTree, variant: Variant, population: Population, *, program: Program) -> PyTree:
    """Returns the state before the first round, of arrays of its own, since they will be donated."""
    algorithm = program.recipe(variant.hyperparameters).algorithm
    init = on_each_device(algorithm.init, program.plan)
    with needed_as_numbers(variant.hyperparameters):
        state = init(params, variant.key, population)
    return jax.tree.map(_copy, state)


def _copy(leaf: jax.typing.ArrayLike) -> jax.Array:
    """Returns an array of its own, whose dtype is not weak: it would not be after a round, which would compile anew."""
    leaf = jnp.asarray(leaf)
    return jnp.copy(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.array(leaf, leaf.dtype)


@contextmanager
def start_resident(
    params: PyTree,
    population: Population,
    columns: PyTree,
    variant: Variant,
    program: Program,
    pace: Pace,
) -> Iterator[tuple[PyTree, Advance]]:
    """Yields the initial state, and what runs rounds with all clients' data on every device."""
    params, population, columns, variant = on_all_devices((params, population, columns, variant), program.plan)
    state = initial_state(params, variant, population, program=program)

    def advance(state: PyTree, start: int, stop: int) -> tuple[PyTree, Report]:
        schedule = pace.schedule(start, stop)
        state, reports = run_segment(state, schedule, population, columns, variant, program=program)
        return state, unbundle(jax.device_get(reports))

    yield state, advance


def next_length(seconds: float) -> int:
    """Returns how many rounds of so many seconds make the next segment."""
    return min(max(int(SECONDS_PER_SEGMENT / seconds), 1), LONGEST_SEGMENT)


def is_evaluated(number: Any, rounds: Any, eval_every: Any) -> Any:
    """Returns whether the model is evaluated after so many rounds; of numbers, or of arrays."""
    return (number % eval_every == 0) | (number == rounds)
