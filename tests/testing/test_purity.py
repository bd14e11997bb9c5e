"""Impure functions, second compilations and states that change their kind are found."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.testing import assert_compiles_once, assert_preserves_state, assert_pure

KEY = jax.random.key(0)
X = jnp.arange(4.0)


def test_pure_functions():
    assert_pure(lambda tree, key: {**tree, "a": tree["a"] + key}, {"a": X, "b": {}}, jnp.float32(1))
    assert_pure(lambda tree: tree["x"][0] + jnp.float32(1), {"x": [np.float32(2)]})


def planted(name):
    """Impure functions, made anew for each test."""
    kept, count = [], iter(range(100))
    rng = np.random.default_rng(0)

    def changes_its_argument(tree):
        tree["more"] = tree["x"]
        return tree["x"]

    def writes_into_its_argument(x):
        if isinstance(x, np.ndarray):
            x[0] = 7
        return jnp.asarray(x) * 0

    return {
        "counts": (lambda x: x + next(count), X),
        "NumPy's draws": (lambda x: x + rng.uniform(), X),
        "keeps a tracer": (lambda x: kept.append(x * 2) or x, X),
        "prints": (lambda x: jax.debug.print("{}", x) or x, X),
        "other when compiled": (lambda x: x + (0.0 if isinstance(x, jax.core.Tracer) else 1.0), X),
        "changes its argument": (changes_its_argument, {"x": X}),
        "writes into its argument": (writes_into_its_argument, np.arange(1.0, 4.0, dtype=np.float32)),
    }[name]


IMPURE = {
    "counts": "the second call with the same arguments: leaf itself is",
    "NumPy's draws": "the second call with the same arguments: leaf itself is",
    "keeps a tracer": "a tracer outlives the call: Leaked",
    "prints": "the function has side effects: .*Debug",
    "other when compiled": "the call that is not compiled: leaf itself is",
    "changes its argument": "an argument was changed: the structure is",
    "writes into its argument": r"the arguments after the call: leaf \[0\] is 7 at \(0,\), expected 1",
}


@pytest.mark.parametrize("bug", IMPURE)
def test_impure_functions(bug):
    function, argument = planted(bug)
    with pytest.raises(AssertionError, match=IMPURE[bug]):
        assert_pure(function, argument)


def test_an_error_of_the_functions_own_passes_through():
    with pytest.raises(TypeError):
        assert_pure(lambda x: x + "1", X)


def test_one_compilation():
    step = jax.jit(lambda state, rate, key: state + rate * jax.random.uniform(key, state.shape))
    keys = jax.random.split(KEY, 3)
    assert_compiles_once(step, (X, 0.1, keys[0]), (X + 1, 0.2, keys[1]), (X, jnp.float32(3).item(), keys[2]))


@partial(jax.jit, static_argnums=1)
def static_rate(x, rate):
    return rate * x


def jits_anew(x, rate):
    return jax.jit(lambda x: rate * x)(x)


def follows_a_value(x, rate):
    return jnp.sum(x[: int(rate)])


@jax.jit
def counting(state, x):
    return state + x.sum()


RECOMPILING = {
    "a static number": (static_rate, (X, 0.125), (X, 0.25)),
    "jitted at each call": (jits_anew, (X, 0.125), (X, 0.25)),
    "a shape from a value": (follows_a_value, (X, 2.0), (X, 3.0)),
    "a Python number that becomes an array": (counting, (0.0, X), (jnp.float32(6), X)),
    "another dtype": (counting, (jnp.float32(0), X), (jnp.bfloat16(0).astype(jnp.bfloat16), X.astype(jnp.bfloat16))),
}


@pytest.mark.parametrize("bug", RECOMPILING)
def test_a_second_compilation(bug):
    function, *calls = RECOMPILING[bug]
    with pytest.raises(AssertionError, match=r"call 2 of 2 compiled \d+ program") as caught:
        assert_compiles_once(function, *calls)
    if bug == "a Python number that becomes an array":
        assert "[0]: float32[], at first float32[] of a Python scalar's weak type" in str(caught.value)
    with pytest.raises(ValueError, match="it takes two calls to see a second compilation, got 1"):
        assert_compiles_once(function, calls[0])


def test_a_state_that_keeps_its_kind():
    first = {"count": jnp.int32(0), "mean": jnp.zeros(3, jnp.bfloat16), "key": KEY}
    assert_preserves_state(
        lambda s: {**s, "count": s["count"] + 1, "key": jax.random.split(s["key"])[0]}, first, calls=3
    )


STATES = {
    "dtype": (
        lambda s: s * jnp.float32(2),
        jnp.bfloat16(1).astype(jnp.bfloat16),
        "leaf itself has dtype float32, expected bfloat16",
    ),
    "count to float": (lambda s: (s + 1).astype(jnp.float32), jnp.int32(0), "has dtype float32, expected int32"),
    "shape": (
        lambda s: jnp.append(s, 1.0),
        jnp.zeros(2),
        r"after 1 call\(s\): leaf itself has shape \(3,\), expected \(2,\)",
    ),
    "structure": (lambda s: {**s, "new": jnp.zeros(())}, {}, "the structure is"),
    "a Python number": (
        lambda s: s + jnp.zeros(()),
        0.0,
        r"of a strong type, and was float32\[\] of a Python scalar's weak",
    ),
    "becomes one": (lambda s: 0.0 * 2, jnp.zeros(()), "is of a weak type, and was"),
    "in the second call": (
        lambda s: {"n": s["n"], "x": s["n"]},
        {"n": jnp.int32(0), "x": jnp.float32(0)},
        "leaf .'x'. has dtype int32",
    ),
}


@pytest.mark.parametrize("bug", STATES)
def test_a_state_that_changes_its_kind(bug):
    step, state, message = STATES[bug]
    with jax.numpy_dtype_promotion("standard"), pytest.raises(AssertionError, match=message):
        assert_preserves_state(step, state)
