"""The perceptron "2NN" of McMahan et al. 2017."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_edge.core import checks
from fedjax_edge.models.dot_general import dot_general
from fedjax_edge.models.model import Model, from_linen


class _Mnist2nn(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        x = images.reshape(images.shape[0], -1)
        x = nn.relu(nn.Dense(200, dot_general=dot_general)(x))
        x = nn.relu(nn.Dense(200, dot_general=dot_general)(x))
        return nn.Dense(self.num_classes, dot_general=dot_general)(x)


def mnist_2nn(num_classes: int = 10, input_shape: tuple[int, ...] = (28, 28)) -> Model:
    """A perceptron with two hidden layers of 200 ReLU units: 199,210 parameters on 28 x 28 pixels.

    Args:
        num_classes: number of logits.
        input_shape: of one example; flattened.

    Returns:
        A `Model` from inputs `[batch, *input_shape]` to logits `[batch, num_classes]`.

    Raises:
        ValueError: if `num_classes` or a side of `input_shape` is not a positive integer.

    References:
        McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data, section 3.

    >>> model = mnist_2nn()
    >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 28, 28))).shape
    (2, 10)
    """
    checks.integer("num_classes", num_classes)
    for axis, size in enumerate(input_shape):
        checks.integer(f"input_shape[{axis}]", size)
    return from_linen(_Mnist2nn(num_classes), jax.ShapeDtypeStruct((1, *input_shape), jnp.float32))
