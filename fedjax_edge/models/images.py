"""The shapes of images: what the convolutional models accept, and the axis of channels they add."""

import jax

from fedjax_edge.core import checks


def with_channels(images: jax.Array) -> jax.Array:
    """Images `[batch, height, width]` with a last axis of one channel added; `[..., channels]` as they are."""
    return images[..., None] if images.ndim == 3 else images


def check_image_shape(image_shape: tuple[int, ...], at_least: int) -> None:
    """Raises ValueError unless `image_shape` is `(height, width)`, or with channels, and its sides are long enough."""
    if len(image_shape) not in (2, 3):
        raise ValueError(f"image_shape must be (height, width) or (height, width, channels), got {image_shape!r}")
    for axis, size in enumerate(image_shape):
        checks.integer(f"image_shape[{axis}]", size, at_least if axis < 2 else 1)
