import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.core import make_plan, map_clients
from fedjax_edge.core.executor import _deal
from fedjax_edge.core.plan import Plan

pytestmark = pytest.mark.usefixtures("optimized")

PLANS = [(1, 1), (2, 1), (5, 1), (13, 1), (20, 1), (1, 2), (3, 2), (1, 4), (2, 4), (1, 8), (2, 8)]


def steps(shared, client, active):
    """As many steps as the client says, so that vmapped clients run for unequal times."""
    start, count = client
    count = jnp.where(active, count, 0)
    end = jax.lax.fori_loop(0, count, lambda i, x: x * shared + 1, start)
    return {"end": end, "steps": count}, (end, start)


@pytest.mark.parametrize(("width", "devices"), PLANS)
@pytest.mark.parametrize("with_cost", [False, True])
def test_every_plan_gives_the_same(width, devices, with_cost):
    rng = np.random.default_rng(0)
    starts, counts = jnp.asarray(rng.normal(size=(13, 3)), jnp.float32), jnp.asarray(rng.integers(0, 9, 13), jnp.int32)
    active = jnp.asarray(rng.random(13) < 0.7)
    cost = jnp.where(active, counts, 0) if with_cost else None
    plan = make_plan(width, devices)
    total, rows = jax.jit(lambda *a: map_clients(steps, *a, plan, cost))(jnp.float32(0.5), (starts, counts), active)

    ends = np.asarray(starts)
    ends = np.stack([_steps_in_numpy(start, count) for start, count in zip(ends, np.asarray(counts), strict=True)])
    mask = np.asarray(active)[:, None]
    assert total["steps"] == np.asarray(counts)[np.asarray(active)].sum()
    chex.assert_trees_all_close(total["end"], (ends * mask).sum(0), rtol=1e-6)
    chex.assert_trees_all_close(rows, (ends * mask, np.asarray(starts) * mask), rtol=1e-6)


def _steps_in_numpy(x, count):
    for _ in range(count):
        x = x * np.float32(0.5) + 1
    return x


@pytest.mark.parametrize(("width", "devices"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_the_function_is_traced_once(width, devices):
    traced = []

    def count(shared, client, active):
        traced.append(active)
        return client, client

    jax.jit(lambda x: map_clients(count, (), x, jnp.ones(4, bool), Plan(width, devices)))(jnp.ones((4, 2)))
    assert len(traced) == 1


@pytest.mark.parametrize("devices", [1, 2])
def test_a_matrix_of_few_columns_is_summed_like_any_other(devices):
    client = jnp.asarray(np.random.default_rng(0).normal(size=(4, 1000, 7)), jnp.float32)
    total, _ = map_clients(lambda s, c, a: (c, None), (), client, jnp.ones(4, bool), Plan(2, devices))
    np.testing.assert_allclose(total, np.asarray(client).sum(0), rtol=1e-5, atol=1e-6)


def test_an_inactive_client_adds_nothing_even_if_it_is_not_a_number():
    active = jnp.array([True, False, True])
    total, rows = map_clients(lambda s, c, a: (c, c), (), jnp.array([1.0, jnp.nan, 2.0]), active, Plan(2, 1))
    assert total == 3
    np.testing.assert_array_equal(rows, [1, 0, 2])


def test_no_active_client_gives_zero():
    total, _ = map_clients(lambda s, c, a: (c, None), (), jnp.ones((4, 2)), jnp.zeros(4, bool), Plan(1, 2))
    np.testing.assert_array_equal(total, [0, 0])


def test_dealing_covers_everyone_once_and_balances_devices():
    cost = jnp.asarray(np.random.default_rng(1).pareto(1.0, 50) * 100, jnp.float32)
    for width, devices in PLANS:
        slots = np.asarray(_deal(cost, 50, Plan(width, devices)))
        assert slots.shape[0] == devices
        assert slots.shape[2] == width
        np.testing.assert_array_equal(np.sort(slots.ravel())[:50], np.arange(50))
        assert (np.sort(slots.ravel())[50:] >= 50).all()
    dealt = np.asarray(_deal(cost, 50, Plan(1, 2))).reshape(2, -1)
    totals = np.asarray(cost)[dealt].sum(1)
    assert abs(totals[0] - totals[1]) <= np.asarray(cost).max()


def test_a_chunk_holds_clients_of_like_cost():
    slots = np.asarray(_deal(jnp.arange(12.0), 12, Plan(3, 2)))
    assert {tuple(sorted(chunk)) for chunk in slots.reshape(-1, 3)} == {(9, 10, 11), (6, 7, 8), (3, 4, 5), (0, 1, 2)}


def test_the_devices_meet_in_one_all_reduce():
    compiled = jax.jit(lambda x: map_clients(lambda s, c, a: (c, None), (), x, jnp.ones(8, bool), Plan(1, 4))[0])
    text = compiled.lower(jnp.ones((8, 3))).compile().as_text()
    assert text.count("all-reduce(") + text.count("all-reduce-start(") == 1


def test_summed_results_exist_for_one_chunk_only():
    def memory(clients):
        def f(x):
            return map_clients(
                lambda s, c, a: (jnp.zeros(100_000) + c, None), (), x, jnp.ones(clients, bool), Plan(2, 1)
            )

        return jax.jit(f).lower(jnp.ones(clients)).compile().memory_analysis().temp_size_in_bytes

    assert memory(200) < 1.1 * memory(4)
