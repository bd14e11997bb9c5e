"""The cohort of a round: what a sampler draws, checked against what it says."""

import jax
import jax.numpy as jnp

from fedjax_edge.core import checks
from fedjax_edge.core.keys import RunStream, derive
from fedjax_edge.core.protocols import Cohort, PrivacyError, Sampler


def check_sampler(sampler: Sampler, num_clients: int) -> None:
    """Raises unless a sampler draws from a population of this size, and describes itself as what it is.

    Raises:
      TypeError: for a part that cannot be hashed.
      ValueError: for another population, or an empty cohort.
      PrivacyError: for a description, from which a claim would follow, of other numbers.
    """
    for name, value in sampler._asdict().items():
        if not checks.is_hashable(value):
            raise TypeError(f"sampler.{name} must be hashable, since rounds are compiled for it, got {value!r}")
    if sampler.num_clients != num_clients:
        raise ValueError(f"the sampler draws from {sampler.num_clients} clients; there are {num_clients}")
    checks.integer("sampler.width", sampler.width)
    described = sampler.sampling
    if described is None:
        return
    cohort_size = getattr(described, "cohort_size", sampler.width)  # where it is fixed, chance counts on just so many
    if (described.num_clients, cohort_size) != (num_clients, sampler.width):
        raise PrivacyError(
            f"the sampler draws at most {sampler.width} of {num_clients} clients, and describes itself as {described}"
        )


def draw(sampler: Sampler, run_key: jax.Array, number: jax.Array) -> Cohort:
    """Returns the cohort of round `number`, int32 [], of a run.

    Raises:
      ValueError: (while tracing) unless ids are integers and presence is bool, both [sampler.width].
    """
    cohort = Cohort(*map(jnp.asarray, sampler.sample(derive(run_key, RunStream.COHORT, number), number)))
    ids, present = cohort
    kinds = jnp.issubdtype(ids.dtype, jnp.integer) and present.dtype == jnp.bool_
    if not kinds or not ids.shape == present.shape == (sampler.width,):
        raise ValueError(
            f"a sampler of width {sampler.width} must draw ids, int32 [width], and who is present, bool [width], got "
            f"{ids.dtype}{list(ids.shape)} and {present.dtype}{list(present.shape)}"
        )
    return Cohort(ids.astype(jnp.int32), present)
