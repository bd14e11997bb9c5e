"""Clipping by L2 norms, of the whole update or of each layer, with bounds that hold in floating point."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_edge.core import checks
from fedjax_edge.core.protocols import PyTree, UpdateTransform
from fedjax_edge.core.trees import at_least_float32, is_finite, select

_FAN_IN = 256

# With u = 2^-24, a sum of squares taken in groups of 256 is low by at most 255 u a level, in whatever order XLA adds
# within a group; five levels hold 2^32 numbers. Squaring adds u: at most 1,276 u in the square, 638 u in the norm. The
# root, the quotient, the products and the conversion of `clip_norm` to float32 add a few u more, and 1,024 u = 2^-14
# covers all of them.
SAFETY = 1 - 2.0**-14

# A square below this may be flushed to zero, so each number is counted as if it had been.
_SMALLEST_NORMAL = 2.0**-126


def clip_by_norm(update: PyTree, clip_norm: PyTree) -> PyTree:
    """Scales an update down so that its L2 norm over all leaves together is at most `clip_norm`.

    | update                                        | result                                    |
    |-----------------------------------------------|-------------------------------------------|
    | norm below `(1 - 2^-13) clip_norm`            | the update, bit for bit                   |
    | norm above                                    | same direction, norm at most `clip_norm`  |
    | all zeros, or no leaves                       | the same                                  |
    | sum of squares overflows float32 (norm 1e19)  | zeros                                     |
    | holds a NaN or an infinity                    | zeros                                     |

    Every square counts as 2^-126 more, since a CPU may flush smaller ones: an update of n numbers is taken to be up to
    `1.1e-19 sqrt(n + 1)` longer than it is, and where `clip_norm` is as small the first row does not hold: it is
    clipped shorter than need be, never less.

    A tree of norms clips by layer: each number is the bound of the part of the update at its place, a leaf or a
    subtree, and the table holds for each part by itself. The whole then has norm `total_norm(clip_norm)` at most.

    The norm is computed in float32. The result's norm, taken exactly, never exceeds `clip_norm`: the factor leaves
    room for every rounding on the way (2^-14, 0.006 %), and leaves narrower than float32 are rounded toward zero.

    Args:
      update: pytree of floats, any shapes and dtypes.
      clip_norm: the bound, above 0; a number or a traced float32 [], or a tree of these that `update` begins with.

    Returns:
      The clipped update: structure, shapes and dtypes of `update`.

    Raises:
      ValueError: a `clip_norm`, or their total, is not above 0 and finite in float32 (at most 3.4e38), or the norms'
        tree is not the beginning of the update's.
      TypeError: a leaf is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> update = {"w": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
      >>> clipped = clip_by_norm(update, clip_norm=1.0)
      >>> print({name: leaf.round(3).tolist() for name, leaf in sorted(clipped.items())})
      {'b': [0.800...], 'w': [0.600..., 0.0]}
      >>> print(clip_by_norm(update, {"w": 5.0, "b": 1.0})["w"])
      [3. 0.]
    """
    check_clip_norm(clip_norm)
    checks.float_tree("update", update)
    return _each_part(lambda norm, part: scale_down(part, l2_norm(part), norm), clip_norm, update)


def per_layer(clip_norm: float, layers: PyTree) -> PyTree:
    """The norms that clip every layer alike while the whole update keeps the bound `clip_norm`: `S / sqrt(m)` each.

    Source: McMahan, Ramage, Talwar and Zhang, "Learning Differentially Private Recurrent Language Models" (ICLR 2018,
    arXiv:1710.06963), per-layer clipping of Section 2.

    Args:
      clip_norm: the bound S of the whole update's L2 norm, above 0.
      layers: a tree with one leaf for each of the m layers, such as the model's parameters, or a tree that these begin
        with (`{"convolution": 0, "dense": 0}`, whatever the numbers) where a layer is more than one leaf.

    Returns:
      A tree of floats like `layers`, for `clip_by_norm`, `gaussian_mean` and the rest.

    Raises:
      ValueError: `clip_norm` is not above 0 and finite in float32, or there are no layers.

    Example:
      >>> per_layer(1.0, {"w": 0, "b": 0, "c": 0, "d": 0})
      {'b': 0.5, 'c': 0.5, 'd': 0.5, 'w': 0.5}
    """
    checks.positive_float32("clip_norm", clip_norm)
    count = len(jax.tree.leaves(layers))
    if count == 0:
        raise ValueError(f"layers has no leaf, got {layers!r}")
    return jax.tree.map(lambda _: clip_norm / math.sqrt(count), layers)


def total_norm(clip_norm: PyTree) -> float | jax.Array:
    """The L2 norm of an update that was clipped by these norms, at most: the root of the sum of their squares.

    >>> total_norm({"w": 3.0, "b": 4.0})
    5.0
    >>> total_norm(0.3)
    0.3
    """
    norms = jax.tree.leaves(clip_norm)
    if len(norms) == 1:
        return norms[0]
    if any(isinstance(norm, jax.Array) for norm in norms):
        each = jnp.stack([jnp.asarray(norm, jnp.float32) for norm in norms])
        return each.max() * jnp.linalg.norm(each / each.max())  # no square underflows
    return math.hypot(*norms)


def clip(clip_norm: PyTree) -> UpdateTransform:
    """Clipping as something a client does to its update before it is sent.

    It bounds what an honest client sends. It is no privacy mechanism: compression or an attack after it can lengthen
    the update again, which is why `gaussian_mean` clips where updates are summed. An update that holds a NaN or an
    infinity is sent as it is, so that the round can reject and count it.

    Args:
      clip_norm: as in `clip_by_norm`: the bound of the update's L2 norm, or a tree of bounds of its layers.

    Returns:
      A stateless `UpdateTransform` that sends no extra bits (`None`: the payload's form is unchanged).

    Raises:
      ValueError: a `clip_norm` is not above 0 and finite in float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> transform = clip(clip_norm=1.0)
      >>> update = jnp.array([0.3, 0.4])
      >>> sent, state, bits = transform.apply(update, transform.init(update), jax.random.key(0))
      >>> print(sent, state, bits)
      [0.3 0.4] () None
    """
    check_clip_norm(clip_norm)

    def apply(update: PyTree, state: tuple, key: jax.Array) -> tuple[PyTree, tuple, None]:
        return select(is_finite(update), clip_by_norm(update, clip_norm), update), state, None

    return UpdateTransform(init=lambda update: (), apply=apply)


def check_clip_norm(clip_norm: PyTree) -> None:
    """Raises ValueError unless there are norms, all above 0, and they and their total are finite in float32."""
    norms = jax.tree_util.tree_leaves_with_path(clip_norm, is_leaf=lambda norm: norm is None)
    if not norms:
        raise ValueError(f"clip_norm must be a finite number above 0 or a tree of them, got {clip_norm!r}")
    for path, norm in norms:
        checks.positive_float32(f"clip_norm{jax.tree_util.keystr(path)}", norm)
    checks.positive_float32("the total of clip_norm", total_norm(clip_norm))


def l2_norm(update: PyTree) -> jax.Array:
    """Returns the L2 norm over all leaves, float32 [], low by 638 u at most; infinite or NaN if that is what it is."""
    return jnp.sqrt(_sum_of_squares(update))


def scale_down(update: PyTree, norm: jax.Array, bound: float | jax.Array) -> PyTree:
    """Returns an update of this `l2_norm` scaled so that its exact norm is at most `bound`; zeros for a norm of NaN."""
    scale = jnp.minimum(1, SAFETY * jnp.asarray(bound, jnp.float32) / norm)

    def scaled(leaf):
        leaf = jnp.asarray(leaf)
        wide = at_least_float32(leaf)
        wide = jnp.where(jnp.isfinite(norm), wide * scale.astype(wide.dtype), 0)
        return _round_toward_zero(wide, leaf.dtype)

    return jax.tree.map(scaled, update)


def _each_part(function: Callable, clip_norm: PyTree, update: PyTree) -> PyTree:
    try:
        return jax.tree.map(function, clip_norm, update)
    except ValueError as error:
        raise ValueError(f"clip_norm must be a number or a tree that the update begins with: {error}") from error


def l1_norm(update: PyTree) -> jax.Array:
    """Returns the sum of all magnitudes, float32 [], low by 1,275 u at most; infinite or NaN if that is what it is."""
    return _sum_of(jnp.abs, update)


def _sum_of_squares(update: PyTree) -> jax.Array:
    return _sum_of(jnp.square, update)


def _sum_of(function: Callable, update: PyTree) -> jax.Array:
    """An upper bound, up to the rounding that `SAFETY` covers, of the sum of such functions of all numbers, float32."""
    leaves = [jnp.ravel(jnp.asarray(leaf, jnp.float32)) for leaf in jax.tree.leaves(update)]
    flushed = jnp.full((1,), _SMALLEST_NORMAL * (1 + sum(leaf.size for leaf in leaves)), jnp.float32)
    sums = jnp.concatenate([flushed, *(_group_sums(function(leaf)) for leaf in leaves)])
    while sums.size > 1:
        sums = _group_sums(sums)
    return sums[0]


def _group_sums(values: jax.Array) -> jax.Array:
    """Sums of each 256 values in turn; the barrier keeps XLA from merging levels into one long sum."""
    groups = -(-values.size // _FAN_IN)
    padded = jnp.pad(values, (0, groups * _FAN_IN - values.size))
    return lax.optimization_barrier(jnp.sum(padded.reshape(groups, _FAN_IN), axis=1))


def _round_toward_zero(value: jax.Array, dtype: jnp.dtype) -> jax.Array:
    if value.dtype == dtype:
        return value
    # Without the barrier XLA may skip the rounding that is to be measured (xla_allow_excess_precision).
    nearest = lax.optimization_barrier(value.astype(dtype))
    is_longer = jnp.abs(nearest.astype(value.dtype)) > jnp.abs(value)
    return jnp.where(is_longer, jnp.nextafter(nearest, jnp.zeros_like(nearest)), nearest)
