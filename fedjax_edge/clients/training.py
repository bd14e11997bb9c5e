"""Local training: shuffled mini-batches of a client's own examples, as many steps as its own data needs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_edge.core import checks
from fedjax_edge.core.keys import TrainingStream, derive
from fedjax_edge.core.losses import example_losses, masked_sum, masked_sums, take_rows
from fedjax_edge.core.narrow import flip_narrow
from fedjax_edge.core.permutation import permutation
from fedjax_edge.core.protocols import Examples, LossFn, Mean, PyTree
from fedjax_edge.core.trees import at_least_float32, cast_floats_like

SHUFFLE_BLOCK = 128  # examples whose order is drawn at once: drawn within the step, XLA would do it for every column
FULL_BATCH_CHUNK = 64  # examples whose gradient is taken at once, where a batch is all of a client's data

GradientFn = Callable[[PyTree, jax.Array], tuple[PyTree, dict[str, Mean]]]

BatchGradientFn = Callable[..., tuple[PyTree, dict[str, Mean]]]
"""`gradient(loss_fn, params, batch, mask, count, key) -> (gradient, sums of the metrics)`: `batch_gradient` is one."""


class Trained(NamedTuple):
    """What local training ends with."""

    params: PyTree
    steps: jax.Array  # int32 []
    metrics: dict[str, Mean]  # over the examples of all steps, each seen before its step


TrainFn = Callable[..., Trained]
"""`train(params, examples, key, adjust=None) -> Trained`; `adjust(gradient, params) -> gradient` changes each step's
gradient, as a proximal term or a control variate does."""


def local_training(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int | None,
    epochs: int | None = None,
    steps: int | None = None,
    gradient: BatchGradientFn | None = None,
) -> TrainFn:
    """Returns a function that trains parameters on one client's examples, for client updates to build on.

    Every epoch visits the examples once in a new random order; its last batch holds what is left and is averaged over
    that. The optimizer's state is made fresh each time. A client without examples takes no step.

    Args:
      loss_fn: `loss_fn(params, batch, key)` gives one loss per example.
      optimizer: any optax optimizer.
      batch_size: examples a step; `None` takes all of the client's examples in each step.
      epochs: passes over the client's examples; its own data decides how many steps those are.
      steps: or else how many steps, in as many epochs as they take.
      gradient: what makes the gradient of a mini-batch, by default `batch_gradient`; such as that of `privacy.dp_sgd`.

    Raises:
      ValueError: for a number below one, unless exactly one of `epochs` and `steps` is given, or for a `gradient`
        without a `batch_size`.
      TypeError: for an optimizer that is not one of optax.
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer must be an optax optimizer, such as optax.sgd(0.1), got {optimizer!r}")
    if (epochs is None) == (steps is None):
        raise ValueError(f"give exactly one of epochs and steps, got epochs={epochs!r} and steps={steps!r}")
    for name, value in {"batch_size": batch_size, "epochs": epochs, "steps": steps}.items():
        if value is not None:
            checks.integer(name, value)
    batch_size, epochs, steps = (None if one is None else int(one) for one in (batch_size, epochs, steps))
    if gradient is not None and batch_size is None:
        raise ValueError("a gradient of mini-batches needs a batch_size: a full batch is taken in chunks")
    gradient = gradient or batch_gradient
    traced = jax.jit(lambda *arguments: loss_fn(*arguments), inline=True)  # once, and anew for another training

    def train(params: PyTree, examples: Examples, key: jax.Array, adjust: Callable | None = None) -> Trained:
        batches = jnp.int32(1) if batch_size is None else _ceil_div(examples.size, batch_size)
        num_steps = jnp.where(examples.size > 0, steps or epochs * batches, 0).astype(jnp.int32)

        def take_step(carry: tuple, gradient_fn: GradientFn, step: jax.Array) -> tuple:
            params, optimizer_state, metrics = flip_narrow(carry, start)
            direction, sums = gradient_fn(params, derive(key, TrainingStream.LOSS, step))
            direction = direction if adjust is None else adjust(direction, params)
            updates, new_state = optimizer.update(direction, optimizer_state, params)
            params, metrics = optax.apply_updates(params, updates), optax.tree.add(metrics, sums)
            return flip_narrow((params, cast_floats_like(new_state, optimizer_state), metrics), start)

        def full_batch_step(step: jax.Array, carry: tuple) -> tuple:
            return take_step(carry, lambda p, k: full_batch_gradient(traced, p, examples, k), step)

        def block(number: jax.Array, carry: tuple) -> tuple:
            epoch, first_batch = jax.lax.div(number, blocks), jax.lax.rem(number, blocks) * block_batches
            first_step = epoch * batches + first_batch
            shuffle = permutation(derive(key, TrainingStream.BATCHES, epoch), examples.size)
            first = (first_batch + jnp.arange(block_batches, dtype=jnp.int32)) * batch_size
            positions = first[:, None] + jnp.arange(batch_size, dtype=jnp.int32)[None, :]
            rows = examples.start + shuffle(jnp.minimum(positions, examples.size - 1))

            def mini_batch_step(batch: jax.Array, carry: tuple) -> tuple:
                columns, mask = take_rows(examples.columns, rows[batch]), positions[batch] < examples.size
                count = jnp.maximum(mask.sum(dtype=jnp.float32), 1.0)
                return take_step(carry, lambda p, k: gradient(traced, p, columns, mask, count, k), first_step + batch)

            steps_left = jnp.minimum(batches - first_batch, num_steps - first_step)
            return jax.lax.fori_loop(0, jnp.minimum(block_batches, steps_left), mini_batch_step, carry)

        no_metrics = zero_metrics(traced, params, examples.columns, key, batch_size or FULL_BATCH_CHUNK)
        start = (params, optimizer.init(params), no_metrics)
        carry = flip_narrow(start)
        if batch_size is None:
            carry = jax.lax.fori_loop(0, num_steps, full_batch_step, carry)
        else:
            block_batches = max(1, SHUFFLE_BLOCK // batch_size)
            blocks = _ceil_div(batches, block_batches)  # of an epoch
            last_epoch = jnp.maximum(_ceil_div(num_steps, jnp.maximum(batches, 1)) - 1, 0)
            blocks_of_last = _ceil_div(num_steps - last_epoch * batches, block_batches)
            carry = jax.lax.fori_loop(0, last_epoch * blocks + blocks_of_last, block, carry)
        params, _, metrics = flip_narrow(carry, start)
        return Trained(params, num_steps, metrics)

    return train


def batch_gradient(
    loss_fn: LossFn, params: PyTree, batch: PyTree, mask: jax.Array, count: jax.Array, key: jax.Array
) -> tuple[PyTree, dict[str, Mean]]:
    """Returns the gradient of the sum of the real examples' losses divided by `count`, and the metrics' sums."""

    def loss(flipped: PyTree) -> tuple[jax.Array, dict[str, Mean]]:
        losses, metrics = example_losses(loss_fn, flip_narrow(flipped, params), batch, key)
        return masked_sum(losses, mask) / count, masked_sums(metrics, mask)

    gradient, sums = jax.grad(loss, has_aux=True)(flip_narrow(params))
    # Without the barrier XLA would take the gradient the other way, and the step's new parameters with it.
    return flip_narrow(jax.lax.optimization_barrier(gradient), params), sums


def full_batch_gradient(
    loss_fn: LossFn, params: PyTree, examples: Examples, key: jax.Array
) -> tuple[PyTree, dict[str, Mean]]:
    """Returns the gradient of the mean loss over all of a client's examples, chunk by chunk, and the metrics' sums."""
    count = jnp.maximum(examples.size.astype(jnp.float32), 1.0)

    def add_chunk(chunk: jax.Array, carry: tuple) -> tuple:
        position = chunk * FULL_BATCH_CHUNK + jnp.arange(FULL_BATCH_CHUNK, dtype=jnp.int32)
        batch = take_rows(examples.columns, examples.start + jnp.minimum(position, examples.size - 1))
        chunk_key = jax.random.fold_in(key, chunk)
        gradient, sums = batch_gradient(loss_fn, params, batch, position < examples.size, count, chunk_key)
        return optax.tree.add(carry, (at_least_float32(gradient), sums))

    no_metrics = zero_metrics(loss_fn, params, examples.columns, key, FULL_BATCH_CHUNK)
    zeros = (optax.tree.zeros_like(at_least_float32(params)), no_metrics)
    gradient, sums = jax.lax.fori_loop(0, _ceil_div(examples.size, FULL_BATCH_CHUNK), add_chunk, zeros)
    return optax.tree.cast_like(gradient, params), sums


def zero_metrics(loss_fn: LossFn, params: PyTree, columns: PyTree, key: jax.Array, batch_size: int) -> dict[str, Mean]:
    """Returns the metrics of no examples, checking on the way what `loss_fn` returns for a batch."""
    rows = jnp.zeros(batch_size, jnp.int32)
    metrics = jax.eval_shape(lambda: example_losses(loss_fn, params, take_rows(columns, rows), key)[1])
    return {name: Mean(jnp.float32(0), jnp.float32(0)) for name in metrics}


def _ceil_div(count: jax.Array, by: jax.Array | int) -> jax.Array:
    """Returns `count / by` rounded up, of a count that is not negative: `//` compiles a dozen kernels for signs."""
    count, by = jnp.asarray(count, jnp.int32), jnp.asarray(by, jnp.int32)
    return jax.lax.div(count + (by - 1), by)
