"""DP-SGD on the device: the gradient of a batch with each example's clipped, and noise in every step."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_edge.core import checks
from fedjax_edge.core.losses import example_losses, masked_sums
from fedjax_edge.core.protocols import (
    Accountant,
    LossFn,
    Mean,
    PrivacyClaim,
    PrivacyError,
    PyTree,
    Release,
    Sampling,
)
from fedjax_edge.core.trees import at_least_float32, zero_unless
from fedjax_edge.privacy.accounting import (
    REPLACE_EXAMPLE,
    check_question,
    gaussian_epsilon,
    in_words,
    most_participations,
)
from fedjax_edge.privacy.clipping import check_clip_norm, clip_by_norm, total_norm
from fedjax_edge.privacy.noise import normal


class ExampleMechanism(NamedTuple):
    """Local training that is private for single examples: what makes its gradients, and what may be claimed of it.

    The claim holds for `clients.local_training` with exactly these `batch_size`, `epochs` and `gradient`;
    `algorithms.fedavg_dp_sgd` puts them together.
    """

    gradient: Callable[..., tuple[PyTree, dict[str, Mean]]]  # (loss_fn, params, batch, mask, count, key)
    batch_size: int
    epochs: int
    accountant: Accountant


def dp_sgd(
    clip_norm: PyTree, noise_multiplier: float | jax.Array, *, batch_size: int, epochs: int, chunk: int = 16
) -> ExampleMechanism:
    """DP-SGD for the batches of `clients.local_training`: shuffled, disjoint, each example once an epoch.

    A step's gradient is `(sum_i clip(gradient of loss i, S) + z S N(0, I)) / batch_size`. The last batch of an epoch
    may be smaller and is divided by `batch_size` all the same, lest its noise grow.

    Whoever sees all that a client sends learns at most the following about any one of its examples. Replacing it
    changes one step of each epoch, where the sum moves by at most 2 S. The other steps are alike whatever that example
    is, so that an epoch is one Gaussian mechanism with multiplier z / 2 (parallel composition), and E epochs in each of
    T rounds compose E T of them. Batches that are shuffled get no Poisson number: none is claimed.

    | sampling of clients                                      | rounds T of one client, of so many                    |
    |----------------------------------------------------------|-------------------------------------------------------|
    | `CyclicSampling`                                         | its turns                                             |
    | `FullParticipation`, `PoissonSampling`, `FixedSampling`  | all: who takes part is no secret from the server      |
    | `None`                                                   | refused: a client might be drawn twice in a round     |

    | batch                                | gradient                                                                  |
    |--------------------------------------|---------------------------------------------------------------------------|
    | an example's gradient is not finite  | that example adds nothing                                                 |
    | padding                              | adds nothing                                                              |
    | narrower than float32                | clipped, summed and noised in float32, then cast to the parameters' dtype |

    How many examples a client holds is not hidden, nor is what is shown of training (losses, accuracy).

    Args:
      clip_norm: S, the bound of one example's gradient, above 0; or a tree of bounds, as in `clip_by_norm`.
      noise_multiplier: z, the standard deviation of the noise over S; 0 for none, and then no claim.
      batch_size: examples a step, at least 1.
      epochs: passes over the client's examples in each round, at least 1.
      chunk: how many examples' gradients are held at once, at least 1.

    Raises:
      ValueError: an argument is out of range.

    Source: Abadi et al., "Deep Learning with Differential Privacy" (CCS 2016, arXiv:1607.00133), Algorithm 1, with
    disjoint batches in the place of random ones.

    Example:
      >>> from fedjax_edge.core.protocols import FullParticipation
      >>> mechanism = dp_sgd(clip_norm=1.0, noise_multiplier=8.0, batch_size=10, epochs=2)
      >>> claim = mechanism.accountant(FullParticipation(100), rounds=2, delta=1e-5)
      >>> print(round(claim.epsilon, 2), claim.relation)
      1.99 replace one example of one client
    """
    check_clip_norm(clip_norm)
    checks.non_negative("noise_multiplier", noise_multiplier)
    for name, value in {"batch_size": batch_size, "epochs": epochs, "chunk": chunk}.items():
        checks.integer(name, value)

    def gradient(
        loss_fn: LossFn, params: PyTree, batch: PyTree, mask: jax.Array, count: jax.Array, key: jax.Array
    ) -> tuple[PyTree, dict[str, Mean]]:
        loss_key, noise_key = jax.random.split(key)

        def one(row: jax.Array) -> tuple[PyTree, dict[str, Mean]]:
            example = jax.tree.map(lambda column: jnp.asarray(column)[row][None], batch)

            def loss(params: PyTree) -> tuple[jax.Array, dict[str, jax.Array]]:
                losses, metrics = example_losses(loss_fn, params, example, jax.random.fold_in(loss_key, row))
                return losses[0], metrics

            own, metrics = jax.grad(loss, has_aux=True)(params)
            clipped = clip_by_norm(at_least_float32(own), clip_norm)
            is_real = mask[row]
            return zero_unless(is_real, clipped), masked_sums(metrics, is_real[None])

        def add_chunk(totals: PyTree, rows: jax.Array) -> tuple[PyTree, None]:
            several = jax.vmap(one)(jnp.minimum(rows, mask.size - 1))
            several = jax.vmap(zero_unless)(rows < mask.size, several)
            return optax.tree.add(totals, jax.tree.map(lambda leaf: functools.reduce(jnp.add, leaf), several)), None

        width = min(chunk, mask.size)
        rows = jnp.arange(-(-mask.size // width) * width, dtype=jnp.int32).reshape(-1, width)
        zeros = optax.tree.zeros_like(jax.eval_shape(one, jnp.int32(0)))
        (total, metrics), _ = jax.lax.scan(add_chunk, zeros, rows)

        def noisy(leaf: jax.Array, draw: jax.Array, param: jax.Array) -> jax.Array:
            scale = jnp.asarray(noise_multiplier, leaf.dtype) * jnp.asarray(total_norm(clip_norm), leaf.dtype)
            return ((leaf + scale * draw) / batch_size).astype(jnp.result_type(param))

        return jax.tree.map(noisy, total, optax.tree.random_like(noise_key, total, normal), params), metrics

    return ExampleMechanism(gradient, int(batch_size), int(epochs), _accountant(noise_multiplier, int(epochs)))


def _accountant(noise_multiplier: float | jax.Array, epochs: int) -> Accountant:
    def accountant(sampling: Sampling, rounds: int, delta: float) -> PrivacyClaim:
        check_question(noise_multiplier, rounds, delta)
        most = most_participations(sampling, rounds)
        releases = epochs * most
        multiplier = float(noise_multiplier) / 2
        epsilon = gaussian_epsilon(multiplier / math.sqrt(releases), delta) if releases else 0.0
        if not math.isfinite(epsilon):
            raise PrivacyError(f"no finite epsilon for {noise_multiplier=}, {releases} epochs, delta={delta}")
        return PrivacyClaim(
            epsilon=epsilon,
            delta=float(delta),
            relation=REPLACE_EXAMPLE,
            sampling=f"{in_words(sampling)}; {epochs} epochs a round, each example once an epoch in disjoint batches",
            accountant=f"analytic Gaussian of at most {releases} epochs of a client, each by parallel composition",
            rounds=int(rounds),
            noise_multiplier=float(noise_multiplier),
            release=Release(multiplier, releases),
        )

    return accountant
