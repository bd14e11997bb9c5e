"""Rounds of a population on the host: the next cohort's examples are gathered while the present one trains."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import numpy as np

from fedjax_edge.core.bundle import Bundle, unbundle
from fedjax_edge.core.cohort import draw
from fedjax_edge.core.executor import on_all_devices
from fedjax_edge.core.protocols import Cohort, PyTree, Sampler
from fedjax_edge.core.round import RoundState
from fedjax_edge.data import HostedDataset
from fedjax_edge.data.hosted import CohortView, check_no_keys
from fedjax_edge.simulation.segment import (
    Advance,
    Pace,
    Program,
    Report,
    Schedule,
    Variant,
    initial_state,
    run_segment,
)

PER_CLIENT = ("clients", "uplink", "received")  # the fields of a `RoundState` with a row for each client
UNNAMED = ".partial"  # of a state's file, until the first round


@contextmanager
def start_hosted(
    params: PyTree,
    population: HostedDataset,
    columns: PyTree,
    variant: Variant,
    program: Program,
    pace: Pace,
) -> Iterator[tuple[RoundState, Advance]]:
    """Yields the initial state, and what runs rounds on the view of each cohort.

    The clients' states are NumPy arrays [clients, ...], written in place. Those on disk get their names with the first
    round: a run that is refused before leaves no file, and those of another as they are.

    Raises:
      TypeError: for an algorithm that `core.round.federated` did not assemble, or whose clients keep keys.
    """
    key, nobody, views = variant.key, population.view_of_nobody(), None
    params, nobody, columns, variant = on_all_devices((params, nobody, columns, variant), program.plan)
    state = initial_state(params, variant, nobody, program=program)
    if not isinstance(state, RoundState):
        raise TypeError(f"a population on the host needs an algorithm made by fe.federated, got a state {type(state)}")
    kept = {part: getattr(state, part) for part in PER_CLIENT}
    check_no_keys("the state of a client, ", kept)
    kept = _for_all(kept, population)
    state = state._replace(**kept)
    unnamed = [Path(leaf.filename) for leaf in jax.tree.leaves(kept) if isinstance(leaf, np.memmap)]

    def advance(state: RoundState, start: int, stop: int) -> tuple[RoundState, Report]:
        nonlocal views
        if views is None:
            views = cohort_views(population, program, key, start, pace.rounds)
            while unnamed:
                path = unnamed.pop()
                path.replace(path.with_suffix(".npy"))
        reports = []
        for number in range(start, stop):
            schedule = pace.schedule(number, number + 1)
            state, report = _run_on_view(state, schedule, next(views), columns, variant, program)
            reports.append(jax.tree.map(lambda leaf: leaf[0], report))
        return state, unbundle(jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(reports)))

    try:
        yield state, advance
    finally:
        for path in unnamed:
            path.unlink()


def _for_all(states: dict[str, PyTree], population: HostedDataset) -> PyTree:
    """Returns one client's initial states for all clients; zeros take no memory until they are written."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(states)
    named = [("".join(c if c.isalnum() else "_" for c in jax.tree_util.keystr(path)), leaf) for path, leaf in leaves]
    own = f"_{jax.process_index()}" if jax.process_count() > 1 else ""  # the folder may be one for all processes
    return structure.unflatten(
        _kept(np.asarray(leaf)[0], f"{i:03}{name}{own}{UNNAMED}", population) for i, (name, leaf) in enumerate(named)
    )


def _kept(leaf: np.ndarray, name: str, population: HostedDataset) -> np.ndarray:
    shape = (population.num_clients, *leaf.shape)
    if population.state_dir is None or leaf.size == 0:
        kept = np.zeros(shape, leaf.dtype)
    else:
        population.state_dir.mkdir(parents=True, exist_ok=True)
        kept = np.lib.format.open_memmap(population.state_dir / name, mode="w+", dtype=leaf.dtype, shape=shape)
    if leaf.any():
        kept[:] = leaf
    return kept


@partial(jax.jit, static_argnames="sampler")
def _cohort(key: jax.Array, number: jax.Array, *, sampler: Sampler) -> Cohort:
    return draw(sampler, key, number)


def cohort_views(
    population: HostedDataset, program: Program, key: jax.Array, start: int, rounds: int
) -> Iterator[CohortView]:
    """Yields each round's view on all devices; while the caller trains on one, a thread gathers the next."""
    most = population.largest_cohort(program.sampler.width)

    def sample(number: int) -> Cohort:
        return jax.device_get(_cohort(key, np.int32(number), sampler=program.sampler))

    def gather(cohort: Cohort, capacity: int) -> CohortView:
        return on_all_devices(population.view(cohort, capacity, most), program.plan)

    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(gather, sample(start), 1)
        for number in range(start + 1, rounds + 1):
            view = ahead.result()
            if number < rounds:
                ahead = thread.submit(gather, sample(number), jax.tree.leaves(view.columns)[0].shape[0])
            yield view


def _run_on_view(
    state: RoundState, schedule: Schedule, view: CohortView, columns: PyTree, variant: Variant, program: Program
) -> tuple[RoundState, Bundle]:
    """Runs one round; the clients' states go to the devices and come back."""
    kept, ids = [getattr(state, part) for part in PER_CLIENT], np.asarray(view.ids)
    present = ids < view.num_clients
    rows = jax.tree.map(lambda leaf: leaf[np.where(present, ids, 0)], kept)
    rows = on_all_devices(rows, program.plan)
    state = state._replace(**dict(zip(PER_CLIENT, rows, strict=True)))
    state, report = run_segment(state, schedule, view, columns, variant, program=program)
    trained = [getattr(state, part) for part in PER_CLIENT]
    for leaf, new in zip(jax.tree.leaves(kept), jax.tree.leaves(trained), strict=True):
        leaf[ids[present]] = np.asarray(new)[present]
    return state._replace(**dict(zip(PER_CLIENT, kept, strict=True))), report
