"""Loss functions of classifiers: one loss per example, from a model and the names of a batch's columns."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjax_edge.core.protocols import LossFn
from fedjax_edge.models.model import Model


def scale_pixels(inputs: jax.Array) -> jax.Array:
    """uint8 pixels as float32 in [0, 1]; any other dtype as it is."""
    return inputs.astype(jnp.float32) / 255 if inputs.dtype == jnp.uint8 else inputs


def classification(
    model: Model,
    inputs: str = "image",
    labels: str = "label",
    preprocess: Callable[[jax.Array], jax.Array] = scale_pixels,
) -> LossFn:
    """Softmax cross entropy, in float32, and accuracy.

    A label outside `[0, classes)`, a negative one included, makes that example's loss and gradient NaN: the round drops
    and counts such a client, and never trains on a label that means nothing.

    Args:
        model: outputs logits `[batch, classes]`, or `[batch, ..., classes]`: then an example's loss and accuracy are
            means over the axes between.
        inputs: the batch's column of inputs.
        labels: the batch's column of labels `[batch, ...]`, of any integer dtype.
        preprocess: a function of the input column, applied on the device.

    Returns:
        `loss_fn(params, batch, key) -> (losses [batch], {"accuracy": [batch]})`, all float32; a `key` of None is
        evaluation, where the model is deterministic. Calling it raises TypeError for labels that are not integers, and
        ValueError for labels whose shape is not that of the logits without their last axis.

    >>> model = Model(lambda key: jnp.eye(2), lambda params, x, key=None: x @ params)
    >>> batch = {"image": jnp.zeros((3, 2)), "label": jnp.array([0, 1, 2], jnp.uint8)}
    >>> losses, metrics = classification(model)(jnp.eye(2), batch, None)
    >>> losses
    Array([0.6931472, 0.6931472,       nan], dtype=float32)
    """

    def loss_fn(params, batch, key):
        return _cross_entropy(model.apply(params, preprocess(batch[inputs]), key), batch[labels])

    return loss_fn


def next_character(model: Model, inputs: str = "input", targets: str = "target") -> LossFn:
    """Mean cross entropy and accuracy over the characters of a window: `classification` at every position.

    Args:
        model: takes tokens `[batch, window]` and outputs logits `[batch, window, vocabulary]`.
        inputs: the batch's column of tokens `[batch, window]`, of any integer dtype.
        targets: the batch's column of next tokens `[batch, window]`, of any integer dtype; one outside the vocabulary
            makes the example's loss and gradient NaN.

    Returns:
        `loss_fn(params, batch, key) -> (losses [batch], {"accuracy": [batch]})`.

    >>> from fedjax_edge.models.char_gru import char_gru
    >>> model = char_gru()
    >>> batch = {"input": jnp.zeros((4, 20), jnp.uint8), "target": jnp.ones((4, 20), jnp.uint8)}
    >>> losses, metrics = next_character(model)(model.init(jax.random.key(0)), batch, None)
    >>> losses.shape, metrics["accuracy"].shape
    ((4,), (4,))
    """
    return classification(model, inputs, targets, preprocess=lambda tokens: tokens)


def _cross_entropy(logits, labels):
    _check_labels(logits, labels)
    logits, labels = logits.astype(jnp.float32), labels.astype(jnp.int32)
    valid = (labels >= 0) & (labels < logits.shape[-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, labels, 0))
    correct = (jnp.argmax(logits, axis=-1).astype(jnp.int32) == labels).astype(jnp.float32)
    correct = jnp.where(jnp.isnan(losses), jnp.nan, correct)  # the largest of NaNs would be the first
    # A product, not a `where`: the gradient must be NaN as well, or the client would still be trained on.
    losses = losses * jnp.where(valid, 1.0, jnp.nan)
    return _example_means(losses), {"accuracy": _example_means(correct)}


def _check_labels(logits, labels):
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got dtype {labels.dtype}")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels must have shape {logits.shape[:-1]} for logits {logits.shape}, got {labels.shape}")


def _example_means(values):
    """`[batch]`: the mean of each example over all axes but the first."""
    return jnp.mean(values.reshape(values.shape[0], math.prod(values.shape[1:])), axis=1)
