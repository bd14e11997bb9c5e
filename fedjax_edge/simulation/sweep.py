"""`sweep`: one run for each configuration and seed, mapped over like clients, compiled once for all that can share."""

import itertools
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fedjax_edge.core import checks
from fedjax_edge.core.bundle import Bundle, unbundle
from fedjax_edge.core.cohort import check_sampler
from fedjax_edge.core.executor import map_clients, on_all_devices
from fedjax_edge.core.hosts import agreed
from fedjax_edge.core.plan import Plan, check_plan, choose_plan
from fedjax_edge.core.protocols import Population, PrivacyClaim, PyTree, Sampler
from fedjax_edge.core.round import RoundState
from fedjax_edge.core.trees import replicate
from fedjax_edge.data import HostedDataset
from fedjax_edge.simulation.checkpoint import in_json
from fedjax_edge.simulation.evaluation import NO_EVALUATION, Evaluation
from fedjax_edge.simulation.history import History
from fedjax_edge.simulation.hosted import PER_CLIENT
from fedjax_edge.simulation.identity import describe_population, describe_run
from fedjax_edge.simulation.interrupt import deferred_interrupt
from fedjax_edge.simulation.recipe import MakeAlgorithm, Setup, check_hashable, split_hyperparameters
from fedjax_edge.simulation.report import check_memories, claim_of, epsilons_of, to_history
from fedjax_edge.simulation.segment import (
    Pace,
    Program,
    Report,
    Schedule,
    Variant,
    initial_state,
    next_length,
    run_rounds,
)
from fedjax_edge.simulation.sweep_result import SweepResult, Trial
from fedjax_edge.simulation.trial_store import find_trial, save_trial

CPU_TRIALS = 16  # vmapped at most, of a linear model
COLUMNS = ("seed", "round", "bits_up", "bits_down", "clients", "rejected", "seconds", "epsilon")  # of every table


class _Job(NamedTuple):
    """One trial before it is run."""

    hyperparameters: dict[str, Any]
    seed: int
    setup: Setup
    program: Program
    variant: Variant
    claim: PrivacyClaim | None


def sweep(
    make_algorithm: MakeAlgorithm,
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    params: PyTree | Callable[[jax.Array], PyTree],
    population: Population,
    *,
    sampler: Sampler,
    rounds: int,
    seeds: Sequence[int] = (0,),
    evaluation: Evaluation = NO_EVALUATION,
    eval_every: int = 1,
    delta: float | None = None,
    accounted_only: bool = False,
    static: Collection[str] = (),
    plan: Plan | None = None,
    directory: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> SweepResult:
    """Runs every configuration of a grid with every seed, and returns their histories.

    Trials are mapped over like clients: vmapped, one after another, or spread over devices, each with all its rounds
    compiled. Hyperparameters that are floats are traced, so that one compilation serves all their values; for each
    combination of the others (a number of bits, a cohort size, a model's width) there is one more. A trial's history
    is that of `run` with the same hyperparameters and `jax.random.key(seed)`.

    Args:
      make_algorithm: `make_algorithm(**hyperparameters)` returns an algorithm; or a `Setup` of an algorithm, and
        parameters, a sampler or an evaluation in the place of those below.
      grid: the values of each hyperparameter, of which all combinations are run; or a list of configurations.
      params: where to start; or a function such as `model.init`, which is given a key of the trial's seed.
      population: the clients' data.
      sampler, rounds, evaluation, eval_every, delta, accounted_only: as in `run`.
      seeds: one trial each, whose key is `jax.random.key(seed)`.
      static: names of hyperparameters that are floats and cannot be traced, such as a dropout rate.
      plan: how many trials are vmapped, and on how many devices; chosen by default. The clients of a trial then have
        one device.
      directory: a folder for finished trials. Those found there (of the same algorithm, hyperparameters, seed, start,
        data, sampling, evaluation, rounds and `config`) are not run again, so that an interrupted sweep resumes. Of an
        algorithm's functions the names and what they close over are compared: not globals, and not what they do.
      config: whatever else describes the trials, as JSON has it (without NaN and infinity).
      progress: whether to show a progress bar.

    Raises:
      ValueError: for an empty grid, values or seeds that are not listed, a configuration that comes twice, a
        hyperparameter named as a column of the table, numbers out of range, or, with `directory`, two trials that are
        described alike.
      TypeError: for a hyperparameter that is neither a float nor hashable, or that cannot be traced; for a `config`
        that JSON does not have; or for a population that stays on the host.
      PrivacyError: if `delta` asks for a guarantee that cannot be given.

    >>> import fedjax_edge as fe, optax
    >>> data = fe.data.from_client_arrays([{"x": np.full((4, 1), 1.0, np.float32)}] * 6)
    >>> def squared_distance(params, batch, key):
    ...     return jnp.square(params - batch["x"][:, 0])
    >>> def make(learning_rate):
    ...     return fe.algorithms.fedavg(squared_distance, optax.sgd(learning_rate), batch_size=2, epochs=1)
    >>> result = sweep(make, {"learning_rate": [0.01, 0.1]}, jnp.float32(0), data, sampler=fe.data.everyone(6),
    ...                rounds=3, evaluation=fe.evaluation(squared_distance, data.columns), progress=False)
    >>> result.best("test_loss", largest_is_best=False).hyperparameters
    {'learning_rate': 0.1}
    """
    check_plan(plan)
    if isinstance(population, HostedDataset):
        raise TypeError("a sweep needs its population on the devices; run one that stays on the host with fe.run")
    pace, default = Pace.of(rounds, eval_every), Setup(None, params, sampler, evaluation)
    jobs = [
        _job(make_algorithm, hyperparameters, seed, default, static, population.num_clients, pace, delta)
        for hyperparameters in _configurations(grid, seeds)
        for seed in seeds
    ]
    for job in {job.program: job for job in jobs}.values():
        check_memories(job.claim, job.setup.algorithm, job.setup.params, population)
    directory = None if directory is None else Path(directory)
    config = in_json(config)
    descriptions: list[dict[str, Any]] = [{} for _ in jobs]
    if directory is not None:
        common = {
            "rounds": pace.rounds,
            **describe_population(population),
            **{f"config {name}": value for name, value in config.items()},
        }
        descriptions = [common | _describe(job, pace, delta, accounted_only) for job in jobs]
        _check_distinct(descriptions, jobs)
    found = {i: history for i, one in enumerate(descriptions) if (history := find_trial(directory, one)) is not None}
    hidden = not progress or jax.process_index() > 0
    with deferred_interrupt() as interrupted, tqdm(total=len(jobs) * rounds, unit="round", disable=hidden) as bar:
        bar.update(len(found) * rounds)

        def report(job: _Job, numbers: np.ndarray, reports: Report, seconds: float) -> History:
            bar.update(len(numbers))
            epsilons = epsilons_of(job.setup.algorithm, job.setup.sampler, numbers, pace, delta)
            return to_history(numbers, reports, epsilons, seconds, accounted_only)

        left = [i for i in range(len(jobs)) if i not in found]
        for batch, over_trials, one_seed in _batches(left, jobs, population, plan):
            together = [jobs[i] for i in batch]
            histories = _run_together(together, population, pace, over_trials, one_seed, report, interrupted)
            if histories is None:
                break
            for i, history in zip(batch, histories, strict=True):
                _check_names(jobs[i].hyperparameters, history)
                save_trial(directory, descriptions[i], history)
                found[i] = history
    trials = tuple(Trial(jobs[i].hyperparameters, jobs[i].seed, found[i]) for i in sorted(found))
    return SweepResult(trials, interrupted=len(found) < len(jobs))


def _configurations(grid: Mapping | Sequence, seeds: Sequence[int]) -> list[dict[str, Any]]:
    checks.listed("seeds", seeds)
    for name, values in grid.items() if isinstance(grid, Mapping) else ():
        checks.listed(f"grid[{name!r}]", values)
    configurations = [
        {name: _plain(value) for name, value in configuration.items()}
        for configuration in (
            (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))
            if isinstance(grid, Mapping)
            else grid
        )
    ]
    if not configurations or not len(seeds):
        raise ValueError(f"a sweep needs configurations and seeds, got {grid!r} and {seeds!r}")
    for name, value in itertools.chain.from_iterable(one.items() for one in configurations):
        check_hashable(name, value)
    if any(one in configurations[:i] for i, one in enumerate(configurations)):
        raise ValueError(f"a configuration comes twice in {grid!r}")
    for configuration in configurations:
        _check_names(configuration, COLUMNS)
    for seed in seeds:
        checks.integer("seed", seed, at_least=0, at_most=2**32 - 1)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"a seed comes twice in {seeds!r}")
    return configurations


def _check_names(hyperparameters: Collection[str], columns: Collection[str]) -> None:
    for name in set(hyperparameters) & set(columns):
        raise ValueError(f"a hyperparameter must not be named as one of the table's columns {[*columns]}, got {name!r}")


def _plain(value: Any) -> Any:
    """Returns a number of NumPy or JAX as one of Python, which can be hashed, compared and described."""
    is_number = isinstance(value, np.generic | np.ndarray | jax.Array) and jnp.issubdtype(value.dtype, jnp.number)
    return value.item() if is_number and value.ndim == 0 else value


def _job(
    make: MakeAlgorithm,
    hyperparameters: dict[str, Any],
    seed: int,
    default: Setup,
    static: Collection[str],
    num_clients: int,
    pace: Pace,
    delta: float | None,
) -> _Job:
    recipe, traced = split_hyperparameters(make, hyperparameters, static)
    key = jax.random.key(seed)
    setup = recipe.concrete(hyperparameters, default, key)
    check_sampler(setup.sampler, num_clients)
    claim = claim_of(setup.algorithm, setup.sampler, pace.rounds, delta)  # refused before training, if it is
    program = Program.of(recipe, setup, default, choose_plan(setup.params, setup.sampler.width, devices=1))
    return _Job(hyperparameters, seed, setup, program, Variant(key, traced), claim)


def _describe(job: _Job, pace: Pace, delta: float | None, accounted_only: bool) -> dict[str, Any]:
    """Returns what a finished trial must have in common with one for it not to be run again, but for `common`."""
    return describe_run(
        job.setup, job.variant.key, job.hyperparameters, pace.eval_every, delta, job.claim, accounted_only
    )


def _check_distinct(descriptions: list[dict[str, Any]], jobs: list[_Job]) -> None:
    """Raises ValueError if two trials are described alike: one would be taken for the other."""
    seen: dict[str, int] = {}
    for i, description in enumerate(descriptions):
        first = seen.setdefault(json.dumps(description, sort_keys=True), i)
        if first != i:
            raise ValueError(
                f"hyperparameters {jobs[first].hyperparameters} and {jobs[i].hyperparameters} are described alike, so "
                "that directory cannot tell their trials apart: give functions names of their own"
            )


def _batches(
    indices: list[int], jobs: list[_Job], population: Population, plan: Plan | None
) -> Iterator[tuple[list[int], Plan, bool]]:
    """Yields the jobs that run side by side, with their plan, and whether all batches like them have one seed each."""
    for group in _groups(indices, jobs):
        over_trials = plan or _plan_over_trials(jobs[group[0]], len(group), population)
        at_once = over_trials.width * over_trials.devices
        batches = [group[i : i + at_once] for i in range(0, len(group), at_once)]
        one_seed = all(len({jobs[i].seed for i in batch}) == 1 for batch in batches)
        yield from ((batch, over_trials, one_seed) for batch in batches)


def _groups(indices: list[int], jobs: list[_Job]) -> list[list[int]]:
    """Returns the jobs that share what is compiled and what is evaluated on, by seed."""
    groups: dict[Any, list[int]] = {}
    for i in sorted(indices, key=lambda i: jobs[i].seed):
        columns = tuple(id(leaf) for leaf in jax.tree.leaves(jobs[i].setup.evaluation.columns))
        groups.setdefault((jobs[i].program, tuple(jobs[i].variant.hyperparameters), columns), []).append(i)
    return list(groups.values())


def _plan_over_trials(job: _Job, count: int, population: Population) -> Plan:
    """Returns how many trials go side by side.

    On a CPU they are spread over the cores like clients, but more of them vmapped: they share their batches. On an
    accelerator each holds a model for all clients that are vmapped and the states that clients keep between rounds, and
    as many trials as fit are.
    """
    if jax.default_backend() == "cpu":
        return choose_plan(job.setup.params, count, cpu_max_width=CPU_TRIALS)
    models = jax.eval_shape(partial(replicate, copies=job.program.plan.width), job.setup.params)
    state = jax.eval_shape(partial(initial_state, program=job.program), job.setup.params, job.variant, population)
    kept = [getattr(state, part) for part in PER_CLIENT] if isinstance(state, RoundState) else []
    return choose_plan((models, kept), count)


def _run_together(
    jobs: list[_Job],
    population: Population,
    pace: Pace,
    plan: Plan,
    one_seed: bool,
    report: Callable[[_Job, np.ndarray, Report, float], History],
    interrupted: Callable[[], bool],
) -> list[History] | None:
    """Returns the histories of trials that run side by side, or None if Ctrl-C came."""
    first = jobs[0]
    padded = jobs + [first] * (plan.width * plan.devices - len(jobs))
    variants = _packed([job.variant for job in padded], plan)
    params = _packed([job.setup.params for job in padded], plan)
    states = initial_states(params, variants, population, program=first.program)
    population, columns, variants, states = on_all_devices(
        (population, first.setup.evaluation.columns, variants, states), plan
    )
    active = np.arange(plan.devices) * plan.width < len(jobs)
    vmapped_on_cpu = plan.width > 1 and jax.default_backend() == "cpu"  # then the clients of each go one by one
    program = first.program._replace(plan=Plan()) if vmapped_on_cpu else first.program
    histories, done, length = [[] for _ in jobs], 0, 1
    while done < pace.rounds and (length := agreed(0 if interrupted() else length)):
        started = time.perf_counter()
        stop = min(done + length, pace.rounds)
        schedule = pace.schedule(done, stop)
        states, reports = sweep_segment(
            states, schedule, active, population, columns, variants, program=program, plan=plan, one_seed=one_seed
        )
        reports = jax.tree.map(lambda leaf: leaf.reshape(len(padded), *leaf.shape[2:]), jax.device_get(reports))
        reports = unbundle(reports)
        seconds = (time.perf_counter() - started) / (stop - done)
        numbers = np.arange(done, stop) + 1
        for i, job in enumerate(jobs):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], reports)
            histories[i].append(report(job, numbers, own, seconds / len(jobs)))
        done, length = stop, next_length((time.perf_counter() - started) / (stop - done))
    return [History.joined(parts) for parts in histories] if done == pace.rounds else None


def _packed(trees: list[PyTree], plan: Plan) -> PyTree:
    """Returns trees stacked to leaves [devices, width, ...]; all but keys on the host, where nothing is compiled."""

    def pack(*leaves: jax.Array) -> jax.Array:
        stack = jnp.stack if jnp.issubdtype(jnp.result_type(leaves[0]), jax.dtypes.prng_key) else np.stack
        return stack(leaves).reshape(plan.devices, plan.width, *jnp.shape(leaves[0]))

    return jax.tree.map(pack, *trees)


@partial(jax.jit, static_argnames="program")
def initial_states(params: PyTree, variants: Variant, population: Population, *, program: Program) -> PyTree:
    """`initial_state` for packs of trials, leaves [devices, width, ...]."""

    def one(params: PyTree, variant: Variant) -> PyTree:
        return initial_state(params, variant, population, program=program)

    return jax.vmap(jax.vmap(one))(params, variants)


@partial(jax.jit, static_argnames=("program", "plan", "one_seed"), donate_argnums=0)
def sweep_segment(
    states: PyTree,
    schedule: Schedule,
    active: jax.Array,
    population: Population,
    columns: PyTree,
    variants: Variant,
    *,
    program: Program,
    plan: Plan,
    one_seed: bool,
) -> tuple[PyTree, Bundle]:
    """`run_rounds` for packs of trials, leaves [devices, width, ...]; a pack that is not active runs none.

    The trials of a pack are vmapped. With `one_seed` they share their key, and so cohorts and batches: these are drawn
    once, and what all models make of a batch is one product of matrices.
    """

    def one_pack(shared: tuple, pack: tuple, is_active: jax.Array) -> tuple[tuple, tuple]:
        schedule, *data = shared
        schedule = schedule._replace(stop=jnp.where(is_active, schedule.stop, schedule.start))
        states, variants = pack
        state_axes, variant_axes = 0, Variant(key=0, hyperparameters=0)
        if isinstance(states, RoundState):  # all are in the same round
            state_axes = RoundState(**dict.fromkeys(RoundState._fields, 0))._replace(round=None)
            states = states._replace(round=states.round[0])
            if one_seed:
                state_axes, variant_axes = state_axes._replace(key=None), variant_axes._replace(key=None)
                states, variants = (part._replace(key=part.key[0]) for part in (states, variants))

        def one_trial(state: PyTree, variant: Variant) -> tuple[PyTree, Bundle]:
            return run_rounds(state, schedule, *data, variant, program)

        return (), jax.vmap(one_trial, (state_axes, variant_axes), axis_size=plan.width)(states, variants)

    one_each = Plan(width=1, devices=plan.devices)
    return map_clients(one_pack, (schedule, population, columns), (states, variants), active, one_each)[1]
