"""A recipe makes an algorithm of hyperparameters, the floats among them traced: one compilation serves all values."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.core import checks
from fedjax_edge.core.keys import RunStream, derive
from fedjax_edge.core.protocols import FederatedAlgorithm, PyTree, Sampler
from fedjax_edge.simulation.evaluation import Evaluation


class Setup(NamedTuple):
    """What a configuration may set beside its algorithm; what is `None` is that of the run or sweep."""

    algorithm: FederatedAlgorithm
    params: PyTree | Callable[[jax.Array], PyTree] | None = None
    sampler: Sampler | None = None
    evaluation: Evaluation | None = None


MakeAlgorithm = Callable[..., FederatedAlgorithm | Setup]
"""`make_algorithm(**hyperparameters)`: hyperparameters that are floats are traced when a run is compiled."""


class Recipe(NamedTuple):
    """An algorithm without the values of its traced hyperparameters; equal recipes share what is compiled."""

    make: FederatedAlgorithm | MakeAlgorithm
    static: tuple[tuple[str, Any], ...] = ()

    def __call__(self, traced: Mapping[str, PyTree]) -> Setup:
        """Returns what is made of these values, or of these tracers.

        Raises:
          TypeError: where a traced value is needed as a number; it belongs among the static ones.
        """
        if isinstance(self.make, FederatedAlgorithm):
            return Setup(self.make)
        with needed_as_numbers(traced):
            made = self.make(**dict(self.static), **traced)
        return made if isinstance(made, Setup) else Setup(made)

    def concrete(self, hyperparameters: Mapping[str, Any], default: Setup, key: jax.Array) -> Setup:
        """Returns what is made of given values, for what happens outside of tracing: the start, privacy claims.

        What it does not set is that of `default`; a function of parameters is given a key of the run's.
        """
        made = self.make if isinstance(self.make, FederatedAlgorithm) else self.make(**hyperparameters)
        own = made if isinstance(made, Setup) else Setup(made)
        setup = Setup(*(mine if one is None else one for one, mine in zip(own, default, strict=True)))
        return setup._replace(params=as_params(setup.params, key))


@contextmanager
def needed_as_numbers(traced: Collection[str]) -> Iterator[None]:
    """Within it, an error of JAX over a value that is needed as a number says which ones could be made static."""
    try:
        yield
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        if not traced:
            raise
        raise TypeError(
            "a number is needed where values are traced; if it is one of the hyperparameters "
            f"{sorted(traced)}, make it static: {str(error).splitlines()[0]}"
        ) from error


def as_params(params: PyTree | Callable[[jax.Array], PyTree], key: jax.Array) -> PyTree:
    """Returns parameters, or what a function of them makes of a key of the run's."""
    is_function = callable(params) and jax.tree_util.all_leaves([params])  # and no module of arrays
    return params(derive(key, RunStream.INIT)) if is_function else params


def split_hyperparameters(
    make: FederatedAlgorithm | MakeAlgorithm, hyperparameters: Mapping[str, Any], static: Collection[str] = ()
) -> tuple[Recipe, dict[str, jax.Array]]:
    """Returns the recipe, and the traced values, float32 [].

    Traced is what is a float, but for the names in `static`; the rest (integers, strings, functions, None) is part of
    the recipe.

    Raises:
      TypeError: for a static value or a maker of algorithms that cannot be hashed, or something that makes none.
      ValueError: for hyperparameters of an algorithm that is made already.
    """
    is_made = isinstance(make, FederatedAlgorithm)
    if not is_made and not callable(make):
        raise TypeError(f"algorithm must be a FederatedAlgorithm or a function that makes one, got {make!r}")
    if not checks.is_hashable(make):
        raise TypeError(f"algorithm must be hashable, since rounds are compiled for it, got {make!r}")
    if is_made:
        if hyperparameters:
            raise ValueError(
                f"hyperparameters {sorted(hyperparameters)} need a function that makes an algorithm of them"
            )
        return Recipe(make), {}
    static = {static} if isinstance(static, str) else set(static)
    traced = {
        name: jnp.float32(value) for name, value in hyperparameters.items() if name not in static and _is_float(value)
    }
    rest = tuple(sorted((name, value) for name, value in hyperparameters.items() if name not in traced))
    for name, value in rest:
        check_hashable(name, value)
    return Recipe(make, rest), traced


def check_hashable(name: str, value: Any) -> None:
    """Raises TypeError unless a hyperparameter's value can be hashed."""
    if not checks.is_hashable(value):
        raise TypeError(f"hyperparameter {name} must be a float or hashable, got {value!r}")


def _is_float(value: Any) -> bool:
    return isinstance(value, float | np.floating) or (
        isinstance(value, jax.Array | np.ndarray) and value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.floating)
    )
