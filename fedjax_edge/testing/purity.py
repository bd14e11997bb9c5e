"""Whether a function is pure, compiles once, and gives back a state of the kind that it was given."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from fedjax_edge.core.protocols import PyTree
from fedjax_edge.testing.comparing import assert_close, assert_same_kind, name_of, named_leaves

_COMPILED = "/jax/core/compile/backend_compile_duration"


def assert_pure(fn: Callable[..., PyTree], *arguments: PyTree, rtol: float | None = None) -> None:
    """Raises AssertionError unless `fn` is a pure function of its arguments.

    It is traced anew, compiled and called, and called once as it is. All must give the same (what is traced twice bit
    for bit: a count kept in Python or a draw of NumPy's tells them apart), no tracer may be left behind
    (`jax.checking_leaks`), nothing may be printed or called back from within (the jaxpr's effects), and the arguments,
    lists and dictionaries included, must be as they were.

    Not seen: a side effect that changes neither a result nor an argument and that keeps no tracer, such as a count.

    Args:
      fn: `fn(*arguments) -> pytree`.
      arguments: pytrees of arrays; bind what is none (`functools.partial`).
      rtol: between compiled and not, relative to the largest number of a leaf; by default 64 units in the last place.
    """
    before = jax.tree.map(np.array, _without_keys(arguments)), jax.tree.structure(arguments)
    jaxprs = []
    for _ in range(2):
        try:
            with _old_objects_frozen(), jax.checking_leaks():
                jaxprs.append(jax.make_jaxpr(lambda *inputs: fn(*inputs))(*arguments))
        except Exception as error:
            if "Leaked" in str(error):
                raise AssertionError(f"a tracer outlives the call: {error}") from error
            raise
        assert not jaxprs[-1].effects, f"the function has side effects: {sorted(map(repr, jaxprs[-1].effects))}"
    compiled = jax.jit(lambda *inputs: fn(*inputs))(*arguments)
    if not _is_same_program(*jaxprs):  # which need not mean another result
        again = jax.jit(lambda *inputs: fn(*inputs))(*arguments)
        assert_close("the second call with the same arguments", again, compiled, rtol=0.0)
    assert_close("the call that is not compiled", fn(*arguments), compiled, rtol)
    assert jax.tree.structure(arguments) == before[1], (
        f"an argument was changed: the structure is {jax.tree.structure(arguments)}, and was {before[1]}"
    )
    assert_close("the arguments after the call", _without_keys(arguments), before[0], rtol=0.0)


@contextlib.contextmanager
def _old_objects_frozen() -> Iterator[None]:
    """The check of leaks asks every object of the process who refers to a trace; only those made since need asking."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _is_same_program(first: ClosedJaxpr, second: ClosedJaxpr) -> bool:
    same_consts = [np.array_equal(a, b) for a, b in zip(first.consts, second.consts, strict=False)]
    return str(first) == str(second) and len(first.consts) == len(second.consts) and all(same_consts)


def _without_keys(tree: PyTree) -> list[np.ndarray]:
    return list(named_leaves(tree).values())


def assert_compiles_once(fn: Callable[..., Any], *calls: tuple) -> None:
    """Raises AssertionError if any call but the first compiles anything.

    What costs a compilation: a Python number that is static, or that the first state holds and the second does not; a
    shape or dtype that follows from a value; a component made anew, and so compiled anew, at each call.

    Args:
      fn: called as it is: pass `jax.jit(fn)`, or a function that calls compiled ones.
      calls: at least two tuples of arguments (ValueError), of the same shapes and dtypes, with other values and keys.

    >>> import jax.numpy as jnp
    >>> assert_compiles_once(jax.jit(lambda x: 2 * x), (jnp.float32(1),), (jnp.float32(2),))
    """
    if len(calls) < 2:
        raise ValueError(f"it takes two calls to see a second compilation, got {len(calls)}")
    jax.block_until_ready(fn(*calls[0]))
    for number, arguments in enumerate(calls[1:], start=2):
        with _Compilations() as compilations:
            jax.block_until_ready(fn(*arguments))
        assert not compilations.count, (
            f"call {number} of {len(calls)} compiled {compilations.count} program(s) again; beyond their values, its "
            f"arguments differ from the first call's in: {_differences(arguments, calls[0]) or 'nothing'}"
        )


class _Compilations:
    """Counts what XLA compiles within a `with`."""

    def __enter__(self) -> "_Compilations":
        self.count, self.is_open = 0, True
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def __exit__(self, *error: object) -> None:
        self.is_open = False  # older versions of JAX cannot forget a listener
        if hasattr(jax.monitoring, "unregister_event_duration_listener"):
            jax.monitoring.unregister_event_duration_listener(self._heard)

    def _heard(self, event: str, seconds: float, **details: object) -> None:
        self.count += self.is_open and event == _COMPILED


def _differences(arguments: PyTree, first: PyTree) -> str:
    found, wanted = _kinds(arguments), _kinds(first)
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    return "; ".join(f"{name}: {found.get(name)}, at first {wanted.get(name)}" for name in names)


def _kinds(tree: PyTree) -> dict[str, str]:
    """Shape, dtype and weakness of every leaf's type, by its place."""
    kinds = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        kind = jax.typeof(leaf)
        weak = " of a Python scalar's weak type" if getattr(kind, "weak_type", False) else ""
        kinds[name_of(path)] = f"{kind.dtype}{list(kind.shape)}{weak}"
    return kinds


def assert_preserves_state(step: Callable[[PyTree], PyTree], state: PyTree, calls: int = 2) -> None:
    """Raises AssertionError unless the state keeps its structure, shapes, dtypes and weak types, call after call.

    A state that changes its kind costs a compilation, and fails under `jax.lax.scan`; one that starts as the Python
    number `0.0` does. Nothing is computed: the kinds are those of `jax.eval_shape`.

    Args:
      step: `step(state) -> state`; bind what else it takes, and drop what else it returns.
      state: the first.
      calls: how many.

    >>> import jax.numpy as jnp
    >>> assert_preserves_state(lambda count: count + 1, jnp.int32(0))
    """
    expected = current = jax.eval_shape(lambda tree: tree, state)
    python = _kinds(state)
    for number in range(1, calls + 1):
        current = jax.eval_shape(step, current)
        what = f"the state after {number} call(s)"
        assert_same_kind(what, current, expected)
        for (path, after), before in zip(
            jax.tree_util.tree_leaves_with_path(current), jax.tree.leaves(expected), strict=True
        ):
            name = name_of(path)
            weak = _is_weak(before), _is_weak(after)
            assert weak[0] == weak[1], (
                f"{what}: leaf {name} is of a {'weak' if weak[1] else 'strong'} type, and was {python[name]}; "
                "make it an array of a given dtype, such as jnp.zeros(())"
            )


def _is_weak(leaf: jax.ShapeDtypeStruct) -> bool:
    return bool(getattr(leaf, "weak_type", False))
