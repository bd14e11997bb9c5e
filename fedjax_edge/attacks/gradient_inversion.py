"""Data recovered from a gradient: why an update is not private by itself."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_edge.core import checks
from fedjax_edge.core.division import ratio
from fedjax_edge.core.losses import example_losses
from fedjax_edge.core.protocols import LossFn, PyTree


class Inversion(NamedTuple):
    """What an inversion ends with."""

    batch: PyTree  # the examples that explain the gradient best, in the form of the guess
    mismatch: jax.Array  # float32 [steps + 1]; the distance of gradients before each step, and at the end


def gradient_inversion(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    total_variation: float | jax.Array = 0.0,
    bounds: tuple[float, float] | None = None,
    distance: Callable[[PyTree, PyTree], jax.Array] | None = None,
) -> Callable[[PyTree, PyTree, PyTree], Inversion]:
    """The attack that looks for examples whose gradient is the one observed.

    It minimizes `distance(gradient of the mean loss of the guess, observed) + total_variation * TV(guess)` over the
    guess: Zhu, Liu and Han 2019 (DLG, arXiv:1906.08935) with the squared distance and no prior, Geiping et al. 2020
    (arXiv:2003.14053) with the cosine distance, total variation and pixels kept in range. TV is the mean absolute
    difference between neighbouring pixels.

    Who sees the update of one local step of SGD sees the gradient: it is the update over `-learning_rate`. The cosine
    distance needs no learning rate, only the sign.

    | case                                     | what happens                                                    |
    |------------------------------------------|-----------------------------------------------------------------|
    | integers in the guess (labels)           | kept as given; `labels_from_gradient` finds them                |
    | floats in the guess (soft labels too)    | recovered                                                       |
    | leaves of fewer than three axes          | count nothing for the total variation                           |
    | an observed gradient of zeros            | the cosine distance is 1 whatever the guess; TV alone works     |
    | an observed gradient with a NaN          | a guess of NaN                                                  |

    Args:
      loss_fn: the model's loss, one number per example; it is called without a key, so that dropout is off.
      optimizer: how the guess is improved, such as `optax.adam(0.1)`.
      steps: how often.
      total_variation: weight of the prior, at least 0; may be traced.
      bounds: the range of the data, to which the guess is clipped after each step, such as (0, 1) for pixels.
      distance: of two gradients; `cosine_distance` if None. `squared_distance` is that of DLG.

    Returns:
      `attack(params, observed, guess) -> Inversion`, pure and jittable. `observed` is a pytree like `params`; `guess`
      is a batch as `loss_fn` takes it, leaves [batch, ...], where the search starts. The number of examples must be
      known. vmap over guesses for restarts and keep the one with the least mismatch.

    Raises:
      ValueError: `steps` is not a positive integer, `total_variation` is negative, or `bounds` are not a range.

    Example:
      >>> loss_fn = lambda params, batch, key: (batch["x"] @ params["w"] + params["b"]) ** 2
      >>> params, secret = {"w": jnp.array([1.0, -2.0]), "b": jnp.float32(0.5)}, {"x": jnp.array([[0.3, 0.8]])}
      >>> observed = jax.grad(lambda params: loss_fn(params, secret, None).mean())(params)
      >>> attack = gradient_inversion(loss_fn, optax.sgd(0.01), steps=200, distance=squared_distance)
      >>> found = attack(params, observed, {"x": jnp.zeros((1, 2))}).batch
      >>> bool(jnp.allclose(found["x"], secret["x"], atol=1e-3))
      True
    """
    checks.integer("steps", steps)
    checks.non_negative("total_variation", total_variation)
    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be (low, high) with low < high, got {bounds!r}")
    distance = distance or cosine_distance

    def attack(params: PyTree, observed: PyTree, guess: PyTree) -> Inversion:
        leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, guess))
        sought = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

        def batch_of(floats: list[jax.Array]) -> PyTree:
            found = iter(floats)
            return structure.unflatten(
                next(found) if is_sought else leaf for is_sought, leaf in zip(sought, leaves, strict=True)
            )

        def objective(floats: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
            batch = batch_of(floats)
            gradient = jax.grad(lambda params: example_losses(loss_fn, params, batch, None)[0].mean())(params)
            mismatch = distance(gradient, observed)
            prior = sum(map(_total_variation, floats), jnp.float32(0))
            return mismatch + jnp.asarray(total_variation, jnp.float32) * prior, mismatch

        def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
            floats, state = carry
            (_, mismatch), gradient = jax.value_and_grad(objective, has_aux=True)(floats)
            changes, state = optimizer.update(gradient, state, floats)
            floats = optax.apply_updates(floats, changes)
            return ([_within(bounds, leaf) for leaf in floats], state), mismatch

        floats = [leaf for is_sought, leaf in zip(sought, leaves, strict=True) if is_sought]
        (floats, _), mismatches = jax.lax.scan(step, (floats, optimizer.init(floats)), None, length=steps)
        return Inversion(batch_of(floats), jnp.append(mismatches, objective(floats)[1]))

    return attack


def cosine_distance(gradient: PyTree, observed: PyTree) -> jax.Array:
    """One minus the cosine of the angle between two gradients, in [0, 2]; 1 if one is zero (Geiping et al. 2020).

    It ignores the gradients' lengths, whatever float32 holds, and so the learning rate and the clip behind an update.

    Args:
      gradient, observed: pytrees of floats of equal structure and shapes.

    Returns:
      float32 [].

    >>> print(cosine_distance(jnp.array([3.0, 0.0]), jnp.array([4.0, 4.0])).round(4))
    0.2929
    """
    gradient, observed = _in_units_of_the_largest(gradient), _in_units_of_the_largest(observed)
    return 1 - _dot(gradient, observed) / (_length(gradient) * _length(observed))


def squared_distance(gradient: PyTree, observed: PyTree) -> jax.Array:
    """The squared L2 distance of two gradients (Zhu, Liu and Han 2019, the objective of DLG).

    Args:
      gradient, observed: pytrees of floats of equal structure and shapes.

    Returns:
      float32 [].

    >>> print(squared_distance(jnp.array([3.0, 0.0]), jnp.array([4.0, 4.0])))
    17.0
    """
    difference = optax.tree.sub(*optax.tree.cast((gradient, observed), jnp.float32))
    return _dot(difference, difference)


def labels_from_gradient(gradient: jax.Array, count: int = 1) -> jax.Array:
    """The labels behind the gradient of a classifier's last layer (iDLG: Zhao et al. 2020, arXiv:2001.02610).

    Under softmax cross entropy the gradient of class c's logit is `p_c - 1` for the label and `p_c > 0` for all others.
    The bias's gradient shows its sign; the kernel's does where the layer's inputs are not negative (after a ReLU).

    | case                                  | result                                                              |
    |---------------------------------------|---------------------------------------------------------------------|
    | one example                           | its label, exactly                                                  |
    | several, no label twice               | the `count` most negative: all labels, where the model is unsure    |
    | a label twice in the batch            | counted once; another takes its place                               |
    | an update instead of a gradient       | wrong: negate it first                                              |

    Args:
      gradient: [..., classes]: of the bias, or of a kernel with classes last.
      count: how many labels, at most the number of classes.

    Returns:
      int32 [count], the surest first.

    Raises:
      ValueError: `count` is not from 1 to the number of classes.

    >>> print(labels_from_gradient(jnp.array([0.2, -0.7, 0.5])))
    [1]
    """
    checks.integer("count", count, at_most=gradient.shape[-1])
    summed = gradient.reshape(-1, gradient.shape[-1]).sum(0)
    return jnp.argsort(summed)[:count].astype(jnp.int32)


def dense_input(kernel_gradient: jax.Array, bias_gradient: jax.Array) -> jax.Array:
    """The input of a dense layer from its gradient, without any search (Phong et al. 2017, "Privacy-Preserving Deep
    Learning: Revisited and Enhanced").

    Of one example, `kernel_gradient[:, i] = x * bias_gradient[i]`: each unit i shows the input x as a quotient. This is
    the least-squares fit over all units, `kernel_gradient @ bias_gradient / |bias_gradient|^2`: the same without noise,
    and the best with equal noise on the kernel.

    | case                           | result                                                                |
    |--------------------------------|-----------------------------------------------------------------------|
    | one example, any later layers  | its input, exactly                                                    |
    | several examples               | a weighted mean of them, in which those with large gradients dominate |
    | a scaled gradient (an update)  | the same                                                              |
    | a bias gradient of zeros       | zeros                                                                 |
    | NaN or infinite anywhere       | not finite                                                            |

    Args:
      kernel_gradient: float [inputs, units].
      bias_gradient: float [units].

    Returns:
      float [inputs].

    >>> print(dense_input(jnp.array([[3.0, -1.0], [6.0, -2.0]]), jnp.array([3.0, -1.0])).round(3))
    [1. 2.]
    """
    largest = jnp.max(jnp.abs(bias_gradient), initial=0)
    scaled = ratio(bias_gradient, largest)  # whose square neither under- nor overflows
    return ratio(ratio(kernel_gradient, largest) @ scaled, scaled @ scaled)


def psnr(recovered: jax.Array, original: jax.Array, peak: float | jax.Array = 1.0) -> jax.Array:
    """Peak signal-to-noise ratio of each example, in decibels: `10 log10(peak^2 / mean squared error)`.

    On MNIST in [0, 1] an image of zeros scores about 10; above 20 a digit is plain to see; equal ones score infinity.

    Args:
      recovered, original: [batch, ...], example beside example, of any real dtypes.
      peak: the largest value of the data; 255 for bytes.

    Returns:
      float32 [batch].

    Raises:
      ValueError: if they differ in shape.

    >>> print(psnr(jnp.array([[0.1, 0.0]]), jnp.array([[0.0, 0.1]])).round(3))
    [20.]
    """
    if jnp.shape(recovered) != jnp.shape(original):
        raise ValueError(f"recovered must have original's shape {jnp.shape(original)}, got {jnp.shape(recovered)}")
    recovered, original = (jnp.asarray(one, jnp.float32) for one in (recovered, original))
    squared = jnp.square(recovered - original).reshape(len(original), -1)
    return 10 * jnp.log10(jnp.square(jnp.asarray(peak, squared.dtype)) / squared.mean(1))


def _in_units_of_the_largest(tree: PyTree) -> PyTree:
    """The tree, float32, over its largest magnitude, which counts as a constant: a cosine does not depend on it."""
    tree = optax.tree.cast(tree, jnp.float32)
    largest = jnp.stack([jnp.float32(0), *(jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(tree))]).max()
    return jax.tree.map(lambda leaf: ratio(leaf, jax.lax.stop_gradient(largest)), tree)


def _dot(first: PyTree, second: PyTree) -> jax.Array:
    return optax.tree.vdot(first, second)


def _length(tree: PyTree) -> jax.Array:
    """The L2 norm, with a floor that keeps the derivative at zero finite."""
    return jnp.sqrt(jnp.maximum(_dot(tree, tree), 1e-30))


def _total_variation(leaf: jax.Array) -> jax.Array:
    """The mean absolute difference of neighbours along the two axes after the first; 0 of what is no image."""
    if leaf.ndim < 3:
        return jnp.float32(0)
    return sum(jnp.abs(jnp.diff(leaf.astype(jnp.float32), axis=axis)).mean() for axis in (1, 2))


def _within(bounds: tuple[float, float] | None, leaf: jax.Array) -> jax.Array:
    return leaf if bounds is None else jnp.clip(leaf, *bounds)
