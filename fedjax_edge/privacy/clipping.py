"""Clipping by the global L2 norm, with a bound that holds in floating point and not only on paper."""

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
_SAFETY = 1 - 2.0**-14

# A square below this may be flushed to zero, so each number is counted as if it had been.
_SMALLEST_NORMAL = 2.0**-126


def clip_by_norm(update: PyTree, clip_norm: float | jax.Array) -> PyTree:
    """Scales an update down so that its L2 norm over all leaves together is at most `clip_norm`.

    | update                                        | result                                    |
    |-----------------------------------------------|-------------------------------------------|
    | norm below `(1 - 2^-13) clip_norm`            | the update, bit for bit                   |
    | norm above                                    | same direction, norm at most `clip_norm`  |
    | all zeros, or no leaves                       | the same                                  |
    | sum of squares overflows float32 (norm 1e19)  | zeros                                     |
    | holds a NaN or an infinity                    | zeros                                     |

    The norm is computed in float32. The result's norm, taken exactly, never exceeds `clip_norm`: the factor leaves
    room for every rounding on the way (2^-14, 0.006 %), and leaves narrower than float32 are rounded toward zero.

    Args:
      update: pytree of floats, any shapes and dtypes.
      clip_norm: the bound, above 0; a number or a traced float32 [].

    Returns:
      The clipped update: structure, shapes and dtypes of `update`.

    Raises:
      ValueError: `clip_norm` is not a finite number above 0.
      TypeError: a leaf is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> clipped = clip_by_norm({"w": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}, clip_norm=1.0)
      >>> print({name: leaf.round(3).tolist() for name, leaf in sorted(clipped.items())})
      {'b': [0.800...], 'w': [0.600..., 0.0]}
    """
    checks.positive("clip_norm", clip_norm)
    checks.float_tree("update", update)
    norm = jnp.sqrt(_sum_of_squares(update))
    scale = jnp.minimum(1, _SAFETY * jnp.asarray(clip_norm, jnp.float32) / norm)

    def clipped(leaf):
        leaf = jnp.asarray(leaf)
        wide = at_least_float32(leaf)
        wide = jnp.where(jnp.isfinite(norm), wide * scale.astype(wide.dtype), 0)
        return _round_toward_zero(wide, leaf.dtype)

    return jax.tree.map(clipped, update)


def clip(clip_norm: float | jax.Array) -> UpdateTransform:
    """Clipping as something a client does to its update before it is sent.

    It bounds what an honest client sends. It is no privacy mechanism: compression or an attack after it can lengthen
    the update again, which is why `gaussian_mean` clips where updates are summed. An update that holds a NaN or an
    infinity is sent as it is, so that the round can reject and count it.

    Args:
      clip_norm: the bound of the update's L2 norm, above 0; a number or a traced float32 [].

    Returns:
      A stateless `UpdateTransform` that sends no extra bits (`None`: the payload's form is unchanged).

    Raises:
      ValueError: `clip_norm` is not a finite number above 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> transform = clip(clip_norm=1.0)
      >>> update = jnp.array([0.3, 0.4])
      >>> sent, state, bits = transform.apply(update, transform.init(update), jax.random.key(0))
      >>> print(sent, state, bits)
      [0.3 0.4] () None
    """
    checks.positive("clip_norm", clip_norm)

    def apply(update: PyTree, state: tuple, key: jax.Array) -> tuple[PyTree, tuple, None]:
        return select(is_finite(update), clip_by_norm(update, clip_norm), update), state, None

    return UpdateTransform(init=lambda update: (), apply=apply)


def _sum_of_squares(update: PyTree) -> jax.Array:
    """An upper bound, up to the rounding that `_SAFETY` covers, of the sum of squares in float32."""
    leaves = [jnp.ravel(jnp.asarray(leaf, jnp.float32)) for leaf in jax.tree.leaves(update)]
    flushed = jnp.full((1,), _SMALLEST_NORMAL * (1 + sum(leaf.size for leaf in leaves)), jnp.float32)
    sums = jnp.concatenate([flushed, *(_group_sums(jnp.square(leaf)) for leaf in leaves)])
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
