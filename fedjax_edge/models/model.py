"""What a model is: two pure functions; and how flax modules become them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.core import meta

from fedjax_edge.core import checks
from fedjax_edge.core.backend import only_shapes
from fedjax_edge.core.protocols import PyTree


class Model(NamedTuple):
    """A model as two pure functions; a pair of your own is as good as an adapted flax module.

    `params` is a pytree of float arrays. `apply` without a key is deterministic (evaluation); with one it may be random
    (training with dropout).

    >>> import jax, jax.numpy as jnp
    >>> line = Model(lambda key: {"slope": jax.random.normal(key)}, lambda params, x, key=None: params["slope"] * x)
    >>> line.apply(line.init(jax.random.key(0)), jnp.ones(3)).shape
    (3,)
    """

    init: Callable[[jax.Array], PyTree]  # (key) -> params
    apply: Callable[..., Any]  # (params, inputs, key=None) -> outputs


def from_linen(
    module: linen.Module,
    example_input: Any,
    training: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> Model:
    """A `flax.linen` module as a `Model`.

    A key given to `apply` is the module's `dropout` rng. Whether a linen module is deterministic is its own argument,
    so say here what to call it with: `training={"deterministic": False}, evaluation={"deterministic": True}`.

    Args:
        module: takes one array and has no variables other than parameters.
        example_input: an array or a `jax.ShapeDtypeStruct`; only its shape and dtype matter.
        training: keyword arguments of the module when `apply` has a key.
        evaluation: keyword arguments of the module when `apply` has no key, and in `init`.

    Returns:
        A `Model` whose `params` is the module's `params` collection, a dict of float arrays.

    Raises:
        ValueError: if the module has no parameters, or variables of another collection (such as `batch_stats`).
        TypeError: if a parameter is not floating point.

    >>> from flax import linen
    >>> model = from_linen(linen.Dense(3), jax.ShapeDtypeStruct((1, 5), jnp.float32))
    >>> jax.tree.map(jnp.shape, model.init(jax.random.key(0)))
    {'bias': (3,), 'kernel': (5, 3)}
    """
    training, evaluation = dict(training or {}), dict(evaluation or {})
    shape, dtype = jnp.shape(example_input), jnp.result_type(example_input)

    def variables(key):
        params_key, dropout_key = jax.random.split(key)
        rngs = {"params": params_key, "dropout": dropout_key}
        return meta.unbox(module.init(rngs, jnp.zeros(shape, dtype), **evaluation))

    def apply(params, inputs, key=None):
        if key is None:
            return module.apply({"params": params}, inputs, **evaluation)
        return module.apply({"params": params}, inputs, rngs={"dropout": key}, **training)

    with only_shapes():
        collections = jax.eval_shape(lambda: variables(jax.random.key(0)))  # inside: a key made here would start JAX
    _check_only_params(type(module).__name__, sorted(set(collections) - {"params"}))
    _check_params(type(module).__name__, collections.get("params"))
    return Model(lambda key: variables(key)["params"], apply)


def from_nnx(build: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """A `flax.nnx` module as a `Model`.

    Without a key `apply` runs the module in its `eval()` mode; with one, in its `train()` mode, every random stream of
    the module drawing from that key. (A module that draws also in `eval()` mode then draws the same each time.)

    Args:
        build: `(rngs) -> module`, such as `lambda rngs: nnx.Linear(784, 10, rngs=rngs)`.

    Returns:
        A `Model` whose `params` is the module's `nnx.Param` state as a nested dict of float arrays.

    Raises:
        ValueError: if the module has no parameters, or state other than parameters and random streams (`BatchStat`).
        TypeError: if a parameter is not floating point.

    >>> from flax import nnx
    >>> model = from_nnx(lambda rngs: nnx.Linear(5, 3, rngs=rngs))
    >>> jax.tree.map(jnp.shape, model.init(jax.random.key(0)))
    {'bias': (3,), 'kernel': (5, 3)}
    """
    module = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    name = type(module).__name__
    params_state, rng_state, other = nnx.state(module, nnx.Param, nnx.RngState, ...)
    _check_only_params(name, sorted({type(variable).__name__ for variable in _variables(other)}))
    _check_params(name, nnx.to_pure_dict(params_state))
    module.train()
    in_training = nnx.graphdef(module)
    module.eval()
    in_evaluation = nnx.graphdef(module)

    def init(key):
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key)), nnx.Param))

    def apply(params, inputs, key=None):
        graph, key = (in_evaluation, jax.random.key(0)) if key is None else (in_training, key)
        filled = jax.tree.map(lambda leaf: leaf, params_state)
        nnx.replace_by_pure_dict(filled, params)
        return nnx.merge(graph, filled, _seeded(rng_state, key))(inputs)

    return Model(init, apply)


def _variables(state):
    return jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def _seeded(rng_state, key):
    """Random streams at count zero, each with a key of its own; several in one where a layer is vmapped."""
    leaves, structure = jax.tree.flatten(rng_state)

    def seeded(index, leaf):
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jax.random.split(jax.random.fold_in(key, index), leaf.shape)

    return jax.tree.unflatten(structure, [seeded(index, leaf) for index, leaf in enumerate(leaves)])


def _check_only_params(name, others):
    if others:
        raise ValueError(
            f"module {name} has variables {others} beside its parameters; a model must have parameters only, "
            "for instance GroupNorm or LayerNorm in the place of BatchNorm"
        )


def _check_params(name, params):
    if not jax.tree.leaves(params):
        raise ValueError(f"module {name} must have parameters, got none")
    checks.float_tree("params", params)
