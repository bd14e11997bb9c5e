"""The machine's own rate: as many multiplications and additions a round as the task has, in large matrix products.

One product of a 128 x 1,024 and a 1,024 x 1,024 matrix after another on each device, float32.
"""

from collections.abc import Callable
from functools import partial

import handwritten
import jax
import jax.numpy as jnp
from handwritten import SAME, SPREAD
from plain_models import flops
from task import Task

import fedjax_edge as fe

PACKAGES = ("jax", "jaxlib")
ROWS, SIDE = 128, 1024


def prepare(task: Task, mode: str = "") -> Callable[[int], dict]:
    fe.use_cpu_cores()
    mesh = handwritten.make_mesh()
    work = flops(task.model) * task.sizes.mean() * task.cohort

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(SPREAD, SAME), out_specs=SPREAD, check_vma=False)
    def multiply(x: jax.Array, products: jax.Array) -> jax.Array:
        matrix = jnp.full((SIDE, SIDE), 1 / SIDE)
        return jax.lax.fori_loop(0, products, lambda _, y: y @ matrix, x[0])[None]

    ones = handwritten.spread(jnp.ones((mesh.size, ROWS, SIDE)), mesh)

    def run(rounds: int) -> dict:
        products = max(1, round(rounds * work / (2 * ROWS * SIDE**2 * mesh.size)))
        jax.block_until_ready(multiply(ones, products))
        return {}

    return run
