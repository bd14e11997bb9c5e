"""A convolutional network small enough for a microcontroller."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_edge.core import checks
from fedjax_edge.models.convolution import conv_general_dilated, max_pool
from fedjax_edge.models.dot_general import dot_general
from fedjax_edge.models.images import check_image_shape, with_channels
from fedjax_edge.models.model import Model, from_linen

_Conv = functools.partial(nn.Conv, padding="VALID", conv_general_dilated=conv_general_dilated)


class _SmallCnn(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        x = with_channels(images)
        x = nn.relu(_Conv(16, (5, 5), strides=(2, 2))(x))
        x = nn.relu(max_pool(_Conv(16, (3, 3))(x)))
        return nn.Dense(self.num_classes, dot_general=dot_general)(x.reshape(x.shape[0], -1))


def small_cnn(num_classes: int = 10, image_shape: tuple[int, ...] = (28, 28)) -> Model:
    """Two convolutions of 16 channels (5 x 5 with stride 2, then 3 x 3) and a max-pool: 6,746 parameters at 28 x 28.

    Args:
        num_classes: number of logits.
        image_shape: `(height, width)`, or `(height, width, channels)`; sides of at least 11.

    Returns:
        A `Model` from images `[batch, *image_shape]` to logits `[batch, num_classes]`.

    Raises:
        ValueError: if `num_classes` is not a positive integer, or `image_shape` is not as above.

    >>> model = small_cnn()
    >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 28, 28))).shape
    (2, 10)
    """
    checks.integer("num_classes", num_classes)
    check_image_shape(image_shape, at_least=11)
    return from_linen(_SmallCnn(num_classes), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
