from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from fedjax_edge.core import Plan, choose_plan, make_plan
from fedjax_edge.core.plan import check_plan


def test_on_a_cpu_clients_go_one_at_a_time_but_those_of_a_small_linear_model():
    assert choose_plan({"kernel": jnp.zeros((784, 10)), "bias": jnp.zeros(10)}, 100).width == 10
    assert choose_plan({"kernel": jnp.zeros((784, 1_000)), "bias": jnp.zeros(1_000)}, 100).width == 1
    assert choose_plan([jnp.zeros(10) for _ in range(6)], 100).width == 1


def test_on_an_accelerator_as_many_as_fit_whatever_is_in_use(monkeypatch):
    class Device:
        in_use = 0

        def memory_stats(self):
            self.in_use += 10**6
            return {"bytes_limit": 48_000_000, "bytes_in_use": self.in_use}

    device = Device()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    plans = [choose_plan(jnp.zeros(10**5), 100, devices=1) for _ in range(2)]
    assert plans[0] == plans[1] and plans[0].width == 24_000_000 // (6 * 400_000)
    assert choose_plan(jnp.zeros(10), 100, devices=1).width == 100


def test_no_more_devices_than_clients():
    assert choose_plan(jnp.zeros(10), 3).devices == 3
    assert choose_plan(jnp.zeros(10), 3).width == 1
    assert choose_plan(jnp.zeros(10), 100).devices == jax.device_count()
    assert choose_plan(jnp.zeros(10), 100, devices=2).devices == 2


def test_a_plan_says_what_it_does():
    assert "100 clients = 2 devices x 10 chunks in sequence x 5 clients vmapped" in Plan(5, 2).explain(100)
    assert "40 bytes of parameters" in choose_plan(jnp.zeros(10), 100).explain(100)
    assert "at its peak about 9.6 kB" in choose_plan([jnp.zeros(100)] * 2, 2).explain(2)


@pytest.mark.parametrize("bad", [dict(width=0), dict(devices=0), dict(devices=9), dict(width=1.5)])
def test_what_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be an integer"):
        make_plan(**bad)


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match="devices must be an integer from 1 to 8, got 9"):
        choose_plan(jnp.zeros(10), 100, devices=9)


@pytest.mark.parametrize("count", [0, -3, 10.0])
def test_a_number_of_clients_that_cannot_be_is_refused(count):
    with pytest.raises(ValueError, match=rf"num_clients must be an integer of at least 1, got {count}"):
        choose_plan(jnp.zeros(10), count)


def test_a_plan_that_leaves_out_a_process_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "devices", lambda: [Device(0), Device(0), Device(1), Device(1)])
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    check_plan(None)
    check_plan(Plan(1, 3))
    with pytest.raises(ValueError, match=r"plan.devices must reach all 2 processes, got 2 of the 4 devices"):
        check_plan(Plan(5, 2))


def test_something_else_is_no_plan():
    with pytest.raises(TypeError, match=r"plan must be a Plan, such as make_plan\(\) returns, got 'x'"):
        check_plan("x")


class Device(NamedTuple):
    process_index: int
