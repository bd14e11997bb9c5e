"""Convolution and max-pooling that XLA runs fast on a CPU, also when every client has kernels of its own.

XLA lowers the gradient of a small convolution, and a convolution vmapped over kernels, to loops some ten times slower
on a CPU than products of matrices. So there a convolution is products of matrices here, in one of two ways: the one of
fewer multiplications. Where there are few channels, or strides or dilation, every output position's window of the input
(its patch) is a row, multiplied by the kernel as a matrix. Otherwise see `winograd.py`: with it a step of SGD of the
network of McMahan et al. takes a little more than half the time.

Both are written so that JAX derives gradients as fast as any we wrote by hand: products, and for patches a sum of
shifted slices. On a GPU or TPU, whose libraries have all of these kernels, a convolution is that of lax.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_edge.core import checks
from fedjax_edge.core.backend import is_cpu
from fedjax_edge.models import winograd

_WIDE = (jnp.float32, jnp.float64)


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, on a CPU as products of matrices, to be passed to the `Conv` layers of flax.

    In float32 it is within 1e-5 of what lax returns, gradients included, relative to the largest entry (and mostly
    within 3e-6).

    Args:
        lhs: float `[batch, *spatial, channels]`, any number of spatial axes.
        rhs: float `[*window, channels / feature_group_count, features]`, of the dtype of `lhs`.
        window_strides: one stride for each spatial axis.
        padding: `"SAME"`, `"VALID"`, or a `(low, high)` pair for each spatial axis (pairs only, with `lhs_dilation`).
        lhs_dilation: spacing of the input's elements, one for each spatial axis (for transposed convolutions).
        rhs_dilation: spacing of the kernel's elements, one for each spatial axis.
        dimension_numbers: as in lax; channels must come last: `("NHWC", "HWIO", "NHWC")` for images. (The default of
            lax, channels first, is refused.)
        feature_group_count: into how many groups the channels and the features are split, each of them convolved alone.
        batch_group_count: must be 1.
        precision: of the product, as in lax.
        preferred_element_type: dtype of the product, as in lax.
        out_sharding: must be None.

    Returns:
        `[batch, *output, features]`, what lax returns.

    Raises:
        ValueError: for channels that do not come last or do not match, for groups that do not divide the features, for
            groups of the batch, for explicit sharding, for strides, padding or dilation that are not one positive
            number (or pair) for each spatial axis, for padding by name of a dilated input (as in lax).
        TypeError: for arrays of unlike dtypes (as in lax).

    References:
        Chellapilla, Puri and Simard 2006, High Performance Convolutional Neural Networks for Document Processing,
        section 2.

    >>> import jax.numpy as jnp
    >>> from flax import linen as nn
    >>> layer = nn.Conv(16, (5, 5), strides=(2, 2), padding="VALID", conv_general_dilated=conv_general_dilated)
    >>> params = layer.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    >>> layer.apply(params, jnp.ones((3, 28, 28, 1))).shape
    (3, 12, 12, 16)
    """
    _check_supported(lhs, rhs, dimension_numbers, feature_group_count, batch_group_count, out_sharding)
    geometry = _geometry(lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation)
    options = dict(precision=precision, preferred_element_type=preferred_element_type)

    def native(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(lhs, rhs, *geometry, dimension_numbers, feature_group_count, **options)

    is_empty = 0 in jax.eval_shape(native, lhs, rhs).shape  # such as where the window does not fit
    if is_empty or not is_cpu():
        return native(lhs, rhs)
    convolve = functools.partial(_convolve, geometry=geometry, **options)
    if feature_group_count == 1:
        return convolve(lhs, rhs)
    groups = (x.reshape(*x.shape[:-1], feature_group_count, -1) for x in (lhs, rhs))
    out = jax.vmap(convolve, in_axes=-2, out_axes=-2)(*groups)
    return out.reshape(*out.shape[:-2], rhs.shape[-1])


def _check_supported(lhs, rhs, dimension_numbers, feature_group_count, batch_group_count, out_sharding):
    specs = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    spatial = range(lhs.ndim - 2)
    last = (0, lhs.ndim - 1, *(1 + axis for axis in spatial))
    if specs != lax.ConvDimensionNumbers(last, (rhs.ndim - 1, rhs.ndim - 2, *spatial), last):
        raise ValueError(
            f'dimension_numbers must put channels last, as in ("NHWC", "HWIO", "NHWC"), got {dimension_numbers!r}'
        )
    checks.integer("feature_group_count", feature_group_count)
    if rhs.shape[-1] % feature_group_count:
        raise ValueError(f"feature_group_count must divide the {rhs.shape[-1]} features, got {feature_group_count}")
    if batch_group_count != 1:
        raise ValueError(f"batch_group_count must be 1, got {batch_group_count!r}")
    if out_sharding is not None:
        raise ValueError(f"out_sharding must be None, got {out_sharding!r}")
    if lhs.shape[-1] != rhs.shape[-2] * feature_group_count:
        raise ValueError(
            f"rhs must take the {lhs.shape[-1]} channels of lhs {lhs.shape} in {feature_group_count} group(s), "
            f"got rhs {rhs.shape}"
        )


class _Geometry(NamedTuple):
    """The third to the sixth argument of lax, none of them left out."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]


def _geometry(lhs, rhs, strides, padding, lhs_dilation, rhs_dilation):
    ones = (1,) * (lhs.ndim - 2)
    lhs_dilation, rhs_dilation = lhs_dilation or ones, rhs_dilation or ones
    for name, values in (("window_strides", strides), ("lhs_dilation", lhs_dilation), ("rhs_dilation", rhs_dilation)):
        _check_length(name, values, ones)
        for axis, value in enumerate(values):
            checks.integer(f"{name}[{axis}]", value)
    if isinstance(padding, str):
        if any(gap != 1 for gap in lhs_dilation):
            raise ValueError(f"padding must be pairs of numbers where lhs_dilation is not 1, got {padding!r}")
        extents = [(size - 1) * gap + 1 for size, gap in zip(rhs.shape[:-2], rhs_dilation, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:-1], extents, strides, padding)
    _check_length("padding", padding, ones)
    return _Geometry(tuple(strides), tuple((low, high) for low, high in padding), (*lhs_dilation,), (*rhs_dilation,))


def _check_length(name, values, axes):
    if len(values) != len(axes):
        raise ValueError(f"{name} must have {len(axes)} entries, one for each spatial axis, got {values!r}")


def _convolve(lhs, rhs, geometry, precision, preferred_element_type):
    strides, padding, lhs_dilation, rhs_dilation = geometry
    has_unit_steps = all(value == 1 for value in (*strides, *lhs_dilation, *rhs_dilation))
    # Minimal filtering cancels digits, so float32 has to have all of its own. Who asks for another precision gets it.
    is_plain = lhs.dtype in _WIDE and precision is None and preferred_element_type in (None, lhs.dtype)
    if has_unit_steps and is_plain and winograd.saves(lhs.shape, rhs.shape, padding):
        return winograd.convolve(lhs, rhs, padding)
    spatial = [(low, high, gap - 1) for (low, high), gap in zip(padding, lhs_dilation, strict=True)]
    padded = lax.pad(lhs, jnp.zeros((), lhs.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])
    *window, _, features = rhs.shape
    patches = _patches(padded, window, strides, rhs_dilation)
    rows = patches.reshape(-1, patches.shape[-1])
    kernel = rhs.reshape(rows.shape[1], features)
    out = jnp.dot(rows, kernel, precision=precision, preferred_element_type=preferred_element_type)
    return out.reshape(*patches.shape[:-1], features)


def _patches(padded, window, strides, dilation):
    """`[batch, *output, prod(window) * channels]`: the window of each output position, in the kernel's order.

    With one channel, slicing one element at a time is slow; window by axis, later slices move whole rows of patches.
    With more channels the gradient of the plain way is the faster one.
    """
    axes = range(len(window))
    if padded.shape[-1] > 1:
        return _stack_windows(padded, window, strides, dilation)
    for axis in reversed(axes):
        alone = [[values[i] if i == axis else 1 for i in axes] for values in (window, strides, dilation)]
        padded = _stack_windows(padded, *alone)
    return padded


def _stack_windows(padded, window, strides, dilation):
    batch, *sizes, channels = padded.shape
    spans = [
        (size - (width - 1) * gap - 1) // stride * stride + 1
        for size, width, gap, stride in zip(sizes, window, dilation, strides, strict=True)
    ]
    slices = []
    for element in itertools.product(*map(range, window)):
        starts = [index * gap for index, gap in zip(element, dilation, strict=True)]
        stops = [start + span for start, span in zip(starts, spans, strict=True)]
        slices.append(lax.slice(padded, (0, *starts, 0), (batch, *stops, channels), (1, *strides, 1)))
    return jnp.concatenate(slices, axis=-1)


def max_pool(x: jax.Array, window: tuple[int, int] = (2, 2)) -> jax.Array:
    """The maximum of non-overlapping windows: `flax.linen.max_pool(x, window, strides=window)`, but fast to train.

    Rows and columns that do not fill a window are dropped. Where two entries of a window tie for the maximum, they
    share the gradient; so pool before a ReLU, not after it, when the order does not change the value.

    Args:
        x: `[..., height, width, channels]`.
        window: height and width of the window, and its strides.

    Returns:
        `[..., height // window[0], width // window[1], channels]`.

    Raises:
        ValueError: if the window is not two positive integers, or does not fit in `x`.

    >>> import jax.numpy as jnp
    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0]
    Array([[ 5.,  7.],
           [13., 15.]], dtype=float32)
    """
    rows, columns = window
    *batch, height, width, channels = x.shape
    checks.integer("window[0]", rows, at_most=height)
    checks.integer("window[1]", columns, at_most=width)
    out_height, out_width = height // rows, width // columns
    cropped = x[..., : out_height * rows, : out_width * columns, :]
    tiles = cropped.reshape(*batch, out_height, rows, out_width, columns, channels)
    # A chain of `maximum` differentiates to selections; `max` over an axis would compare and count ties, 2x slower.
    row_maxima = [_maximum([tiles[..., i, :, j, :] for j in range(columns)]) for i in range(rows)]
    return _maximum(row_maxima)


def _maximum(arrays):
    return functools.reduce(jnp.maximum, arrays)
