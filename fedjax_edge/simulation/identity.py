"""What a run is, in words: what two of them must have in common for one to go on, or stand, for the other."""

import dataclasses
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

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
LARGE = 2**26  # bytes of an array of which some rows make the fingerprint
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
        "sampler draws by": name_of(sampler.sample),
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
    count = len(leaf) if np.ndim(leaf) else 0
    return leaf[np.linspace(0, count - 1, min(count, FINGERPRINTED)).astype(np.int32)] if count else leaf


def describe_shapes(name: str, tree: PyTree) -> dict[str, str]:
    """Returns the dtypes and shapes of a pytree of arrays for the description of a run."""
    return {
        f"{name}{jax.tree_util.keystr(path)}": f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def name_of(value: Any) -> str:
    """Returns what stands for a value in a description: the same in every process, without addresses in memory.

    Of a function it is the name and what it closes over (but no globals, and not what it does), of an object its type
    and attributes, unless its class says what it is by a `repr` of its own, and of an array a fingerprint. What is met
    again is its name and a number.
    """
    return ADDRESS.sub("", _named(value, {}))


def _named(value: Any, numbers: dict[int, int]) -> str:
    """`name_of`; `numbers` are those of the functions and objects met so far, by `id`."""
    if isinstance(value, functools.partial):
        given = {**dict(enumerate(value.args)), **value.keywords}
        return f"{_named(value.func, numbers)}({_listed(given, numbers)})"
    if isinstance(value, list | tuple):
        own = "" if type(value) is tuple else type(value).__name__
        return f"{own}({', '.join(_named(one, numbers) for one in value)})"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}({', '.join(sorted(map(name_of, value)))})"
    if isinstance(value, Mapping):
        items = sorted((name_of(key), one) for key, one in value.items())
        return f"{type(value).__name__}({_listed(dict(items), numbers)})"
    if isinstance(value, np.ndarray) and value.dtype == object:
        return f"object{list(value.shape)} {_named(value.ravel().tolist(), numbers)}"
    if isinstance(value, np.ndarray | jax.Array) and value.ndim:
        return f"{value.dtype}{list(value.shape)} {_digest(_some_rows(value) if value.nbytes > LARGE else value)}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # a linen module is one
        fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        return _with(fields, value, type(value).__qualname__, numbers)
    leaves, structure = jax.tree.flatten(value)
    if leaves and structure != jax.tree.structure(0):
        return f"{structure}({', '.join(_named(leaf, numbers) for leaf in leaves)})"

    made = inspect.unwrap(value, stop=inspect.isfunction)  # of what `jax.jit` compiles
    if made is not value:
        return _named(made, numbers)
    if inspect.isfunction(value):
        return _with(_closed_over(value), value, value.__qualname__, numbers)
    if inspect.ismethod(value):
        return f"{value.__qualname__}(self={_named(value.__self__, numbers)})"
    if type(value).__repr__ is object.__repr__:
        return _with(_attributes(value), value, type(value).__qualname__, numbers)
    return getattr(value, "__qualname__", repr(value))


def _with(parts: Mapping[str, Any], owner: Any, name: str, numbers: dict[int, int]) -> str:
    if not parts:
        return name
    if id(owner) in numbers:
        return f"{name}#{numbers[id(owner)]}"
    numbers[id(owner)] = len(numbers) + 1
    return f"{name}({_listed(parts, numbers)})"


def _listed(parts: Mapping[Any, Any], numbers: dict[int, int]) -> str:
    """Returns "name=value, name=value", or values alone where numbers are their names."""
    return ", ".join(
        f"{'' if isinstance(name, int) else f'{name}='}{_named(one, numbers)}" for name, one in parts.items()
    )


def _attributes(value: Any) -> dict[str, Any]:
    """Returns an object's attributes, but for what it only remembers of a computation."""
    slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()))
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    return {
        name: one
        for name, one in held.items()
        if not isinstance(getattr(type(value), name, None), functools.cached_property)
    }


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
    for leaf in jax.tree.leaves(tree):
        sha.update(np.ascontiguousarray(jax.device_get(without_key(leaf))).tobytes())
    return sha.hexdigest()[:16]


def without_key(leaf: jax.Array) -> jax.Array:
    """Returns keys as their data, and other arrays as they are."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf
