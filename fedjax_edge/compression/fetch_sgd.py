"""FetchSGD: clients' sketches are summed, and the server takes the largest numbers of the sum."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_edge.compression.count_sketch import check_table, estimates, sketch
from fedjax_edge.compression.selection import largest_magnitudes
from fedjax_edge.core import checks
from fedjax_edge.core.flatten import TreeShape, flatten
from fedjax_edge.core.protocols import Aggregator, PyTree, UpdateTransform
from fedjax_edge.core.trees import at_least_float32


@partial(jax.tree_util.register_dataclass, data_fields=["table", "weight"], meta_fields=["shape"])
@dataclass(frozen=True)
class Sketched:
    """What one client contributes, and what the sum of them all is."""

    table: jax.Array  # float32 [rows, columns], times the weight
    weight: jax.Array  # float32 []
    shape: TreeShape


class FetchState(NamedTuple):
    """What the server keeps, both as tables, float32 [rows, columns]."""

    momentum: jax.Array
    error: jax.Array


def fetch_sgd(
    rows: int,
    columns: int,
    fraction: float,
    learning_rate: float | jax.Array = 1.0,
    momentum: float | jax.Array = 0.9,
    seed: int = 0,
) -> Aggregator:
    """Returns the aggregator that sums the clients' count sketches and applies the largest numbers of the sum.

    A client contributes the sketch of its update times its weight; all use the same hashes, so that the sum of sketches
    is the sketch of the sum. With the mean `S` of the round the server keeps, as tables, momentum
    `u = momentum * u + S` and error `e = e + learning_rate * u`. The aggregate is `D`, the `k` largest medians that `e`
    gives, and its sketch is taken off `e`: what is not applied now is applied later, and clients need no memory. `S`,
    `u` and `e` are linear in the updates, `D` is not. A sketch carries the collisions of its buckets, of
    `|u|**2 / columns` a number and row; they fade from `e` only as other numbers are taken off it, so that the table
    must be several times larger than `k`.

    The learning rate is here, as the error contains it: use `server=optax.sgd(1.0)`. So that a sketch is what counts as
    sent, use `uplink=sent_as_sketch(rows, columns)`.

    ==============================  ======================================================================
    round                           aggregate
    ==============================  ======================================================================
    nobody, or all weigh nothing    `S` is zero: momentum and error go on
    a negative weight               counts as none
    a NaN or infinity in an update  the contribution is not finite, so that the round rejects the client
    bfloat16 leaves                 float32
    ==============================  ======================================================================

    Args:
      rows, columns: of the table; 1 to 32 rows, of which an odd number has a middle one.
      fraction: of the numbers to apply in a round, in (0, 1].
      learning_rate: of the server, above 0; may be traced.
      momentum: of the server, at least 0 and usually below 1; may be traced.
      seed: of the hashes, which everybody knows.

    Raises:
      ValueError: for a number out of range.

    Source: Rothchild et al., "FetchSGD: Communication-Efficient Federated Learning with Sketching", ICML 2020
    (arXiv:2007.07682), Algorithm 1.

    >>> from fedjax_edge.testing import aggregate
    >>> updates = jnp.zeros((2, 50)).at[:, 3].set(jnp.array([1.0, 3.0])).at[0, 9].set(0.5)
    >>> mean, state = aggregate(fetch_sgd(5, 40, fraction=0.02), updates, [1, 1], jax.random.key(0))
    >>> jnp.flatnonzero(mean).tolist(), mean[3].tolist()
    ([3], 2.0)
    """
    check_table(rows, columns)
    checks.probability("fraction", fraction)
    checks.positive("learning_rate", learning_rate)
    checks.non_negative("momentum", momentum)
    checks.integer("seed", seed, at_least=0, at_most=2**32 - 1)
    hashed = partial(sketch, seed=jnp.uint32(seed), rows=rows, columns=columns)

    def init(update: PyTree) -> FetchState:
        return FetchState(*jnp.zeros((2, rows, columns), jnp.float32))

    def contribution(update: PyTree, weight: jax.Array, state: FetchState) -> Sketched:
        vector, shape = flatten(at_least_float32(update))
        weight = jnp.maximum(weight, 0).astype(jnp.float32)
        return Sketched(weight * hashed(vector), weight, shape)

    def finish(total: Sketched, state: FetchState, key: jax.Array) -> tuple[PyTree, FetchState]:
        size = total.shape.size
        mean = total.table * jnp.where(total.weight > 0, 1 / jnp.where(total.weight > 0, total.weight, 1), 0)
        velocity = momentum * state.momentum + mean
        error = state.error + learning_rate * velocity
        numbers = estimates(error, jnp.uint32(seed), size, median=True)
        largest = largest_magnitudes(numbers, min(size, max(1, round(fraction * size))))
        applied = jnp.zeros(size, jnp.float32).at[largest].set(numbers[largest])
        return total.shape.unflatten(applied), FetchState(velocity, error - hashed(applied))

    return Aggregator(init, contribution, finish)


def sent_as_sketch(rows: int, columns: int) -> UpdateTransform:
    """Returns the transform that counts a count sketch as what is sent, `32 * rows * columns` bits, for `fetch_sgd`.

    Numbers pass as they are: hashes are the same for all, so that the aggregator's sketch is the one that the client
    would send.

    Raises:
      ValueError: for a table of no possible size, as `fetch_sgd`.
    """
    check_table(rows, columns)

    def apply(update: PyTree, state: PyTree, key: jax.Array) -> tuple[PyTree, PyTree, int]:
        return update, state, 32 * rows * columns

    return UpdateTransform(init=lambda update: (), apply=apply)
