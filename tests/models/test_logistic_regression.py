import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_edge.models.logistic_regression import logistic_regression
from fedjax_edge.models.losses import classification


def images(count, shape=(28, 28)):
    return jax.random.normal(jax.random.key(1), (count, *shape))


def test_has_7850_parameters():
    params = jax.eval_shape(logistic_regression().init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 7_850


def test_follows_its_description():
    model = logistic_regression()
    params = jax.jit(model.init)(jax.random.key(0))
    x = images(3)
    expected = x.reshape(3, -1) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None]
    np.testing.assert_allclose(jax.jit(model.apply)(params, images(3)), expected, rtol=1e-4, atol=1e-4)


def test_other_shapes_and_numbers_of_classes():
    model = logistic_regression(num_classes=7, input_shape=(12, 13, 3))
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.eval_shape(model.apply, params, images(2, (12, 13, 3))).shape == (2, 7)


def test_vmaps_over_params():
    model = logistic_regression(input_shape=(12, 12))
    stacked = jax.jit(jax.vmap(model.init))(jax.random.split(jax.random.key(0), 2))
    x = images(3, (12, 12))
    mapped = jax.jit(jax.vmap(model.apply, (0, None)))(stacked, x)
    alone = jax.lax.map(lambda params: model.apply(params, x), stacked)
    np.testing.assert_allclose(mapped, alone, rtol=1e-4, atol=1e-4)


def test_learns_a_batch():
    model = logistic_regression(input_shape=(12, 12))
    batch = {"image": images(8, (12, 12)), "label": jnp.arange(8, dtype=jnp.uint8)}
    loss = lambda params: jnp.mean(classification(model)(params, batch, None)[0])  # noqa: E731

    def step(params, _):
        return optax.apply_updates(params, jax.tree.map(lambda g: -0.1 * g, jax.grad(loss)(params))), None

    params = jax.jit(model.init)(jax.random.key(0))
    trained = jax.jit(lambda params: jax.lax.scan(step, params, length=30)[0])(params)
    assert loss(trained) < 0.5 * loss(params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be an integer of at least 1, got 0"),
        ({"input_shape": (0, 28)}, r"input_shape\[0\] must be an integer of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        logistic_regression(**arguments)
