"""How the executor spreads clients over time, vector lanes and devices."""

from typing import NamedTuple

import jax

from fedjax_edge.core import checks
from fedjax_edge.core.memory import accelerator_bytes, in_words
from fedjax_edge.core.protocols import PyTree
from fedjax_edge.core.trees import size_in_bits

CPU_CHUNK_BYTES = 2**19  # parameters of one chunk that a core's own cache holds
CPU_MAX_WIDTH = 10
CPU_LINEAR_ARRAYS = 2  # a kernel and a bias: a linear model, whose short steps are mostly dispatch
ASSUMED_BYTES = 8 * 2**30  # of an accelerator that does not say how much memory it has
COPIES_PER_CLIENT = 6  # parameters, gradient, update, optimizer state, activations: what a training client holds


class Plan(NamedTuple):
    """`width` clients are vmapped at once, chunks are scanned, and `devices` devices share the chunks.

    A plan changes speed and memory, never the result, beyond the order of floating-point sums.
    """

    width: int = 1
    devices: int = 1
    reason: str = "given"
    memory: int | None = None  # bytes that the clients in training are predicted to take, on all devices together

    def explain(self, num_clients: int) -> str:
        """Says in words what happens to `num_clients` clients, why, and how much memory it is predicted to take.

        >>> Plan(width=5, devices=2, memory=10**7).explain(100)
        '100 clients = 2 devices x 10 chunks in sequence x 5 clients vmapped (given); at its peak about 10.0 MB'
        """
        chunks = -(-num_clients // (self.width * self.devices))
        devices, chunks, width = (
            f"{count} {noun}{'s' * (count > 1)}"
            for count, noun in ((self.devices, "device"), (chunks, "chunk"), (self.width, "client"))
        )
        memory = "" if self.memory is None else f"; at its peak about {in_words(self.memory)}"
        return f"{num_clients} clients = {devices} x {chunks} in sequence x {width} vmapped ({self.reason}){memory}"


def make_plan(width: int = 1, devices: int = 1) -> Plan:
    """Returns a plan of one's own.

    Raises:
      ValueError: for a width below one, or devices that are not there.
    """
    checks.integer("width", width)
    checks.integer("devices", devices, at_most=jax.device_count())
    return Plan(width, devices)


def check_plan(plan: Plan | None) -> None:
    """Raises unless a plan that is given reaches every process: one without a device could not follow the program.

    Raises:
      TypeError: for something else than a plan.
      ValueError: for a plan that leaves out a process's devices.
    """
    if plan is None:
        return
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a Plan, such as make_plan() returns, got {plan!r}")
    reached = {device.process_index for device in jax.devices()[: plan.devices]}
    if len(reached) < jax.process_count():
        raise ValueError(
            f"plan.devices must reach all {jax.process_count()} processes, got {plan.devices} of the "
            f"{jax.device_count()} devices there are: take make_plan(width, jax.device_count())"
        )


def choose_plan(
    params: PyTree, num_clients: int, devices: int | None = None, cpu_max_width: int = CPU_MAX_WIDTH
) -> Plan:
    """Returns a plan for clients that each train `params`, from the backend, its memory and the model's size.

    On a CPU every core goes through its own clients, one at a time: vmapping streams every client's weights through
    memory at each step, and makes all of a chunk wait for its longest. Only a linear model's steps are so short that a
    few clients together are faster. On an accelerator all clients of a device are vmapped, as far as its memory goes.

    Args:
      params: the model's parameters, or their shapes.
      num_clients: clients of a round, padding included.
      devices: how many devices to use, by default all there are.
      cpu_max_width: the most clients of a linear model that are vmapped on a CPU.

    Raises:
      ValueError: for more devices than there are, or fewer clients than one.
    """
    checks.integer("num_clients", num_clients)
    checks.integer("devices", jax.device_count() if devices is None else devices, at_most=jax.device_count())
    everyone_takes_part = jax.process_count() > 1  # a process without a device in the mesh could not follow the program
    devices = devices or (jax.device_count() if everyone_takes_part else min(jax.device_count(), num_clients))
    per_device = -(-num_clients // devices)
    model_bytes = max(size_in_bits(params) // 8, 1)
    if jax.default_backend() == "cpu":
        is_linear = len(jax.tree.leaves(params)) <= CPU_LINEAR_ARRAYS
        width = max(1, min(CPU_CHUNK_BYTES // model_bytes, cpu_max_width, per_device)) if is_linear else 1
        reason = f"CPU, {in_words(model_bytes)} of parameters a client"
    else:
        half = (accelerator_bytes() or ASSUMED_BYTES) // 2  # and not of what is free, which varies from call to call
        width = max(1, min(per_device, half // (COPIES_PER_CLIENT * model_bytes)))
        reason = f"{jax.default_backend()}, {in_words(half)} for clients of {in_words(model_bytes)}"
    return Plan(width, devices, reason, memory=COPIES_PER_CLIENT * model_bytes * width * devices)
