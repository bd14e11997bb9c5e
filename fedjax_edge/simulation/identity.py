"""What a run is, in words: what two of them must have in common for one to go on, or stand, for the other."""

import functools
import hashlib
import inspect
import re
from collections.abc import Mapping
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.core.protocols import Population, PrivacyClaim, PyTree
from fedjax_edge.data import FederatedDataset, HostedDataset
from fedjax_edge.simulation.recipe import Setup

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
FINGERPRINTED = 1000  # rows, evenly spaced, of each array of examples


def describe_run(
    setup: Setup,
    key: jax.Array,
    hyperparameters: Mapping[str, Any],
    eval_every: int,
    delta: float | None,
    claim: PrivacyClaim | None,
    accounted_only: bool,
) -> dict[str, Any]:
    """Returns what two runs must have in common for one to go on where the other stopped, as JSON has it.

    Their populations and the shapes of their states are left for the caller to add.
    """
    algorithm, params, sampler, evaluation = setup
    return {
        "key": jax.device_get(jax.random.key_data(key)).tolist(),
        "initial parameters": _digest(params),
        **({} if claim is None else claim.mechanism),
        "sampler": repr(sampler.sampling),
        "cohort width": int(sampler.width),
        "evaluation": name_of(evaluation.loss_fn),
        **describe_shapes("evaluation", evaluation.columns),
        "evaluation examples": _digest(jax.tree.map(_some_rows, evaluation.columns)),
        "eval_every": eval_every,
        "delta": None if delta is None else float(delta),
        "accounted only": bool(accounted_only),
        **{f"hyperparameter {name}": name_of(value) for name, value in hyperparameters.items()},
        "algorithm": name_of(algorithm),
    }


def describe_population(population: Population | HostedDataset) -> dict[str, str]:
    """Returns what tells clients' data apart: shapes, and a fingerprint of some examples and of who holds how many."""
    data = population
    if isinstance(population, HostedDataset):  # which may go on with a run of the same data on the devices
        data = FederatedDataset(columns=population.columns, offsets=population.offsets.astype(np.int32))
    return {**describe_shapes("population", data), "examples": _digest(jax.tree.map(_some_rows, data))}


def _some_rows(leaf: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    if jnp.ndim(leaf):
        leaf = leaf[np.linspace(0, len(leaf) - 1, min(len(leaf), FINGERPRINTED)).astype(np.int32)]
    return without_key(leaf)


def describe_shapes(name: str, tree: PyTree) -> dict[str, str]:
    """Returns the dtypes and shapes of a pytree of arrays for the description of a run."""
    return {
        f"{name}{jax.tree_util.keystr(path)}": f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def name_of(value: Any) -> str:
    """Returns what stands for a value in a description: the same in every process, without addresses in memory.

    Of a function it is the name and what it closes over (but no globals, and not what it does), of an object its type
    and attributes, unless it says what it is by a `repr` of its own, and of an array a fingerprint. What is met again
    is its name and a number.
    """
    return _named(value, {})


def _named(value: Any, numbers: dict[int, int]) -> str:
    """`name_of`; `numbers` are those of the functions and objects met so far, by `id`."""
    if isinstance(value, functools.partial):
        given = [_named(one, numbers) for one in value.args]
        given += [f"{name}={_named(one, numbers)}" for name, one in value.keywords.items()]
        return f"{_named(value.func, numbers)}({', '.join(given)})"
    if isinstance(value, tuple):
        own = "" if type(value) is tuple else type(value).__name__
        return f"{own}({', '.join(_named(one, numbers) for one in value)})"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}({', '.join(sorted(map(name_of, value)))})"
    if isinstance(value, np.ndarray | jax.Array) and value.ndim:
        return f"{value.dtype}{list(value.shape)} {_digest(without_key(value))}"
    leaves, structure = jax.tree.flatten(value)
    if leaves and structure != jax.tree.structure(0):
        return f"{structure}({', '.join(_named(leaf, numbers) for leaf in leaves)})"

    made = inspect.unwrap(value, stop=inspect.isfunction)  # of a function that `jax.jit` compiles
    if inspect.isfunction(made):
        return _with(_closed_over(made), made, made.__qualname__, numbers)
    if inspect.ismethod(made):
        return f"{made.__qualname__}(self={_named(made.__self__, numbers)})"
    if type(value).__repr__ is object.__repr__:
        return _with(getattr(value, "__dict__", {}), value, type(value).__qualname__, numbers)
    return ADDRESS.sub("", getattr(value, "__qualname__", repr(value)))


def _with(parts: Mapping[str, Any], owner: Any, name: str, numbers: dict[int, int]) -> str:
    if not parts:
        return name
    if id(owner) in numbers:
        return f"{name}#{numbers[id(owner)]}"
    numbers[id(owner)] = len(numbers) + 1
    return f"{name}({', '.join(f'{part}={_named(one, numbers)}' for part, one in parts.items())})"


def _closed_over(function: FunctionType) -> dict[str, Any]:
    """Returns what a function holds beside its code: two that are made by one line may differ in this."""
    held = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            held[name] = cell.cell_contents
        except ValueError:  # not set yet
            continue
    if "<" in function.__qualname__:  # a lambda, or made within another function
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        held |= {f"default {i}": one for i, one in enumerate(defaults)}
    return held


def _digest(tree: PyTree) -> str:
    """Returns a short fingerprint of the values of a pytree of arrays."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        sha.update(np.ascontiguousarray(leaf).tobytes())
    return sha.hexdigest()[:16]


def without_key(leaf: jax.Array) -> jax.Array:
    """Returns keys as their data, and other arrays as they are."""
    return jax.random.key_data(leaf) if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key) else leaf
