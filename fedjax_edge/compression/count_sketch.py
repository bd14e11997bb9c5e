"""Count sketch: all numbers summed with random signs into a few buckets, and read back from them."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from fedjax_edge.compression.norms import nan_unless_finite
from fedjax_edge.core import checks
from fedjax_edge.core.flatten import TreeShape, flatten
from fedjax_edge.core.protocols import Codec, PyTree


@partial(jax.tree_util.register_dataclass, data_fields=["table", "seed"], meta_fields=["shape"])
@dataclass(frozen=True)
class Sketch:
    """What is sent: the sums of all buckets, and the seed of the hashes."""

    table: jax.Array  # float32 [rows, columns]
    seed: jax.Array  # uint32 []
    shape: TreeShape


def count_sketch(rows: int, columns: int, median: bool = False) -> Codec:
    """Returns the codec that adds each number, times a random sign, to one random bucket of each row of a table.

    A number is read back as the mean over the rows of its bucket times its sign: unbiased, as what else is in the
    bucket has a random sign. For `n` numbers the squared error is `(n - 1) / (rows * columns) * |x|**2` in expectation,
    at `32 * rows * columns` bits, and 32 for the seed that the client draws from its key. The median over the rows is
    nearly so for numbers of like size, and much nearer to the few that are far larger than the rest: it misses a number
    by more than `sqrt(8 / columns) * |x|` with a probability of at most `exp(-0.28 * rows)` (Chebyshev, 1/8 for a row;
    Hoeffding for half of them). Its noise is symmetric, and so it is unbiased too. Neither contracts, unless the table
    is larger than the update.

    Sketches made with one seed add up: the table of a sum is the sum of the tables, which is what `fetch_sgd` is for.

    ==============================  ======================================================
    input                           decoded
    ==============================  ======================================================
    zero everywhere, one number     itself
    empty                           empty
    NaN or infinite anywhere        no number is finite, so that the round can reject it;
                                    likewise a bucket that overflows float32
    ==============================  ======================================================

    Args:
      rows: of the table, 1 to 32; take an odd number for the median.
      columns: buckets in a row.
      median: over the rows, in the place of the mean.

    Raises:
      ValueError: for a number out of range.

    Source: Charikar, Chen and Farach-Colton, "Finding Frequent Items in Data Streams", ICALP 2002, Section 3; for
    updates: Rothchild et al., "FetchSGD: Communication-Efficient Federated Learning with Sketching", ICML 2020
    (arXiv:2007.07682), Section 3.

    >>> codec = count_sketch(rows=5, columns=20, median=True)
    >>> update = jnp.zeros(100).at[7].set(3.0)
    >>> codec.decode(codec.encode(update, jax.random.key(0)))[7].tolist()
    3.0
    """
    check_table(rows, columns)

    def encode(update: PyTree, key: jax.Array) -> Sketch:
        vector, shape = flatten(update)
        seed = jax.random.bits(key, (), jnp.uint32)
        return Sketch(sketch(vector, seed, rows, columns), seed, shape)

    def decode(payload: Sketch) -> PyTree:
        return payload.shape.unflatten(estimates(payload.table, payload.seed, payload.shape.size, median))

    return Codec(encode, decode)


def check_table(rows: int, columns: int) -> None:
    """Raises ValueError for a table of no possible size."""
    checks.integer("rows", rows, at_most=32)
    checks.integer("columns", columns, at_most=2**24)


def sketch(vector: jax.Array, seed: jax.Array, rows: int, columns: int) -> jax.Array:
    """Returns the table of a vector, float32 [n] -> float32 [rows, columns]: linear in it, for one seed, uint32 [].

    A number that is not finite makes every bucket NaN.
    """

    def one_row(row: jax.Array) -> jax.Array:
        buckets, signs = hashes(row, seed, vector.size, columns)
        return jnp.zeros(columns, jnp.float32).at[buckets].add(signs * vector, mode="promise_in_bounds")

    return nan_unless_finite(jnp.stack([one_row(jnp.uint32(row)) for row in range(rows)]), vector)


def estimates(table: jax.Array, seed: jax.Array, size: int, median: bool) -> jax.Array:
    """Returns what the table says of each number, float32 [rows, columns] -> float32 [size]."""

    def one_row(row: int) -> jax.Array:
        buckets, signs = hashes(jnp.uint32(row), seed, size, table.shape[1])
        return signs * table[row].at[buckets].get(mode="promise_in_bounds")

    readings = [one_row(row) for row in range(table.shape[0])]
    middle = _median(readings) if median else sum(readings) / len(readings)
    return nan_unless_finite(middle, table)


def hashes(row: jax.Array, seed: jax.Array, size: int, columns: int) -> tuple[jax.Array, jax.Array]:
    """Returns the bucket, int32 [size], and the sign, float32 [size], of every number in one row.

    From a 32-bit hash of the number's position: murmur3's finalizer (Appleby 2011), twice, each time after a word made
    of the row and the seed.
    """
    words = jax.random.bits(jax.random.fold_in(jax.random.key(seed), row), (2,), jnp.uint32)
    mixed = jnp.arange(size, dtype=jnp.uint32)
    for word in words:
        mixed = (mixed ^ word) * jnp.uint32(0x85EBCA6B)
        mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
        mixed = mixed ^ (mixed >> 16)
    signs = 1 - 2 * (mixed & 1).astype(jnp.float32)
    return ((mixed >> 1) % columns).astype(jnp.int32), signs


def _median(readings: list[jax.Array]) -> jax.Array:
    """Returns the median of each place, sorting by exchanges: far faster than `jnp.sort` along a short axis."""
    count = len(readings)
    for end in range(count - 1, 0, -1):
        for place in range(end):
            low, high = readings[place], readings[place + 1]
            readings[place], readings[place + 1] = jnp.minimum(low, high), jnp.maximum(low, high)
    return (readings[(count - 1) // 2] + readings[count // 2]) / 2
