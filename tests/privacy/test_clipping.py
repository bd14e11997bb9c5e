import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_edge.privacy import (
    clip,
    clip_by_norm,
    correlated_mean,
    dp_sgd,
    gaussian_mean,
    local_gaussian,
    local_laplace,
    per_layer,
    skellam,
    total_norm,
    tree_noise,
)

jitted = jax.jit(clip_by_norm)


def exact_norm(update):
    return np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(update)))


def spread_out(shape):
    """Finite float32 of any magnitude, or all of like magnitude: the second kind sums to norms near the bound."""
    numbers = st.floats(-1, 1, width=32)
    wild = hnp.arrays(np.float32, shape, elements=st.floats(allow_nan=False, allow_infinity=False, width=32))
    scaled = st.tuples(hnp.arrays(np.float32, shape, elements=numbers), st.integers(-130, 120)).map(
        lambda pair: np.ldexp(pair[0], pair[1]).astype(np.float32)
    )
    return st.one_of(wild, scaled)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(spread_out((3, 5)), spread_out((4,)), st.floats(-30, 30).map(lambda power: 2.0**power))
def test_exact_norm_never_exceeds_the_bound(matrix, vector, clip_norm):
    with np.errstate(over="ignore"):
        update = {
            "float32": jnp.asarray(matrix),
            "bfloat16": jnp.asarray(vector).astype(jnp.bfloat16),
            "float16": jnp.asarray(vector).astype(jnp.float16),
        }
    clipped = jitted(update, clip_norm)
    assert exact_norm(clipped) <= clip_norm
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(clipped))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("size", [1, 7, 255, 256, 257, 70_000])
def test_a_long_update_is_cut_to_the_bound_and_not_far_below(dtype, size):
    keys = jax.random.split(jax.random.key(size), 20)
    for key in keys[: 20 if size < 1000 else 3]:
        update = jax.random.normal(key, (size,)).astype(dtype)
        bound = 0.5 * exact_norm(update)
        norm = exact_norm(jitted(update, bound))
        # Rounding toward zero costs up to one unit in the last place of a narrow leaf.
        assert (1 - 2**-13 - 2 * float(jnp.finfo(dtype).eps)) * bound <= norm <= bound


def test_no_sum_is_longer_than_its_error_bound_assumes():
    # XLA promises no order of addition: in one running float32 sum, 2^25 ones would stay at 2^24.
    jaxpr = jax.make_jaxpr(clip_by_norm)(jax.ShapeDtypeStruct((2**25,), jnp.float32), 1.0)
    names = [str(equation.primitive) for equation in jaxpr.jaxpr.eqns]
    sums = [i for i, name in enumerate(names) if name == "reduce_sum"]
    lengths = [jaxpr.jaxpr.eqns[i].invars[0].aval.shape[jaxpr.jaxpr.eqns[i].params["axes"][0]] for i in sums]
    assert lengths == [256] * 4
    assert all(names[i + 1] == "optimization_barrier" for i in sums)


def test_float16_numbers_that_round_up_relatively_far_are_cut():
    # 0.6 of the smallest float16 rounds to the smallest, two thirds longer.
    update = jnp.full((64,), 2.0**-14, jnp.float16)
    bound = 0.6 * 2.0**-24 * np.sqrt(64)
    assert exact_norm(jitted(update, bound)) <= bound


def test_direction_and_dtypes_are_kept():
    update = {"a": jnp.array([3.0, 0.0]), "b": (jnp.array(4.0), jnp.ones((2,), jnp.bfloat16) * 0)}
    clipped = clip_by_norm(update, 1.0)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), clipped) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), update
    )
    np.testing.assert_allclose(clipped["a"], [0.6, 0.0], rtol=2e-4)
    np.testing.assert_allclose(clipped["b"][0], 0.8, rtol=2e-4)


def test_a_short_update_is_kept_bit_for_bit():
    update = {"a": jax.random.normal(jax.random.key(0), (1000,)), "b": jnp.full((3,), 0.1, jnp.bfloat16)}
    clipped = jitted(update, exact_norm(update) * (1 + 2**-12))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), update, clipped)))


@pytest.mark.parametrize("clip_norm", [1e-20, 1.0, 1e20])
def test_zero_and_empty_updates_stay(clip_norm):
    zero = {"a": jnp.zeros((3,)), "b": jnp.zeros((0, 2))}
    clipped = jitted(zero, clip_norm)
    np.testing.assert_array_equal(clipped["a"], np.zeros(3))
    assert clipped["b"].shape == (0, 2)
    assert clip_by_norm({}, clip_norm) == {}


@pytest.mark.parametrize("bad", [1e30, np.inf, -np.inf, np.nan])
def test_overflow_and_non_finite_updates_become_zero(bad):
    clipped = jitted({"a": jnp.array([bad, 1.0]), "b": jnp.array([2.0])}, 1.0)
    np.testing.assert_array_equal(clipped["a"], [0.0, 0.0])
    np.testing.assert_array_equal(clipped["b"], [0.0])


def test_squares_that_underflow_are_still_counted():
    # Each square is 1e-42, which the CPU flushes to zero.
    update = jnp.full((10_000,), 1e-21)
    bound = 0.5 * exact_norm(update)
    assert exact_norm(jitted(update, bound)) <= bound


def test_works_under_vmap_as_one_by_one():
    updates = jax.random.normal(jax.random.key(1), (5, 300))
    together = jax.jit(jax.vmap(clip_by_norm, in_axes=(0, None)))(updates, jnp.float32(2.0))
    for row, update in zip(together, updates, strict=True):
        np.testing.assert_allclose(row, clip_by_norm(update, 2.0), rtol=1e-6)


def test_transform_is_clip_by_norm_and_costs_no_bits():
    transform = clip(1.0)
    update = {"w": jnp.array([3.0, 4.0])}
    sent, state, bits = transform.apply(update, transform.init(update), jax.random.key(0))
    np.testing.assert_array_equal(sent["w"], clip_by_norm(update, 1.0)["w"])
    assert state == () and bits is None


def test_traced_clip_norm_needs_one_compilation():
    traces = []

    @jax.jit
    def sent(update, clip_norm):
        traces.append(1)
        return clip(clip_norm).apply(update, (), jax.random.key(0))[0]

    update = jnp.array([3.0, 4.0])
    norms = [exact_norm(sent(update, jnp.float32(bound))) for bound in (1.0, 2.0)]
    np.testing.assert_allclose(norms, [1.0, 2.0], rtol=2e-4)
    assert len(traces) == 1


@pytest.mark.parametrize("clip_norm", [0, -1.0, np.inf, np.nan, None, "1"])
def test_bad_bounds_are_refused(clip_norm):
    with pytest.raises(ValueError, match="clip_norm must be a finite number above 0"):
        clip(clip_norm)
    with pytest.raises(ValueError, match="clip_norm must be a finite number above 0"):
        clip_by_norm(jnp.ones(2), clip_norm)


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"update\['steps'\] has dtype int32"):
        clip_by_norm({"steps": jnp.arange(3)}, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_client_sends_what_is_not_finite_as_it_is_to_be_rejected(bad):
    update = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([bad])}
    sent = clip(1.0).apply(update, (), jax.random.key(0))[0]
    np.testing.assert_array_equal(sent["a"], [3, 4])
    assert not np.isfinite(sent["b"]).any()


LAYERS = {"dense": {"w": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}, "head": jnp.array([0.3, 0.4])}


def test_layers_are_clipped_each_by_itself():
    clipped = clip_by_norm(LAYERS, {"dense": 1.0, "head": 2.0})
    np.testing.assert_allclose(clipped["dense"]["w"], [0.6, 0.0], rtol=2e-4)
    np.testing.assert_allclose(clipped["dense"]["b"], 0.8, rtol=2e-4)
    np.testing.assert_array_equal(clipped["head"], LAYERS["head"])
    leaves = clip_by_norm(LAYERS, {"dense": {"w": 1.0, "b": 0.5}, "head": 0.25})
    np.testing.assert_allclose([exact_norm(leaf) for leaf in jax.tree.leaves(leaves)], [0.5, 1.0, 0.25], rtol=2e-4)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(spread_out((3, 5)), spread_out((4,)), st.floats(-30, 30).map(lambda power: 2.0**power))
def test_all_layers_together_keep_the_bound_that_is_stated(matrix, vector, clip_norm):
    with np.errstate(over="ignore"):
        update = {"a": jnp.asarray(matrix), "b": jnp.asarray(vector).astype(jnp.bfloat16)}
    norms = per_layer(clip_norm, update)
    assert total_norm(norms) == pytest.approx(clip_norm, rel=1e-15)
    assert exact_norm(jitted(update, norms)) <= clip_norm
    uneven = {"a": clip_norm, "b": clip_norm / 4}
    assert exact_norm(jitted(update, uneven)) <= total_norm(uneven)


def test_norms_are_split_alike_over_layers_and_may_be_traced():
    assert jax.tree.leaves(per_layer(3.0, LAYERS)) == pytest.approx([3**0.5] * 3)
    assert per_layer(3.0, {"dense": 0, "head": 0}) == {"dense": 3 / 2**0.5, "head": 3 / 2**0.5}
    for scale in (1.0, 1e-30, 1e30):
        norms = {"a": jnp.float32(3 * scale), "b": jnp.float32(4 * scale)}
        assert float(total_norm(norms)) == pytest.approx(5.0 * scale)
        assert float(jax.jit(total_norm)(norms)) == pytest.approx(5.0 * scale)


def test_a_layer_that_is_not_finite_becomes_zero_by_itself():
    clipped = clip_by_norm({"a": jnp.array([jnp.nan]), "b": jnp.ones(1)}, {"a": 1.0, "b": 2.0})
    assert clipped["a"][0] == 0 and clipped["b"][0] == 1


@pytest.mark.parametrize("norms", [{}, {"dense": 1.0, "head": 0.0}, {"dense": None, "head": 1.0}])
def test_bad_norms_of_layers_are_refused_by_name(norms):
    with pytest.raises(ValueError, match=r"clip_norm.* must be a finite number above 0"):
        clip(norms)


def test_norms_for_other_layers_are_refused():
    with pytest.raises(ValueError, match="a tree that the update begins with"):
        clip_by_norm(LAYERS, {"dense": 1.0})
    with pytest.raises(ValueError, match="layers has no leaf"):
        per_layer(1.0, {})


@pytest.mark.parametrize("clip_norm", [3.41e38, 1e39, 1e300])
def test_norms_that_float32_does_not_hold_are_refused(clip_norm):
    makers = (
        lambda norm: clip_by_norm(jnp.ones(2), norm),
        clip,
        lambda norm: per_layer(norm, {"a": 0}),
        lambda norm: gaussian_mean(norm, 1.0, 10),
        lambda norm: local_gaussian(norm, 1.0, 10),
        lambda norm: local_laplace(norm, 1.0, 10),
        lambda norm: skellam(jnp.zeros(4), norm, 2.0, 4, bits=12),
        lambda norm: correlated_mean(tree_noise(4), norm, 1.0, 10),
        lambda norm: dp_sgd(norm, 1.0, batch_size=8, epochs=1),
    )
    for make in makers:
        with pytest.raises(
            ValueError, match=r"clip_norm must be a finite number above 0, of at most 3.4e38 \(float32\)"
        ):
            make(clip_norm)
    for norms in ({"a": clip_norm, "b": 1.0}, {"a": 3e38, "b": 3e38}, [jnp.float32(3e38)] * 2):
        with pytest.raises(ValueError, match=r"clip_norm.* must be a finite number above 0, of at most 3.4e38"):
            gaussian_mean(norms, 1.0, 10)
    clip({"a": 2e38, "b": 2e38})  # of total 2.8e38


@pytest.mark.parametrize("count", [1, 1000])
def test_tiny_bounds_clip_shorter_and_never_longer(count):
    update, floor = jnp.zeros(count).at[0].set(1e-20), 1.1e-19 * (count + 1) ** 0.5
    assert exact_norm(jitted(update, 2 * floor)) == exact_norm(update)
    assert 0 < exact_norm(jitted(update, floor / 10)) < min(exact_norm(update), floor / 10)
