"""Each case in a process of its own: the number of devices is fixed when JAX starts."""

import subprocess
import sys

import pytest


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("count", ["", "3"])
def test_one_device_per_core_or_as_many_as_asked(count):
    code = f"""
import fedjax_edge as fe, jax, os
count = fe.use_cpu_cores({count})
assert jax.device_count() == count == ({count or "len(os.sched_getaffinity(0))"}), jax.devices()
assert fe.use_cpu_cores({count}) == count
"""
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_too_late_is_an_error_that_says_so():
    result = run("import jax, fedjax_edge as fe; jax.devices(); fe.use_cpu_cores(5)")
    assert "JAX has already started with 1 CPU device(s), not 5: call use_cpu_cores() before" in result.stderr


def test_neither_importing_the_package_nor_building_a_model_touches_a_device():
    code = """
import fedjax_edge as fe, optax
from flax import nnx
from jax._src import xla_bridge
models = [fe.models.small_cnn(), fe.models.char_gru(), fe.models.from_nnx(lambda rngs: nnx.Linear(2, 3, rngs=rngs))]
loss = fe.models.classification(models[0])
fe.algorithms.fedavg(loss, optax.sgd(0.1), batch_size=2, epochs=1, uplink=fe.compression.stochastic_uniform(8))
fe.data.poisson(10, 0.5)
assert not xla_bridge.backends_are_initialized()
"""
    result = run(code)
    assert result.returncode == 0, result.stderr
