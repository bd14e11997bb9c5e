"""One XLA device per CPU core."""

import os

import jax

from fedjax_edge.core import checks


def use_cpu_cores(count: int | None = None) -> int:
    """Gives JAX one CPU device per core, so that clients train on all cores at once; call it before JAX starts.

    One device per core, each going through its own clients, is several times faster than one device that splits
    every small matrix product between the cores. The command line calls this by itself. It changes nothing on a GPU
    or TPU.

    Args:
      count: the number of devices; by default the cores this process may run on.

    Returns:
      The number of CPU devices.

    Raises:
      ValueError: for fewer than one device.
      RuntimeError: if JAX has already started with another number of devices.
    """
    if count is None:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    checks.integer("count", count)
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        started = jax.local_device_count("cpu")
        if started != count:
            raise RuntimeError(
                f"JAX has already started with {started} CPU device(s), not {count}: call use_cpu_cores() before "
                "anything that touches a device"
            ) from error
    return count
