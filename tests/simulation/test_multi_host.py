"""Processes that really run side by side, with collectives between them, and get what one process gets."""

import socket
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import sys, jax, jax.numpy as jnp, numpy as np, optax, fedjax_edge as fe
address, processes, index, devices, out, checkpoints = sys.argv[1:]
fe.use_cpu_cores(int(devices))
if int(processes) > 1:
    jax.distributed.initialize(address, int(processes), int(index))
assert jax.device_count() == 4 and jax.process_count() == int(processes)
def loss_fn(params, batch, key):
    return (batch["x"] @ params["w"] - 1) ** 2
rng = np.random.default_rng(0)
data = fe.data.from_client_arrays([{"x": rng.normal(size=(n, 5)).astype(np.float32)} for n in (3, 9, 1, 5, 2, 4, 4)])
def make(learning_rate):
    return fe.algorithms.fedavg(
        loss_fn, optax.sgd(learning_rate), batch_size=2, epochs=2,
        uplink=fe.compression.error_feedback(fe.compression.top_k(0.5)),
        aggregator=fe.privacy.gaussian_mean(1.0, 0.1, denominator=4.0),
    )
common = dict(sampler=fe.data.poisson(7, 0.6), evaluation=fe.evaluation(loss_fn, data.columns), progress=False)
params = {"w": jnp.zeros(5)}
for rounds, resume in ((3, False), (6, True)):
    result = fe.run(
        make, params, data, rounds=rounds, key=jax.random.key(7), hyperparameters={"learning_rate": 0.05},
        checkpoints=fe.checkpoints(checkpoints, resume=resume), **common,
    )
found = dict(w=result.params["w"], memory=result.state.uplink["w"], loss=result.history["test_loss"])
if int(processes) < 4:
    states = checkpoints + "-states"
    hosted = fe.run(make(0.05), params, fe.data.on_host(data, states), rounds=6, key=jax.random.key(7), **common)
    for _ in range(2):  # the second time one process has the trials, and the others have not
        sweep = fe.sweep(make, {"learning_rate": [0.01, 0.05, 0.1]}, params, data, rounds=6, seeds=[7],
                         directory=f"{checkpoints}-trials-{index}", **common)
    for cache in (f"{checkpoints}-plan", f"{checkpoints}-{index}", checkpoints + "-nothing" * (index == "0") + "-1"):
        plan = fe.tune_plan(make(0.05), params, data, common["sampler"], widths=[1, 2], repeats=1, cache_dir=cache)
    found |= dict(hosted=hosted.params["w"], sweep=[trial.history["test_loss"] for trial in sweep.trials],
                  tuned=list(plan.reason.encode()))
np.savez(out, **{name: np.asarray(value) for name, value in found.items()})
"""


def run(processes, folder):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(processes), str(index), str(4 // processes),
             folder / f"{processes}-{index}.npz", folder / f"checkpoints-{processes}"]
        )
        for index in range(processes)
    ]  # fmt: skip
    assert [process.wait(400) for process in started] == [0] * processes
    return [dict(np.load(folder / f"{processes}-{index}.npz")) for index in range(processes)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(1, tmp_path_factory.mktemp("alone"))[0]


def test_the_program_learns(alone):
    assert alone["loss"][-1] < 0.9 * alone["loss"][0]
    np.testing.assert_array_equal(alone["hosted"], alone["w"])


@pytest.mark.parametrize("processes", [2, 4])
def test_many_processes_get_what_one_gets(processes, alone, tmp_path):
    results = run(processes, tmp_path)
    for result in results:
        for name, value in result.items():
            if name != "tuned":  # the times measured differ from run to run
                np.testing.assert_allclose(value, alone[name], rtol=1e-5, atol=1e-6, err_msg=name)
            np.testing.assert_array_equal(value, results[0][name], err_msg=name)
