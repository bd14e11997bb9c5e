"""Softmax regression: one dense layer on the pixels."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_edge.core import checks
from fedjax_edge.models.dot_general import dot_general
from fedjax_edge.models.model import Model, from_linen


class _LogisticRegression(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes, dot_general=dot_general)(images.reshape(images.shape[0], -1))


def logistic_regression(num_classes: int = 10, input_shape: tuple[int, ...] = (28, 28)) -> Model:
    """Softmax regression: 7,850 parameters on 28 x 28 pixels.

    Args:
        num_classes: number of logits.
        input_shape: of one example; flattened.

    Returns:
        A `Model` from inputs `[batch, *input_shape]` to logits `[batch, num_classes]`.

    Raises:
        ValueError: if `num_classes` or a side of `input_shape` is not a positive integer.

    >>> model = logistic_regression()
    >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 28, 28))).shape
    (2, 10)
    """
    checks.integer("num_classes", num_classes)
    for axis, size in enumerate(input_shape):
        checks.integer(f"input_shape[{axis}]", size)
    return from_linen(_LogisticRegression(num_classes), jax.ShapeDtypeStruct((1, *input_shape), jnp.float32))
