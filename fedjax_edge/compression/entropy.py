"""What a payload costs once its integers go through an entropy coder: a size in bits, without the coder."""

import jax
import jax.numpy as jnp

from fedjax_edge.compression.packing import Packed, unpack
from fedjax_edge.core.protocols import Codec, PyTree, UpdateTransform
from fedjax_edge.core.trees import size_in_bits

_WIDEST_HISTOGRAM = 16  # bits; wider codes are counted by sorting


def entropy_bits(codes: jax.Array, bits: int | None = None) -> jax.Array:
    """Returns the bits that integer codes take under an ideal entropy coder that is made for them, float32 [].

    `sum_c n_c * log2(n / n_c)` over the codes that occur, `n_c` times each: `n` times the empirical entropy (an
    arithmetic coder takes up to two bits more, which are not counted). And the table that it needs: each code that
    occurs, in `bits` bits, and its count, in `ceil(log2(n + 1))`. No code depends on those before it. Pure, for any
    integers, also under `jit`; for what is in a payload see `coded_size`.

    ============================  ==================================
    codes                         bits
    ============================  ==================================
    none                          0
    all the same                  the table of one
    all different                 more than they take as they are
    ============================  ==================================

    Args:
      codes: integers of any dtype and shape.
      bits: that a code takes in the table, of which it has not more than that many; by default those of the dtype.

    Raises:
      TypeError: for codes that are not integers.

    Source: Shannon, "A Mathematical Theory of Communication", 1948, Theorem 9 (the noiseless coding theorem).

    >>> float(entropy_bits(jnp.array([0, 0, 1, 0], jnp.uint8), bits=1))  # 3 log2(4/3) + log2(4), and 2 * (1 + 3)
    11.2451...
    """
    codes = jnp.asarray(codes)
    if not jnp.issubdtype(codes.dtype, jnp.integer):
        raise TypeError(f"codes must be integers, got {codes.dtype}")
    if not codes.size:
        return jnp.float32(0)
    bits = jnp.iinfo(codes.dtype).bits if bits is None else bits
    counts = (_histogram(codes, bits) if bits <= _WIDEST_HISTOGRAM else _run_lengths(codes)).astype(jnp.float32)
    information = jnp.sum(counts * jnp.log2(codes.size / jnp.maximum(counts, 1)))
    return information + jnp.sum(counts > 0).astype(jnp.float32) * (bits + codes.size.bit_length())


def elias_bits(levels: jax.Array) -> jax.Array:
    """Returns the bits of QSGD's own code for signed levels, without the norm, int32 [].

    Of each level that is not 0: the distance to the one before it by Elias' recursive code, a bit for the sign, and the
    magnitude by that code again. For `n` numbers at `s` levels, `s <= sqrt(n)`, the levels that are not 0 are some
    `s * (s + sqrt(n))` at most.

    Source: Alistarh et al., "QSGD", NIPS 2017 (arXiv:1610.02132), Theorem 3.2.

    >>> int(elias_bits(jnp.array([0, 0, -2, 1])))  # 3, sign, 2; 1, sign, 1
    10
    """
    vector = levels.ravel().astype(jnp.int32)
    position = jnp.arange(vector.size, dtype=jnp.int32)
    last = jax.lax.cummax(jnp.where(vector != 0, position, -1))
    distance = position - jnp.concatenate([jnp.full(1, -1, jnp.int32), last])[: vector.size]
    cost = _elias_length(distance) + 1 + _elias_length(jnp.abs(vector))
    return jnp.sum(jnp.where(vector != 0, cost, 0))


def coded_size(payload: PyTree) -> jax.Array:
    """Returns the bits of a payload whose packed codes are entropy-coded, each leaf's by a table of its own, int32 [].

    Per leaf `entropy_bits`, rounded up, or the codes as they are if that is less, and one bit that says which. Scales,
    seeds and whatever else a codec sends are counted as they are. For payloads below 2**31 bits.
    """

    def size(part: PyTree) -> int | jax.Array:
        if not isinstance(part, Packed):
            return size_in_bits(part)
        coded = jnp.ceil(entropy_bits(unpack(part), part.bits)).astype(jnp.int32)
        return jnp.minimum(coded, size_in_bits(part)) + 1

    parts = jax.tree.leaves(payload, is_leaf=lambda node: isinstance(node, Packed))
    return jnp.int32(sum(map(size, parts)))


def entropy_coded(codec: Codec) -> UpdateTransform:
    """Returns `codec` with its payload counted as an ideal entropy coder would send it: see `coded_size`.

    What is received is the same. The bits depend on the update, so that the history of a run shows them as they fall.
    `error_feedback(codec, size=coded_size)` counts likewise.

    Raises:
      TypeError: for anything but a `Codec`.

    >>> from fedjax_edge.compression.qsgd import qsgd
    >>> transform, update = entropy_coded(qsgd(1)), jnp.linspace(-1, 1, 1000)
    >>> bits = transform.apply(update, (), jax.random.key(0))[2]  # most levels are 0
    >>> 2000 + 32, int(bits) < 500
    (2032, True)
    """
    if not isinstance(codec, Codec):
        raise TypeError(f"entropy_coded wraps a Codec, got {codec!r}")

    def apply(update: PyTree, state: PyTree, key: jax.Array) -> tuple[PyTree, PyTree, jax.Array]:
        payload = codec.encode(update, key)
        return codec.decode(payload), state, coded_size(payload)

    return UpdateTransform(init=lambda update: (), apply=apply)


def _histogram(codes: jax.Array, bits: int) -> jax.Array:
    places = (codes.ravel().astype(jnp.uint32) & (2**bits - 1)).astype(jnp.int32)  # a negative code has a place too
    return jnp.zeros(2**bits, jnp.int32).at[places].add(1)


def _run_lengths(codes: jax.Array) -> jax.Array:
    """Returns how often each code occurs, where its last one is among the sorted, and 0 elsewhere, int32 [n]."""
    ordered, position = jnp.sort(codes.ravel()), jnp.arange(codes.size, dtype=jnp.int32)
    changes = ordered[1:] != ordered[:-1]
    first = jax.lax.cummax(jnp.where(jnp.concatenate([jnp.ones(1, bool), changes]), position, 0))
    return jnp.where(jnp.concatenate([changes, jnp.ones(1, bool)]), position - first + 1, 0)


def _elias_length(number: jax.Array) -> jax.Array:
    """Returns the bits of Elias' recursive (omega) code of integers of at least 1, int32 [...]."""
    length = jnp.ones_like(number)
    for _ in range(5):  # 32 bits, then at most 5, 3, 2 and 1
        width = 32 - jax.lax.clz(number)
        length += jnp.where(number > 1, width, 0)
        number = jnp.where(number > 1, width - 1, 1)
    return length
