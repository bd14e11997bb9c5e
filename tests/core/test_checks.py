import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.core import checks

BAD_NUMBERS = [float("nan"), float("inf"), "1", None, True, np.ones(2)]


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (checks.positive, [1, 0.5, np.float32(2), jnp.float32(3)], [0, -1]),
        (checks.positive_float32, [1, 1e-50, np.float32(2), 3.4e38], [0, -1, 3.41e38, 1e300]),
        (lambda name, value: checks.within(name, value, 0.5, 2), [0.5, 1, jnp.float32(2)], [0.49, 2.1, -1]),
        (checks.non_negative, [0, 0.5, np.int64(2)], [-1e-9]),
        (checks.probability, [1, 0.5, 1e-9], [0, 1.5, -1]),
    ],
)
def test_numbers(check, good, bad):
    for value in good:
        check("rate", value)
    for value in bad + BAD_NUMBERS:
        with pytest.raises(ValueError, match="rate must be a"):
            check("rate", value)


def test_integers():
    checks.integer("bits", 8, at_most=16)
    checks.integer("bits", np.int32(1))
    for value in (0, 17, 2.0, True, "8", None):
        with pytest.raises(ValueError, match=r"bits must be an integer from 1 to 16, got"):
            checks.integer("bits", value, at_most=16)


def test_what_lists_values():
    for good in ([], [1], (1, 2), range(3), {"a"}, np.ones(2), jnp.ones((2, 2))):
        checks.listed("seeds", good)
    for bad in (3, 0.1, None, "sgd", b"sgd", {"a": 1}, np.ones(()), jnp.float32(1), iter([1])):
        with pytest.raises(ValueError, match=r"seeds must be a list, a tuple or an array of values, got"):
            checks.listed("seeds", bad)


def test_keys():
    for good in (jax.random.key(0), jax.random.key(0, impl="rbg"), jax.random.PRNGKey(0), np.zeros(2, np.uint32)):
        checks.prng_key("key", good)
    for bad in (0, None, np.int32(3), jnp.zeros(2), jax.random.split(jax.random.key(0))):
        with pytest.raises(TypeError, match=r"key must be a key of jax.random, such as jax.random.key\(0\), got"):
            checks.prng_key("key", bad)


def test_tracers_pass():
    def f(rate):
        checks.positive("rate", rate)
        return rate

    assert jax.jit(f)(-1.0) == -1.0


def test_a_leaf_that_is_not_floating_is_named():
    checks.float_tree("params", {"w": jnp.ones(2), "h": jnp.ones(2, jnp.bfloat16)})
    with pytest.raises(TypeError, match=r"params\['layer'\]\['steps'\] has dtype int32"):
        checks.float_tree("params", {"layer": {"steps": jnp.int32(0)}})
