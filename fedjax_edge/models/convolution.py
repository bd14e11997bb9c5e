"""Convolution and max-pooling that XLA runs fast on a CPU, also when every client has kernels of its own.

XLA lowers the gradient of a small convolution, and a convolution vmapped over kernels, to loops some ten times slower
on a CPU than a product of matrices. So a convolution here is that product: every output position's window of the input
(its patch) as a row, times the kernel as a matrix. Written with slices, a concatenation and one `dot_general`, it
leaves both gradients to JAX: a second product each, and for the input a sum of shifted slices. Measured against
hand-written backward passes (a flipped-kernel convolution; patches kept or made again), that was as fast or faster.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_edge.core import checks


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
    """`jax.lax.conv_general_dilated` as patches times a matrix, to be passed to the `Conv` layers of flax.

    Args:
        lhs: float `[batch, *spatial, channels]`, any number of spatial axes.
        rhs: float `[*window, channels, features]`, of the dtype of `lhs`.
        window_strides: one stride for each spatial axis.
        padding: `"SAME"`, `"VALID"`, or a `(low, high)` pair for each spatial axis (pairs only, with `lhs_dilation`).
        lhs_dilation: spacing of the input's elements, one for each spatial axis (for transposed convolutions).
        rhs_dilation: spacing of the kernel's elements, one for each spatial axis.
        dimension_numbers: as in lax; channels must come last: `("NHWC", "HWIO", "NHWC")` for images. (The default of
            lax, channels first, is refused.)
        feature_group_count: must be 1.
        batch_group_count: must be 1.
        precision: of the product, as in lax.
        preferred_element_type: dtype of the product, as in lax.
        out_sharding: must be None.

    Returns:
        `[batch, *output, features]`, what lax returns.

    Raises:
        ValueError: for channels that do not come last or do not match, for grouped or explicitly sharded convolutions,
            for padding by name of a dilated input (as in lax).

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
    *window, _, features = rhs.shape
    ones = (1,) * len(window)
    lhs_dilation, rhs_dilation = lhs_dilation or ones, rhs_dilation or ones
    padded = _pad(lhs, window, window_strides, padding, lhs_dilation, rhs_dilation)
    patches = _patches(padded, window, window_strides, rhs_dilation)
    rows = patches.reshape(-1, patches.shape[-1])
    kernel = rhs.reshape(rows.shape[1], features)
    out = jnp.dot(rows, kernel, precision=precision, preferred_element_type=preferred_element_type)
    return out.reshape(*patches.shape[:-1], features)


def _check_supported(lhs, rhs, dimension_numbers, feature_group_count, batch_group_count, out_sharding):
    specs = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    spatial = range(lhs.ndim - 2)
    last = (0, lhs.ndim - 1, *(1 + axis for axis in spatial))
    if specs != lax.ConvDimensionNumbers(last, (rhs.ndim - 1, rhs.ndim - 2, *spatial), last):
        raise ValueError(
            f'dimension_numbers must put channels last, as in ("NHWC", "HWIO", "NHWC"), got {dimension_numbers!r}'
        )
    for name, count in (("feature_group_count", feature_group_count), ("batch_group_count", batch_group_count)):
        if count != 1:
            raise ValueError(f"{name} must be 1, got {count!r}; use jax.lax.conv_general_dilated for groups")
    if out_sharding is not None:
        raise ValueError(f"out_sharding must be None, got {out_sharding!r}")
    if lhs.shape[-1] != rhs.shape[-2]:
        raise ValueError(f"rhs must take the {lhs.shape[-1]} channels of lhs {lhs.shape}, got rhs {rhs.shape}")


def _pad(lhs, window, strides, padding, lhs_dilation, rhs_dilation):
    """`lhs` with its elements spaced out, and zeros around it."""
    sizes = [(size - 1) * gap + 1 for size, gap in zip(lhs.shape[1:-1], lhs_dilation, strict=True)]
    if isinstance(padding, str):
        if any(gap != 1 for gap in lhs_dilation):
            raise ValueError(f"padding must be pairs of numbers where lhs_dilation is not 1, got {padding!r}")
        extents = [(size - 1) * gap + 1 for size, gap in zip(window, rhs_dilation, strict=True)]
        padding = lax.padtype_to_pads(sizes, extents, strides, padding)
    spatial = [(low, high, gap - 1) for (low, high), gap in zip(padding, lhs_dilation, strict=True)]
    return lax.pad(lhs, jnp.zeros((), lhs.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])


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
