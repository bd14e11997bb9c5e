"""Whether a result depends on how clients are spread over time, lanes and devices, or on their order."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.core.plan import Plan
from fedjax_edge.core.protocols import Cohort, FederatedAlgorithm, Population, PyTree
from fedjax_edge.testing.comparing import assert_close, assert_finite, assert_same_kind


def assert_plan_invariant(
    algorithm: FederatedAlgorithm,
    params: PyTree,
    population: Population,
    cohort: Cohort,
    plans: Sequence[Plan] | None = None,
    *,
    key: jax.Array,
    rounds: int = 2,
    rtol: float = 1e-4,
) -> None:
    """Raises AssertionError if a plan changes the state or the record of a few rounds by more than the order of sums.

    So it does if the model is not finite after them, of which nothing could be said.

    Args:
      algorithm: the component.
      params: the model's first parameters.
      population: all clients' data.
      cohort: the clients of every round; a few that are absent test more.
      plans: to compare with one client at a time on one device; by default two at a time, all at a time and, where
        there are two devices, one at a time on each.
      key: the run's.
      rounds: how many, each under the same plan.
      rtol: allowed, relative to the largest number of a leaf.
    """
    if plans is None:
        plans = [Plan(2, 1), Plan(len(cohort.ids), 1), *([Plan(1, 2)] if jax.device_count() > 1 else [])]
    state = algorithm.init(params, key, population)
    expected = _run(algorithm, state, [cohort] * rounds, population, Plan(1, 1))
    assert_finite("the model after these rounds", algorithm.params(expected[0]))
    for plan in plans:
        what = f"width {plan.width} on {plan.devices} device(s), against width 1 on one"
        _assert_same_run(what, _run(algorithm, state, [cohort] * rounds, population, plan), expected, rtol)


def assert_order_invariant(
    algorithm: FederatedAlgorithm,
    params: PyTree,
    population: Population,
    cohort: Cohort,
    *,
    key: jax.Array,
    plan: Plan | None = None,
    rounds: int = 2,
    rtol: float = 1e-4,
) -> None:
    """Raises AssertionError if the order of a cohort changes the state or the record by more than the order of sums.

    So it does if the model is not finite after a few rounds.

    Tried: the reverse order, and the even places before the odd; each with the padding where it then falls.

    Args:
      algorithm, params, population, cohort, key, rounds, rtol: as in `assert_plan_invariant`.
      plan: how the executor maps over the cohort, by default one client at a time.
    """
    plan = plan or Plan(1, 1)
    state = algorithm.init(params, key, population)
    expected = _run(algorithm, state, [cohort] * rounds, population, plan)
    assert_finite("the model after these rounds", algorithm.params(expected[0]))
    places = np.arange(len(cohort.ids))
    for words, order in {"reversed": places[::-1], "even before odd": np.r_[places[::2], places[1::2]]}.items():
        permuted = Cohort(*(jnp.asarray(np.asarray(part)[order]) for part in cohort))
        actual = _run(algorithm, state, [permuted] * rounds, population, plan)
        _assert_same_run(f"the cohort {words}", actual, expected, rtol)


@functools.lru_cache(maxsize=16)
def _compiled(round_: Callable) -> Callable:
    """So that the assertions, one after another, compile an algorithm once for each plan."""
    return jax.jit(round_, static_argnums=3)


def _run(
    algorithm: FederatedAlgorithm,
    state: PyTree,
    cohorts: list[Cohort],
    population: Population,
    plan: Plan,
) -> tuple[PyTree, list[PyTree]]:
    compiled, records = _compiled(algorithm.round), []
    for cohort in cohorts:
        state, record = compiled(state, cohort, population, plan)
        records.append(record)
    return state, records


def _assert_same_run(
    what: str, actual: tuple[PyTree, list[PyTree]], expected: tuple[PyTree, list[PyTree]], rtol: float
) -> None:
    (state, records), (expected_state, expected_records) = actual, expected
    assert_same_kind(f"{what}: the state", state, expected_state)
    assert_close(f"{what}: the state", state, expected_state, rtol)
    for number, (record, wanted) in enumerate(zip(records, expected_records, strict=True)):
        assert_close(f"{what}: the record of round {number}", record, wanted, rtol)
