from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import fedjax_edge as fe
from fedjax_edge.models.dot_general import dot_general

LAYER = (((1,), (0,)), ((), ()))
FUNCTIONS = (dot_general, lax.dot_general)


def normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


@st.composite
def layers(draw):
    """Shapes of a batch and of weights, few and many rows, few and many outputs among them."""
    batch = draw(st.sampled_from([(1,), (2,), (10,), (16,), (17,), (40,), (2, 5), (3, 20), ()]))
    inputs = draw(st.integers(1, 60))
    return (*batch, inputs), (inputs, draw(st.sampled_from([1, 3, 32, 33, 50])))


def values_and_derivatives(product, lhs, rhs, d_lhs, d_rhs, cotangent):
    """The output, both gradients, the derivative along a direction, and a second derivative."""
    dims = (((lhs.ndim - 1,), (0,)), ((), ()))
    f = lambda lhs, rhs: product(lhs, rhs, dims)  # noqa: E731
    out, pullback = jax.vjp(f, lhs, rhs)
    gradient = lambda rhs: jax.grad(lambda rhs: (jnp.sin(f(lhs, rhs)) * cotangent).sum())(rhs)  # noqa: E731
    forward = jax.jvp(f, (lhs, rhs), (d_lhs, d_rhs))[1]
    return out, *pullback(cotangent), forward, jax.jvp(gradient, (rhs,), (d_rhs,))[1]


@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # each example compiles anew
def of_both(*arguments):
    return [values_and_derivatives(product, *arguments) for product in FUNCTIONS]


@settings(max_examples=15)
@given(layers())
def test_as_lax_in_values_and_derivatives(shapes):
    lhs, rhs, d_lhs, d_rhs = (normal(seed, shape) for seed, shape in enumerate([*shapes, *shapes]))
    cotangent = normal(4, (*shapes[0][:-1], shapes[1][1]))
    for one, other in zip(*of_both(lhs, rhs, d_lhs, d_rhs, cotangent), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * max(1, float(jnp.abs(other).max())))


@pytest.mark.parametrize("shapes", [((10, 40), (40, 50)), ((10, 40), (40, 10)), ((1, 40), (40, 50))])
def test_vmapped_over_weights_and_batches(shapes):
    lhs, rhs = (normal(seed, (4, *shape)) for seed, shape in enumerate(shapes))
    gradients = lambda product: jax.grad(lambda a, b: jnp.sin(product(a, b, LAYER)).sum(), (0, 1))  # noqa: E731
    for axes in ((0, 0), (None, 0)):
        first = lhs if axes[0] == 0 else lhs[0]
        ours, plain = (jax.vmap(gradients(product), axes)(first, rhs) for product in (dot_general, lax.dot_general))
        for one, other in zip(ours, plain, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_few_rows_multiply_no_matrices_for_the_gradient_of_the_weights():
    """Nothing of the weights' shape comes out of a product; with more rows something does."""

    def products(rows):
        loss = lambda w, x: jnp.sin(dot_general(x, w, LAYER)).sum()  # noqa: E731
        jaxpr = jax.make_jaxpr(jax.grad(loss))(jnp.ones((60, 50)), jnp.ones((rows, 60)))
        return [eqn.outvars[0].aval.shape for eqn in jaxpr.eqns if eqn.primitive is lax.dot_general_p]

    assert not {(60, 50), (50, 60)} & set(products(16))
    assert {(60, 50), (50, 60)} & set(products(17))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows(bad):
    x, w = jnp.ones((3, 40)).at[1, 2].set(bad), jnp.ones((40, 50))
    out, pullback = jax.vjp(lambda x, w: dot_general(x, w, LAYER), x, w)
    assert not jnp.isfinite(out[1]).any() and jnp.isfinite(out[0]).all()
    assert not jnp.isfinite(pullback(jnp.ones_like(out))[1][2]).any()


@pytest.mark.parametrize(
    ("lhs", "rhs", "dims", "options"),
    [
        ((3, 4), (5, 4), (((1,), (1,)), ((), ())), {}),
        ((2, 3, 40), (2, 40, 50), (((2,), (1,)), ((0,), (0,))), {}),
        ((3, 40), (40, 50, 2), LAYER, {}),
        ((0, 40), (40, 50), LAYER, {}),
        ((3, 40), (40, 50), LAYER, {"precision": lax.Precision.HIGHEST}),
        ((3, 40), (40, 50), LAYER, {"preferred_element_type": jnp.float32}),
    ],
)
def test_all_else_is_that_of_lax(lhs, rhs, dims, options):
    lhs, rhs = normal(0, lhs), normal(1, rhs)
    ours, plain = (str(jax.make_jaxpr(lambda a, b, f=f: f(a, b, dims, **options))(lhs, rhs)) for f in FUNCTIONS)
    assert ours == plain


def test_half_precision_is_left_to_lax():
    lhs, rhs = normal(0, (3, 40)).astype(jnp.bfloat16), normal(1, (40, 50)).astype(jnp.bfloat16)
    ours, plain = (str(jax.make_jaxpr(lambda a, b, f=f: f(a, b, LAYER))(lhs, rhs)) for f in FUNCTIONS)
    assert ours == plain


def test_on_a_gpu_it_is_that_of_lax(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    lhs, rhs = jnp.ones((3, 40)), jnp.ones((40, 50))
    ours, plain = (str(jax.make_jaxpr(lambda a, b, f=f: f(a, b, LAYER))(lhs, rhs)) for f in FUNCTIONS)
    assert ours == plain


def test_layers_of_flax_take_it():
    x = normal(0, (5, 7, 40))
    layer = linen.Dense(50, dot_general=dot_general)
    params = layer.init(jax.random.key(1), x)
    np.testing.assert_allclose(layer.apply(params, x), linen.Dense(50).apply(params, x), rtol=1e-5, atol=1e-5)
    ours, plain = (nnx.Linear(40, 50, rngs=nnx.Rngs(0), dot_general=f) for f in FUNCTIONS)
    np.testing.assert_allclose(ours(x[0]), plain(x[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [fe.models.logistic_regression, fe.models.mnist_2nn])
def test_models_have_the_gradients_of_plain_layers(make):
    model = make()
    params = model.init(jax.random.key(0))
    images, labels = normal(1, (10, 28, 28)), jnp.arange(10)

    def plain(params, images):
        x = images.reshape(10, -1)
        for number in range(len(params)):
            layer = params[f"Dense_{number}"]
            x = (jax.nn.relu(x) if number else x) @ layer["kernel"] + layer["bias"][None]
        return x

    loss = lambda apply: lambda p: -jax.nn.log_softmax(apply(p, images))[jnp.arange(10), labels].sum()  # noqa: E731
    ours, other = jax.grad(loss(model.apply))(params), jax.grad(loss(plain))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, other)
