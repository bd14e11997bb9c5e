import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_edge.clients import local_sgd, local_training, with_weights
from fedjax_edge.core import Examples

COLUMNS = {"y": np.array([1.0, 3.0, 5.0, 100.0], np.float32)}
THREE = Examples(COLUMNS, jnp.int32(0), jnp.int32(3), jnp.int32(2))


def half_squared_error(params, batch, key):
    return (params - batch["y"]) ** 2 / 2


def test_fedsgd_sends_one_full_gradient_step(key):
    client = local_sgd(half_squared_error, optax.sgd(0.5), batch_size=None, steps=1)
    output = client.update(jnp.float32(1), THREE, client.init(jnp.float32(1)), key)
    assert output.update == -0.5 * (1 - 3)
    assert output.weight == 3
    assert output.state == ()
    assert output.metrics["loss"] == ((0 + 4 + 16) / 2, 3)


def test_the_update_is_trained_minus_broadcast(key):
    arguments = dict(batch_size=2, epochs=2)
    output = local_sgd(half_squared_error, optax.sgd(0.1), **arguments).update(jnp.float32(7), THREE, (), key)
    trained = local_training(half_squared_error, optax.sgd(0.1), **arguments)(jnp.float32(7), THREE, key)
    chex.assert_trees_all_close(output.update, trained.params - 7)


def test_weights_of_ones_own(key):
    client = with_weights(
        local_sgd(half_squared_error, optax.sgd(0.5), batch_size=2, steps=1), np.array([9.0, 9.0, 0.25])
    )
    assert client.update(jnp.float32(1), THREE, (), key).weight == 0.25


def test_a_client_without_a_weight_is_to_be_rejected(key):
    client = with_weights(local_sgd(half_squared_error, optax.sgd(0.5), batch_size=2, steps=1), np.array([9.0, 9.0]))
    assert np.isnan(client.update(jnp.float32(1), THREE, (), key).weight)


@pytest.mark.parametrize("weights", [[1.0, -1.0], [1.0, np.nan], [[1.0]], 3.0])
def test_bad_weights(weights):
    client = local_sgd(half_squared_error, optax.sgd(0.5), batch_size=2, steps=1)
    with pytest.raises(ValueError, match="weights must be finite, at least 0 and of shape"):
        with_weights(client, np.array(weights))
