"""The convolutional network of McMahan et al. 2017."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_edge.core import checks
from fedjax_edge.models.convolution import conv_general_dilated, max_pool
from fedjax_edge.models.dot_general import dot_general
from fedjax_edge.models.images import check_image_shape, with_channels
from fedjax_edge.models.model import Model, from_linen

_Conv = functools.partial(nn.Conv, kernel_size=(5, 5), conv_general_dilated=conv_general_dilated)


class _MnistCnn(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        x = with_channels(images)
        x = nn.relu(max_pool(_Conv(32)(x)))
        x = nn.relu(max_pool(_Conv(64)(x)))
        x = nn.relu(nn.Dense(512, dot_general=dot_general)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes, dot_general=dot_general)(x)


def mnist_cnn(num_classes: int = 10, image_shape: tuple[int, ...] = (28, 28)) -> Model:
    """Two 5 x 5 convolutions (32 and 64 channels), each max-pooled by 2, then 512 ReLU units: 1,663,370 parameters.

    Args:
        num_classes: number of logits.
        image_shape: `(height, width)`, or `(height, width, channels)`; sides of at least 4.

    Returns:
        A `Model` from images `[batch, *image_shape]` to logits `[batch, num_classes]`.

    Raises:
        ValueError: if `num_classes` is not a positive integer, or `image_shape` is not as above.

    References:
        McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data, section 3.

    >>> model = mnist_cnn()
    >>> jax.eval_shape(model.apply, jax.eval_shape(model.init, jax.random.key(0)), jnp.zeros((2, 28, 28))).shape
    (2, 10)
    """
    checks.integer("num_classes", num_classes)
    check_image_shape(image_shape, at_least=4)
    return from_linen(_MnistCnn(num_classes), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
