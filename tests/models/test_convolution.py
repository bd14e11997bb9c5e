import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from fedjax_edge.models.convolution import conv_general_dilated, max_pool

SPECS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}


def normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


@st.composite
def convolutions(draw):
    """Shapes of input and kernel, and the options of a convolution that has an output."""
    dims = draw(st.sampled_from([2, 2, 2, 1]))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    window, strides, rhs_dilation = each(1, 3), each(1, 3), each(1, 2)
    lhs_dilation = each(1, 2) if draw(st.booleans()) else None
    sizes = tuple((w - 1) * d + draw(st.integers(1, 4)) for w, d in zip(window, rhs_dilation, strict=True))
    pairs = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(dims))
    padding = draw(st.sampled_from(["SAME", "VALID", pairs])) if lhs_dilation is None else pairs
    batch, channels, features = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3])), draw(st.integers(1, 3))
    options = dict(
        window_strides=strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=SPECS[dims],
    )
    return (batch, *sizes, channels), (*window, channels, features), options


def compiled(function):
    """Jitted without LLVM's optimizations: each example compiles anew."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def value_and_gradients(convolve, options):
    def both(lhs, rhs):
        out, pullback = jax.vjp(lambda lhs, rhs: convolve(lhs, rhs, **options), lhs, rhs)
        return out, pullback(normal(2, out.shape))

    return both


def assert_close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


@settings(max_examples=16, deadline=None, derandomize=True)
@given(convolutions())
def test_equals_lax_with_its_gradients(case):
    lhs_shape, rhs_shape, options = case
    lhs, rhs = normal(0, lhs_shape), normal(1, rhs_shape)
    assert_close(
        compiled(value_and_gradients(conv_general_dilated, options))(lhs, rhs),
        compiled(value_and_gradients(lax.conv_general_dilated, options))(lhs, rhs),
    )


@settings(max_examples=5, deadline=None, derandomize=True)
@given(convolutions())
def test_equals_lax_under_vmap_over_inputs_and_kernels(case):
    lhs_shape, rhs_shape, options = case
    lhs, rhs = normal(0, (3, *lhs_shape)), normal(1, (3, *rhs_shape))
    assert_close(
        compiled(jax.vmap(value_and_gradients(conv_general_dilated, options)))(lhs, rhs),
        compiled(jax.vmap(value_and_gradients(lax.conv_general_dilated, options)))(lhs, rhs),
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_vmapped_training_has_no_convolution_left(channels):
    def loss(rhs, lhs):
        return jnp.sum(conv_general_dilated(lhs, rhs, (1, 1), "SAME", dimension_numbers=SPECS[2]))

    jaxpr = jax.make_jaxpr(jax.vmap(jax.grad(loss, (0, 1))))(
        jnp.ones((4, 3, 3, channels, 2)), jnp.ones((4, 2, 6, 6, channels))
    )
    assert "dot_general" in str(jaxpr) and "conv" not in str(jaxpr) and "scatter" not in str(jaxpr)


@pytest.mark.parametrize("options", [dict(strides=2), dict(padding="VALID"), dict(kernel_dilation=2), dict(padding=1)])
def test_flax_layers_take_it(options):
    x = normal(0, (2, 9, 9, 3))
    ours = linen.Conv(4, (3, 3), conv_general_dilated=conv_general_dilated, **options)
    params = ours.init(jax.random.key(0), x)
    np.testing.assert_allclose(
        ours.apply(params, x), linen.Conv(4, (3, 3), **options).apply(params, x), rtol=1e-5, atol=1e-5
    )
    build = lambda **more: nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0), **options, **more)  # noqa: E731
    np.testing.assert_allclose(build(conv_general_dilated=conv_general_dilated)(x), build()(x), rtol=1e-5, atol=1e-5)


def test_preferred_element_type_is_the_dtype_of_the_result():
    lhs, rhs = normal(0, (1, 4, 4, 2)).astype(jnp.bfloat16), normal(1, (3, 3, 2, 2)).astype(jnp.bfloat16)
    options = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=SPECS[2])
    assert conv_general_dilated(lhs, rhs, **options).dtype == jnp.bfloat16
    assert conv_general_dilated(lhs, rhs, preferred_element_type=jnp.float32, **options).dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_group_count": 2}, "feature_group_count must be 1, got 2"),
        ({"batch_group_count": 2}, "batch_group_count must be 1, got 2"),
        ({"dimension_numbers": None}, "dimension_numbers must put channels last.*got None"),
        ({"dimension_numbers": ("NCHW", "OIHW", "NCHW")}, "dimension_numbers must put channels last"),
        ({"lhs_dilation": (1, 2)}, "padding must be pairs .* got 'SAME'"),
        ({"out_sharding": "clients"}, "out_sharding must be None, got 'clients'"),
        (
            {"rhs": jnp.ones((3, 3, 1, 2))},
            r"rhs must take the 2 channels of lhs \(1, 4, 4, 2\), got rhs \(3, 3, 1, 2\)",
        ),
    ],
)
def test_what_is_not_supported_is_refused(change, message):
    arguments = dict(
        lhs=jnp.ones((1, 4, 4, 2)),
        rhs=jnp.ones((3, 3, 2, 2)),
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=SPECS[2],
    )
    with pytest.raises(ValueError, match=message):
        conv_general_dilated(**(arguments | change))


POOLED = [((2, 6, 6, 3), (2, 2)), ((2, 7, 5, 1), (2, 2)), ((1, 7, 9, 2), (3, 2)), ((1, 4, 4, 1), (1, 1))]


@pytest.mark.parametrize(("shape", "window"), POOLED)
def test_max_pool_equals_flax_with_its_gradient(shape, window):
    x = jax.random.permutation(jax.random.key(0), jnp.arange(np.prod(shape), dtype=jnp.float32)).reshape(shape)
    flax_pool = lambda x: linen.max_pool(x, window, strides=window)  # noqa: E731
    ours, pullback = jax.vjp(lambda x: max_pool(x, window), x)
    theirs, flax_pullback = jax.vjp(flax_pool, x)
    cotangent = normal(1, theirs.shape)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(pullback(cotangent)[0], flax_pullback(cotangent)[0])


def test_max_pool_vmapped_and_with_leading_axes_is_that_of_each():
    x = normal(0, (3, 2, 6, 6, 4))
    expected = jnp.stack([max_pool(each) for each in x])
    np.testing.assert_array_equal(jax.vmap(max_pool)(x), expected)
    np.testing.assert_array_equal(max_pool(x), expected)


def test_max_pool_shares_the_gradient_of_a_tie():
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x)))(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient, jnp.full((1, 2, 2, 1), 0.25))


@pytest.mark.parametrize(
    ("window", "message"), [((0, 2), r"window\[0\] .* 1 to 4, got 0"), ((2, 6), r"window\[1\] .* 1 to 5, got 6")]
)
def test_max_pool_refuses_a_window_that_does_not_fit(window, message):
    with pytest.raises(ValueError, match=message):
        max_pool(jnp.ones((1, 4, 5, 1)), window)
