import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.core.narrow import FEW_COLUMNS, flip_narrow, is_narrow


@pytest.mark.parametrize(
    ("shape", "narrow"),
    [
        ((784, 10), True),
        ((FEW_COLUMNS + 1, FEW_COLUMNS), True),
        ((FEW_COLUMNS + 2, FEW_COLUMNS + 1), False),
        ((10, 10), False),
        ((10, 784), False),
        ((784,), False),
        ((), False),
        ((5, 5, 1), False),
        ((0, 0), False),
    ],
)
def test_narrow(shape, narrow):
    assert is_narrow(jnp.zeros(shape)) is narrow
    assert is_narrow(jax.ShapeDtypeStruct(shape, jnp.float32)) is narrow


def test_a_number_of_python_is_not_narrow():
    assert flip_narrow({"count": 3, "kernel": jnp.zeros((40, 3))})["count"] == 3


def test_only_on_a_cpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not is_narrow(jnp.zeros((784, 10)))


def test_flipping_twice_returns_the_tree():
    tree = {"kernel": jnp.arange(120.0).reshape(40, 3), "square": jnp.arange(9.0).reshape(3, 3), "bias": jnp.ones(3)}
    flipped = flip_narrow(tree)
    assert jax.tree.map(jnp.shape, flipped) == {"kernel": (3, 40), "square": (3, 3), "bias": (3,)}
    back = flip_narrow(flipped, tree)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), back, tree))


def test_stacks_are_flipped_each():
    tree = {"kernel": jnp.arange(240.0).reshape(2, 40, 3), "bias": jnp.ones((2, 3))}
    flipped = flip_narrow(tree, jax.tree.map(lambda leaf: leaf[0], tree))
    np.testing.assert_array_equal(flipped["kernel"], np.swapaxes(tree["kernel"], 1, 2))
    np.testing.assert_array_equal(flipped["bias"], tree["bias"])
