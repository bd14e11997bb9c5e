import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from fedjax_edge.models import winograd
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
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    options = dict(
        window_strides=strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=SPECS[dims],
        feature_group_count=groups,
    )
    return (batch, *sizes, channels * groups), (*window, channels, features * groups), options


@st.composite
def minimal_filterings(draw):
    """Shapes of images and kernels, and padding, that minimal filtering takes and that have an output."""
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(2))  # noqa: E731
    window, sizes, padding = each(1, 6), each(1, 17), (each(0, 3), each(0, 3))
    assume(all(size + sum(pair) >= width for size, pair, width in zip(sizes, padding, window, strict=True)))
    channels, features = each(1, 20)
    return (draw(st.integers(1, 3)), *sizes, channels), (*window, channels, features), padding


def compiled(function):
    """Jitted without LLVM's optimizations: each example compiles anew."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def value_and_gradients(convolve, options):
    def both(lhs, rhs):
        out, pullback = jax.vjp(lambda lhs, rhs: convolve(lhs, rhs, **options), lhs, rhs)
        return out, pullback(normal(2, out.shape))

    return both


def assert_close(ours, theirs):
    """Within 1e-5 of the largest entry of each array."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max()), ours, theirs)


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


@settings(max_examples=8, deadline=None, derandomize=True)
@given(minimal_filterings())
def test_minimal_filtering_equals_lax_with_its_gradients(case):
    lhs_shape, rhs_shape, padding = case
    lhs, rhs = normal(0, lhs_shape), normal(1, rhs_shape)
    options = dict(window_strides=(1, 1), padding=padding, dimension_numbers=SPECS[2])
    assert_close(
        compiled(value_and_gradients(winograd.convolve, dict(padding=padding)))(lhs, rhs),
        compiled(value_and_gradients(lax.conv_general_dilated, options))(lhs, rhs),
    )


PAPERS = {  # images, kernel, padding, and whether minimal filtering saves multiplications
    "McMahan et al., first layer": ((10, 28, 28, 1), (5, 5, 1, 32), "SAME", False),
    "McMahan et al., second layer": ((10, 14, 14, 32), (5, 5, 32, 64), "SAME", True),
    "CIFAR-10, first layer": ((10, 32, 32, 3), (3, 3, 3, 32), "VALID", False),
    "CIFAR-10, second layer": ((10, 30, 30, 32), (3, 3, 32, 64), "VALID", True),
    "a residual network's": ((10, 8, 8, 64), (3, 3, 64, 64), "SAME", True),
    "a point-wise one": ((10, 8, 8, 64), (1, 1, 64, 64), "SAME", False),
    "one large image": ((1, 256, 256, 8), (3, 3, 8, 8), "SAME", False),
    "a window as large as the image": ((10, 5, 5, 32), (5, 5, 32, 64), "VALID", False),
    "a window larger than a tile": ((10, 14, 14, 32), (7, 7, 32, 64), "SAME", False),
    "a cropped image": ((10, 14, 14, 32), (3, 3, 32, 64), ((-1, 0), (0, 0)), False),
}


@pytest.mark.parametrize(("lhs_shape", "rhs_shape", "padding", "expected"), PAPERS.values(), ids=PAPERS)
def test_the_way_of_fewer_multiplications_is_taken(lhs_shape, rhs_shape, padding, expected):
    convolve = lambda lhs, rhs: conv_general_dilated(lhs, rhs, (1, 1), padding, dimension_numbers=SPECS[2])  # noqa: E731
    jaxpr = jax.make_jaxpr(convolve)(jnp.ones(lhs_shape), jnp.ones(rhs_shape))
    assert str(jaxpr).count("dot_general") == (5 if expected else 1)


@pytest.mark.parametrize("change", [dict(precision="highest"), dict(window_strides=(2, 1)), dict(rhs_dilation=(1, 2))])
def test_minimal_filtering_is_for_plain_convolutions_in_float32(change):
    options = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=SPECS[2])
    lhs, rhs = normal(0, (4, 14, 14, 16)), normal(1, (5, 5, 16, 32))
    count_products = lambda *inputs, **options: str(  # noqa: E731
        jax.make_jaxpr(lambda *inputs: conv_general_dilated(*inputs, **options))(*inputs)
    ).count("dot_general")
    assert count_products(lhs, rhs, **options) == 5
    assert count_products(lhs, rhs, **(options | change)) == 1
    assert count_products(lhs.astype(jnp.bfloat16), rhs.astype(jnp.bfloat16), **options) == 1


def test_minimal_filtering_under_vmap_is_that_of_each_client():
    options = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=SPECS[2])
    lhs, rhs = normal(0, (3, 4, 8, 8, 16)), normal(1, (3, 5, 5, 16, 16))
    assert winograd.saves(lhs.shape[1:], rhs.shape[1:], ((2, 2), (2, 2)))
    assert_close(
        jax.jit(jax.vmap(value_and_gradients(conv_general_dilated, options)))(lhs, rhs),
        jax.jit(jax.vmap(value_and_gradients(lax.conv_general_dilated, options)))(lhs, rhs),
    )


@pytest.mark.parametrize("channels", [1, 3, 32])
def test_vmapped_training_has_no_convolution_left(channels):
    def loss(rhs, lhs):
        return jnp.sum(conv_general_dilated(lhs, rhs, (1, 1), "SAME", dimension_numbers=SPECS[2]))

    jaxpr = jax.make_jaxpr(jax.vmap(jax.grad(loss, (0, 1))))(
        jnp.ones((4, 3, 3, channels, 32)), jnp.ones((4, 2, 12, 12, channels))
    )
    assert "dot_general" in str(jaxpr) and "conv" not in str(jaxpr) and "scatter" not in str(jaxpr)


def test_on_an_accelerator_a_convolution_is_that_of_lax(monkeypatch):
    lhs, rhs = normal(0, (2, 5, 7, 4)), normal(1, (3, 3, 2, 6))
    options = dict(
        window_strides=(1, 2),
        padding=((0, 1), (2, 0)),
        lhs_dilation=(2, 1),
        rhs_dilation=(1, 2),
        dimension_numbers=SPECS[2],
        feature_group_count=2,
        precision="highest",
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    ours, theirs = (
        jax.make_jaxpr(lambda *inputs, convolve=convolve: convolve(*inputs, **options))(lhs, rhs)
        for convolve in (conv_general_dilated, lax.conv_general_dilated)
    )
    assert str(ours) == str(theirs)


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


@pytest.mark.parametrize(("size", "strides"), [(1, 1), (2, 2), (2, 1), (3, 1)])
def test_a_window_that_does_not_fit_gives_what_lax_gives(size, strides):
    numbers = dict(window_strides=(strides, strides), padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    lhs, rhs = jnp.ones((2, size, size, 3)), jnp.ones((3, 3, 3, 4))
    assert conv_general_dilated(lhs, rhs, **numbers).shape == lax.conv_general_dilated(lhs, rhs, **numbers).shape
    with pytest.raises(TypeError, match="same dtype"):
        conv_general_dilated(lhs.astype(jnp.bfloat16), rhs, **numbers)


def test_preferred_element_type_is_the_dtype_of_the_result():
    lhs, rhs = normal(0, (1, 4, 4, 2)).astype(jnp.bfloat16), normal(1, (3, 3, 2, 2)).astype(jnp.bfloat16)
    options = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=SPECS[2])
    assert conv_general_dilated(lhs, rhs, **options).dtype == jnp.bfloat16
    assert conv_general_dilated(lhs, rhs, preferred_element_type=jnp.float32, **options).dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_group_count": 0}, "feature_group_count must be an integer of at least 1, got 0"),
        ({"feature_group_count": 3}, "feature_group_count must divide the 2 features, got 3"),
        ({"batch_group_count": 2}, "batch_group_count must be 1, got 2"),
        ({"window_strides": (1,)}, r"window_strides must have 2 entries.*got \(1,\)"),
        ({"window_strides": (1, 0)}, r"window_strides\[1\] must be an integer of at least 1, got 0"),
        ({"rhs_dilation": (1, 2, 1)}, r"rhs_dilation must have 2 entries.*got \(1, 2, 1\)"),
        ({"padding": ((0, 0),)}, r"padding must have 2 entries.*got \(\(0, 0\),\)"),
        ({"dimension_numbers": None}, "dimension_numbers must put channels last.*got None"),
        ({"dimension_numbers": ("NCHW", "OIHW", "NCHW")}, "dimension_numbers must put channels last"),
        ({"lhs_dilation": (1, 2)}, "padding must be pairs .* got 'SAME'"),
        ({"out_sharding": "clients"}, "out_sharding must be None, got 'clients'"),
        (
            {"rhs": jnp.ones((3, 3, 1, 2))},
            r"rhs must take the 2 channels of lhs \(1, 4, 4, 2\) in 1 group\(s\), got rhs \(3, 3, 1, 2\)",
        ),
        ({"feature_group_count": 2}, r"in 2 group\(s\), got rhs \(3, 3, 2, 2\)"),
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
