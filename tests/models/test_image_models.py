"""The models of images: one contract for all, one row for each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from fedjax_edge.models import classification, logistic_regression, mnist_2nn, mnist_cnn, small_cnn


def dense(params, layer, x):
    return x @ params[layer]["kernel"] + params[layer]["bias"][None]


def convolution(params, layer, x, strides, padding):
    kernel, bias = params[layer]["kernel"], params[layer]["bias"]
    out = jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.maximum(out + bias.reshape(1, 1, 1, -1), 0)


def pool(x):
    return linen.max_pool(x, (2, 2), strides=(2, 2))


def logistic_regression_by_hand(params, images):
    return dense(params, "Dense_0", images.reshape(len(images), -1))


def mnist_2nn_by_hand(params, images):
    x = jnp.maximum(dense(params, "Dense_0", images.reshape(len(images), -1)), 0)
    return dense(params, "Dense_2", jnp.maximum(dense(params, "Dense_1", x), 0))


def mnist_cnn_by_hand(params, images):
    x = pool(convolution(params, "Conv_0", images[..., None], (1, 1), "SAME"))
    x = pool(convolution(params, "Conv_1", x, (1, 1), "SAME"))
    return dense(params, "Dense_1", jnp.maximum(dense(params, "Dense_0", x.reshape(len(x), -1)), 0))


def small_cnn_by_hand(params, images):
    x = convolution(params, "Conv_0", images[..., None], (2, 2), "VALID")
    x = pool(convolution(params, "Conv_1", x, (1, 1), "VALID"))
    return dense(params, "Dense_0", x.reshape(len(x), -1))


MODELS = {
    logistic_regression: (7_850, logistic_regression_by_hand, "input_shape", 1),
    mnist_2nn: (199_210, mnist_2nn_by_hand, "input_shape", 1),
    mnist_cnn: (1_663_370, mnist_cnn_by_hand, "image_shape", 4),
    small_cnn: (6_746, small_cnn_by_hand, "image_shape", 11),
}
each_model = pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)


def images(count, shape=(28, 28)):
    return jax.random.normal(jax.random.key(1), (count, *shape))


def of_shape(build, shape, **options):
    return build(**{MODELS[build][2]: shape}, **options)


@each_model
def test_it_has_the_parameters_of_its_paper(build):
    params = jax.eval_shape(build().init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == MODELS[build][0]


@each_model
def test_it_follows_its_description(build):
    model = build()
    params = jax.jit(model.init)(jax.random.key(0))
    expected = MODELS[build][1](params, images(3))
    np.testing.assert_allclose(jax.jit(model.apply)(params, images(3)), expected, rtol=1e-4, atol=1e-4)


@each_model
def test_other_shapes_and_numbers_of_classes(build):
    model = of_shape(build, (12, 13, 3), num_classes=7)
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.eval_shape(model.apply, params, images(2, (12, 13, 3))).shape == (2, 7)


@each_model
def test_clients_with_parameters_of_their_own_run_side_by_side(build):
    model, x = of_shape(build, (12, 12)), images(3, (12, 12))
    stacked = jax.jit(jax.vmap(model.init))(jax.random.split(jax.random.key(0), 2))
    mapped = jax.jit(jax.vmap(model.apply, (0, None)))(stacked, x)
    alone = jax.lax.map(lambda params: model.apply(params, x), stacked)
    np.testing.assert_allclose(mapped, alone, rtol=1e-4, atol=1e-4)


@each_model
def test_it_learns_a_batch(build):
    model = of_shape(build, (12, 12))
    loss_fn = classification(model)
    batch = {"image": images(8, (12, 12)), "label": jnp.arange(8, dtype=jnp.uint8)}

    def loss(params):
        return loss_fn(params, batch, None)[0].mean()

    def step(params, _):
        return optax.apply_updates(params, optax.tree.scale(-0.1, jax.grad(loss)(params))), None

    params = jax.jit(model.init)(jax.random.key(0))
    trained = jax.jit(lambda params: jax.lax.scan(step, params, length=30)[0])(params)
    assert loss(trained) < 0.5 * loss(params)


@each_model
def test_bad_arguments_are_refused(build):
    _, _, shape, smallest = MODELS[build]
    with pytest.raises(ValueError, match="num_classes must be an integer of at least 1, got 0"):
        build(num_classes=0)
    message = rf"{shape}\[0\] must be an integer of at least {smallest}, got {smallest - 1}"
    with pytest.raises(ValueError, match=message):
        of_shape(build, (smallest - 1, 28))
