import chex
import jax.numpy as jnp
import optax
import pytest

from fedjax_edge.core import as_server_update


def test_sgd_with_rate_one_adds_the_aggregate():
    server = as_server_update(optax.sgd(1.0))
    state = server.update(server.init({"w": jnp.array([1.0, 2.0])}), {"w": jnp.array([0.5, -1.0])})
    chex.assert_trees_all_close(server.params(state), {"w": jnp.array([1.5, 1.0])})
    chex.assert_trees_all_equal(server.broadcast(state), server.params(state))


def test_momentum_lasts_from_round_to_round():
    server = as_server_update(optax.sgd(1.0, momentum=0.5))
    state = server.init(jnp.float32(0))
    for expected in (1.0, 2.5, 4.25):
        state = server.update(state, jnp.float32(1))
        assert server.params(state) == expected


def test_the_parameters_keep_their_dtype():
    server = as_server_update(optax.sgd(1.0))
    state = server.update(server.init(jnp.ones(2, jnp.bfloat16)), jnp.ones(2, jnp.float32))
    assert server.params(state).dtype == jnp.bfloat16


def test_anything_else_is_refused():
    with pytest.raises(TypeError, match="server must be a ServerUpdate or an optax optimizer, got 'sgd'"):
        as_server_update("sgd")
