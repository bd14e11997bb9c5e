"""Rounds of a population on the host: the next cohort's examples are gathered while the present one trains."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.core.executor import on_all_devices
from fedjax_edge.core.keys import RunStream, derive
from fedjax_edge.core.protocols import Cohort, Population, PyTree
from fedjax_edge.core.round import RoundState
from fedjax_edge.data import HostedDataset
from fedjax_edge.data.hosted import CohortView
from fedjax_edge.simulation.segment import Advance, Pace, Program, Report, Schedule, Variant, run_segment

PER_CLIENT = ("clients", "uplink", "received")  # the fields of a `RoundState` with a row for each client


def start_hosted(
    init: Callable[[PyTree, jax.Array, Population], PyTree],
    params: PyTree,
    population: HostedDataset,
    columns: PyTree,
    variant: Variant,
    program: Program,
    pace: Pace,
) -> tuple[RoundState, Advance]:
    """Returns the initial state, and what runs rounds on the view of each cohort.

    The clients' states are NumPy arrays [clients, ...], written in place.

    Raises:
      TypeError: for an algorithm that `core.round.federated` did not assemble.
    """
    columns, variant = on_all_devices((columns, variant), program.plan)
    views = None

    def advance(state: RoundState, start: int, stop: int) -> tuple[RoundState, Report]:
        nonlocal views
        views = views or cohort_views(population, program, variant.key, start, pace.rounds)
        reports = []
        for number in range(start, stop):
            schedule = pace.schedule(number, number + 1)
            state, report = _run_on_view(state, schedule, next(views), columns, variant, program)
            reports.append(jax.tree.map(lambda leaf: leaf[0], report))
        return state, jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(reports))

    state = init(params, variant.key, population.view_of_nobody())
    if not isinstance(state, RoundState):
        raise TypeError(f"a population on the host needs an algorithm made by fe.federated, got a state {type(state)}")
    state = jax.tree.map(jnp.copy, on_all_devices(state, program.plan))
    return state._replace(**{part: _for_all(getattr(state, part), part, population) for part in PER_CLIENT}), advance


def _for_all(states: PyTree, part: str, population: HostedDataset) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _kept(leaf[0], part + jax.tree_util.keystr(path), population), states
    )


def _kept(leaf: jax.Array, name: str, population: HostedDataset) -> np.ndarray:
    """Returns one client's initial leaf for all clients; zeros take no memory until they are written."""
    leaf = np.asarray(leaf)
    shape = (population.num_clients, *leaf.shape)
    if population.state_dir is None or leaf.size == 0:
        kept = np.zeros(shape, leaf.dtype)
    else:
        population.state_dir.mkdir(parents=True, exist_ok=True)
        path = population.state_dir / f"{''.join(c if c.isalnum() else '_' for c in name)}.npy"
        kept = np.lib.format.open_memmap(path, mode="w+", dtype=leaf.dtype, shape=shape)
    if leaf.any():
        kept[:] = leaf
    return kept


def cohort_views(
    population: HostedDataset, program: Program, key: jax.Array, start: int, rounds: int
) -> Iterator[CohortView]:
    """Yields each round's view on all devices; while the caller trains on one, a thread gathers the next."""
    sample = jax.jit(lambda number: program.sampler.sample(derive(key, RunStream.COHORT, number), number))
    most = population.largest_cohort(program.sampler.width)

    def gather(cohort: Cohort, capacity: int) -> CohortView:
        return on_all_devices(population.view(cohort, capacity, most), program.plan)

    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(gather, jax.device_get(sample(jnp.int32(start))), 1)
        for number in range(start + 1, rounds + 1):
            view = ahead.result()
            if number < rounds:
                cohort = jax.device_get(sample(jnp.int32(number)))
                ahead = thread.submit(gather, cohort, jax.tree.leaves(view.columns)[0].shape[0])
            yield view


def _run_on_view(
    state: RoundState, schedule: Schedule, view: CohortView, columns: PyTree, variant: Variant, program: Program
) -> tuple[RoundState, Report]:
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
