"""`tune_plan`: times a few plans on the user's own algorithm, and remembers the fastest."""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_edge.core import checks
from fedjax_edge.core.cohort import check_sampler, draw
from fedjax_edge.core.executor import on_all_devices
from fedjax_edge.core.hosts import agreed
from fedjax_edge.core.memory import available_bytes, copies_in_one_memory
from fedjax_edge.core.plan import Plan, check_plan, choose_plan
from fedjax_edge.core.protocols import FederatedAlgorithm, Population, PyTree, Sampler
from fedjax_edge.data import HostedDataset
from fedjax_edge.simulation.recipe import as_params

FACTORS = (0.1, 0.2, 0.5, 1, 2, 5, 10)  # of the width that `choose_plan` takes


class Timed(NamedTuple):
    """One candidate, measured."""

    width: int
    seconds: float  # of a round, the median
    memory: int  # bytes a round takes beside its inputs and outputs, on all devices together


def tune_plan(
    algorithm: FederatedAlgorithm,
    params: PyTree | Callable[[jax.Array], PyTree],
    population: Population,
    sampler: Sampler,
    *,
    devices: int | None = None,
    widths: Sequence[int] | None = None,
    repeats: int = 3,
    cache_dir: str | Path | None = None,
) -> Plan:
    """Returns the plan with the fastest round, measured on this machine with these clients.

    A plan changes speed and memory, never the result beyond the order of floating-point sums, so neither does tuning.
    A width whose round would not fit into free memory is left out before it is run.

    Args:
      algorithm: one that is made already, not a function of hyperparameters.
      params, population, sampler: as in `run`.
      devices: by default all there are.
      widths: the numbers of vmapped clients to try; by default a few around the one that `choose_plan` takes.
      repeats: timed rounds of each, after one that is not timed.
      cache_dir: a folder for answers: the same program on the same kind of machine is not measured again. By default
        nothing is remembered.

    Returns:
      A plan whose `reason` says what was measured, with the memory that XLA reports for it.

    Raises:
      ValueError: for numbers below one, or if no width fits.
      TypeError: for an algorithm that is not made yet, or a population that stays on the host.
    """
    checks.integer("repeats", repeats)
    if not isinstance(algorithm, FederatedAlgorithm):
        raise TypeError(f"algorithm must be a FederatedAlgorithm, not a function that makes one, got {algorithm!r}")
    if isinstance(population, HostedDataset):
        raise TypeError("tune_plan needs its population on the devices, got one that stays on the host")
    check_sampler(sampler, population.num_clients)
    params = as_params(params, jax.random.key(0))
    chosen = choose_plan(params, sampler.width, devices)
    check_plan(chosen)
    per_device = -(-sampler.width // chosen.devices)
    if widths is None or not len(widths):
        widths = sorted({min(max(round(chosen.width * factor), 1), per_device) for factor in FACTORS})
    for width in widths:
        checks.integer("width", width, at_most=per_device)
    widths = [int(width) for width in widths]

    key = jax.random.key(0)
    cohort = draw(sampler, key, jnp.int32(0))
    state = algorithm.init(params, key, population)
    arguments = on_all_devices((state, cohort, population), chosen)
    lowered = {width: _lower(algorithm, arguments, Plan(width, chosen.devices)) for width in widths}
    path = None if cache_dir is None else Path(cache_dir) / f"{_fingerprint(lowered)}.json"
    known = agreed(json.loads(path.read_text()) if path is not None and path.exists() else None)
    measured = known or [_time(width, chosen.devices, lowered[width], arguments, repeats) for width in widths]
    timed = [Timed(*one) for one in agreed(measured) if one is not None]
    is_whole = len(timed) == len(widths)  # memory that is short now may be free the next time
    if path is not None and is_whole and not path.exists() and jax.process_index() == 0:
        _write(path, timed)
    if not timed:
        raise ValueError(f"a round fits into free memory with none of widths={list(widths)}")
    fastest = min(timed, key=lambda one: one.seconds)
    words = ", ".join(f"{one.width}: {one.seconds:.3g} s" for one in timed)
    return Plan(fastest.width, chosen.devices, f"fastest of the widths measured, {words}", fastest.memory)


def _lower(algorithm: FederatedAlgorithm, arguments: tuple, plan: Plan) -> jax.stages.Lowered:
    return jax.jit(lambda state, cohort, population: algorithm.round(state, cohort, population, plan)).lower(*arguments)


def _fingerprint(lowered: dict[int, jax.stages.Lowered]) -> str:
    """Returns a name for the programs and the kind of machine they run on."""
    device = jax.devices()[0]
    about = (jax.__version__, device.device_kind, jax.device_count(), sorted(lowered))
    text = "".join([repr(about), *(lowered[width].as_text() for width in sorted(lowered))])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _time(width: int, devices: int, lowered: jax.stages.Lowered, arguments: tuple, repeats: int) -> Timed | None:
    """Returns the time of a round, or None if it does not fit into memory."""
    compiled = lowered.compile()
    memory, free = compiled.memory_analysis().temp_size_in_bytes, available_bytes()
    if not agreed(free is None or copies_in_one_memory(devices) * memory <= free):
        return None

    def seconds() -> float:
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        return time.perf_counter() - started

    seconds()
    return Timed(width, statistics.median(seconds() for _ in range(repeats)), devices * memory)


def _write(path: Path, timed: list[Timed]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(timed) + "\n")
    partial.replace(path)
