"""Checks of arguments: clear errors for concrete values, while tracers pass."""

import math
import numbers
from collections.abc import Iterable, Mapping, Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.core.protocols import PyTree

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def _is_traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def _is_number(value: Any) -> bool:
    is_scalar_array = isinstance(value, (np.ndarray, jax.Array)) and value.ndim == 0
    return is_scalar_array or (isinstance(value, (numbers.Real, np.number)) and not isinstance(value, bool))


def _number(name: str, value: Any, valid: str, is_valid: Any) -> None:
    if _is_traced(value):
        return
    if not _is_number(value) or not is_valid(float(value)):
        raise ValueError(f"{name} must be {valid}, got {value!r}")


def positive(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a finite number above zero."""
    _number(name, value, "a finite number above 0", lambda v: math.isfinite(v) and v > 0)


def positive_float32(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a number above zero that is finite in float32."""
    _number(name, value, "a finite number above 0, of at most 3.4e38 (float32)", lambda v: 0 < v <= _LARGEST_FLOAT32)


def within(name: str, value: Any, least: float, most: float) -> None:
    """Raises ValueError unless `value` is a number from `least` to `most`."""
    _number(name, value, f"a number from {least:.3g} to {most:.3g}", lambda v: least <= v <= most)


def non_negative(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a finite number of at least zero."""
    _number(name, value, "a finite number of at least 0", lambda v: math.isfinite(v) and v >= 0)


def probability(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a number in (0, 1]."""
    _number(name, value, "a number in (0, 1]", lambda v: 0 < v <= 1)


def integer(name: str, value: Any, at_least: int = 1, at_most: int | None = None) -> None:
    """Raises ValueError unless `value` is a Python or NumPy integer within the bounds."""
    valid = f"an integer of at least {at_least}" if at_most is None else f"an integer from {at_least} to {at_most}"
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or value < at_least or (at_most is not None and value > at_most):
        raise ValueError(f"{name} must be {valid}, got {value!r}")


def listed(name: str, values: Any) -> None:
    """Raises ValueError unless `values` can be counted and gone through, as a list, a tuple or an array can."""
    is_listed = isinstance(values, Iterable) and isinstance(values, Sized) and getattr(values, "ndim", 1) > 0
    if not is_listed or isinstance(values, str | bytes | Mapping):
        raise ValueError(f"{name} must be a list, a tuple or an array of values, got {values!r}")


def prng_key(name: str, value: Any) -> None:
    """Raises TypeError unless `value` is one key of `jax.random`, typed or raw."""
    is_array = isinstance(value, jax.Array | np.ndarray)
    is_typed = is_array and jnp.issubdtype(value.dtype, jax.dtypes.prng_key) and value.ndim == 0
    is_raw = is_array and value.dtype == np.uint32 and value.ndim == 1
    if not is_typed and not is_raw:
        raise TypeError(f"{name} must be a key of jax.random, such as jax.random.key(0), got {value!r}")


def is_hashable(value: Any) -> bool:
    """Returns whether a value can be hashed, as what is compiled for must be."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def columns(name: str, tree: PyTree) -> int:
    """Returns the common length of all columns, leaves [examples, ...]; raises ValueError for others, or for none.

    So it does for 64-bit integers that JAX, which makes them 32-bit ones, would change.
    """
    lengths = {
        jax.tree_util.keystr(path): (np.shape(leaf) or (None,))[0]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise ValueError(f"{name}: all columns must be arrays [examples, ...] of one length, got {lengths}")
    length = next(iter(lengths.values()))
    if length == 0:
        raise ValueError(f"{name}: no examples; leave such clients out")
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, np.ndarray) and leaf.dtype in (np.int64, np.uint64) and leaf.size:
            held = jnp.iinfo(jax.dtypes.canonicalize_dtype(leaf.dtype))
            if leaf.min() < held.min or leaf.max() > held.max:
                raise ValueError(
                    f"{name}{jax.tree_util.keystr(path)} must hold integers from {held.min} to {held.max}, got "
                    f"some from {leaf.min()} to {leaf.max()}"
                )
    return length


def alike(name: str, tree: PyTree, like: PyTree, dtypes: bool = True) -> None:
    """Raises TypeError unless two pytrees have the same structure, shapes and, if asked for, dtypes."""

    def kinds(one: PyTree) -> tuple:
        leaves, structure = jax.tree.flatten(one)
        return structure, [f"{jnp.result_type(leaf) if dtypes else ''}{list(jnp.shape(leaf))}" for leaf in leaves]

    got, wanted = kinds(tree), kinds(like)
    if got != wanted:
        raise TypeError(f"{name} must be of the kind {wanted}, got {got}")


def float_tree(name: str, tree: PyTree) -> None:
    """Raises TypeError unless every leaf of `tree` is an array of floats, naming the leaf that is not."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} has dtype {dtype}; every leaf must be floating point "
                "(keep integers, such as step counters, out of what is trained and sent)"
            )
