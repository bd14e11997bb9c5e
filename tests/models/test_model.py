import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from fedjax_edge.models.model import Model, from_linen, from_nnx

EXAMPLE = jax.ShapeDtypeStruct((1, 6), jnp.float32)


class LinenDropout(linen.Module):
    @linen.compact
    def __call__(self, x, deterministic=True):
        return linen.Dropout(0.5, deterministic=deterministic)(linen.Dense(8)(x))


class NnxDropout(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)])
        self.first = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.second(self.layers[1](self.first(self.layers[0](x))))


def linen_dropout():
    return from_linen(LinenDropout(), EXAMPLE, training={"deterministic": False}, evaluation={"deterministic": True})


def nnx_dropout():
    return from_nnx(lambda rngs: NnxDropout(rngs))


MODELS = {
    "linen": lambda: from_linen(linen.Dense(8), EXAMPLE),
    "linen dropout": linen_dropout,
    "nnx": lambda: from_nnx(lambda rngs: nnx.Linear(6, 8, rngs=rngs)),
    "nnx dropout": nnx_dropout,
    "functions": lambda: Model(
        lambda key: {"w": jax.random.normal(key, (6, 8))}, lambda params, x, key=None: x @ params["w"]
    ),
}


@pytest.fixture(params=MODELS, scope="module")
def model(request):
    return MODELS[request.param]()


def inputs():
    return jax.random.normal(jax.random.key(7), (3, 6))


def squares(model, params, key=None):
    return jnp.mean(jnp.square(model.apply(params, inputs(), key)))


def test_params_are_a_plain_pytree_of_floats(model):
    params = model.init(jax.random.key(0))
    assert all(
        type(leaf).__module__.startswith("jax") and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params)
    )
    assert isinstance(params, dict)


def test_init_depends_on_its_key(model):
    first, again, other = (jax.tree.leaves(model.init(jax.random.key(seed))) for seed in (0, 0, 1))
    assert all(jnp.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not jnp.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_evaluation_is_deterministic_and_jittable(model):
    params = model.init(jax.random.key(0))
    np.testing.assert_allclose(
        jax.jit(model.apply)(params, inputs()), model.apply(params, inputs()), rtol=1e-5, atol=1e-6
    )


def test_vmap_over_params_equals_a_loop(model):
    keys = jax.random.split(jax.random.key(0), 3)
    mapped = jax.vmap(lambda key: model.apply(model.init(key), inputs()))(keys)
    np.testing.assert_allclose(mapped, [model.apply(model.init(key), inputs()) for key in keys], rtol=1e-5, atol=1e-6)


def test_trains_with_optax_in_a_while_loop(model):
    params, optimizer = model.init(jax.random.key(0)), optax.sgd(0.1)

    def step(carry):
        count, params, state = carry
        grads = jax.grad(lambda p: squares(model, p, jax.random.fold_in(jax.random.key(1), count)))(params)
        updates, state = optimizer.update(grads, state, params)
        return count + 1, optax.apply_updates(params, updates), state

    train = jax.jit(lambda carry: jax.lax.while_loop(lambda c: c[0] < 100, step, carry))
    trained = train((0, params, optimizer.init(params)))[1]
    assert squares(model, trained) < 0.3 * squares(model, params)


@pytest.mark.parametrize("build", [linen_dropout, nnx_dropout])
def test_key_turns_dropout_on(build):
    model = build()
    params = model.init(jax.random.key(0))
    apply = jax.jit(model.apply)
    first, again, other = (apply(params, inputs(), jax.random.key(seed)) for seed in (0, 0, 1))
    assert jnp.mean(first == 0) > 0.2
    assert not jnp.any(apply(params, inputs()) == 0)
    assert jnp.array_equal(first, again) and not jnp.array_equal(first, other)


def test_linen_dropout_fixed_in_the_module_needs_a_key():
    model = from_linen(linen.Sequential([linen.Dense(8), linen.Dropout(0.5, deterministic=False)]), EXAMPLE)
    params = model.init(jax.random.key(0))
    assert jnp.any(model.apply(params, inputs(), jax.random.key(1)) == 0)


def test_nnx_dropouts_draw_from_streams_of_their_own():
    class Twice(nnx.Module):
        def __init__(self, rngs):
            self.scale = nnx.Param(jnp.ones(()))
            self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return jnp.stack([self.first(x), self.second(x)]) * self.scale[...]

    model = from_nnx(lambda rngs: Twice(rngs))
    first, second = model.apply(model.init(jax.random.key(0)), jnp.ones(1000), jax.random.key(1))
    assert abs(float(jnp.mean(first == second)) - 0.5) < 0.1


def test_nnx_apply_leaves_no_trace_of_the_params_it_was_given():
    model = from_nnx(lambda rngs: nnx.Linear(6, 8, rngs=rngs))
    params = model.init(jax.random.key(0))
    before = model.apply(params, inputs())
    jax.jit(jax.grad(lambda p: squares(model, p)))(params)
    model.apply(jax.tree.map(jnp.zeros_like, params), inputs())
    assert jnp.array_equal(model.apply(params, inputs()), before)


def test_linen_batch_norm_is_refused():
    norm = linen.BatchNorm(use_running_average=False)
    with pytest.raises(ValueError, match=r"BatchNorm has variables \['batch_stats'\].*GroupNorm"):
        from_linen(norm, EXAMPLE)


def test_nnx_batch_norm_is_refused():
    with pytest.raises(ValueError, match=r"BatchNorm has variables \['BatchStat'\].*GroupNorm"):
        from_nnx(lambda rngs: nnx.BatchNorm(6, rngs=rngs))


def test_module_without_parameters_is_refused():
    with pytest.raises(ValueError, match="Dropout must have parameters"):
        from_linen(linen.Dropout(0.5, deterministic=True), EXAMPLE)
    with pytest.raises(ValueError, match="Dropout must have parameters"):
        from_nnx(lambda rngs: nnx.Dropout(0.5, rngs=rngs))


def test_integer_parameters_are_refused():
    class Integer(linen.Module):
        @linen.compact
        def __call__(self, x):
            self.param("steps", lambda key: jnp.zeros((), jnp.int32))
            return x

    with pytest.raises(TypeError, match=r"steps.*int32"):
        from_linen(Integer(), EXAMPLE)


def test_a_model_made_anew_sees_globals_anew():
    scale = [1.0]

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(8, kernel_init=linen.initializers.constant(scale[0]))(x)

    for scale[0] in (1.0, 2.0):
        params = from_linen(Net(), EXAMPLE).init(jax.random.key(0))
        assert (params["Dense_0"]["kernel"] == scale[0]).all()


def test_partitioning_metadata_is_taken_off():
    dense = linen.Dense(8, kernel_init=linen.with_partitioning(linen.initializers.ones, (None, "clients")))
    params = from_linen(dense, EXAMPLE).init(jax.random.key(0))
    assert isinstance(params["kernel"], jax.Array)
