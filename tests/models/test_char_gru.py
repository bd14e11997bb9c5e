import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_edge.models.char_gru import char_gru
from fedjax_edge.models.losses import next_character


def tokens(batch, window, vocabulary=65):
    return jax.random.randint(jax.random.key(1), (batch, window), 0, vocabulary).astype(jnp.uint8)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_has_18761_parameters():
    params = jax.eval_shape(char_gru().init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 18_761


def test_follows_its_equations():
    model = char_gru(units=5)
    params = jax.tree.map(lambda leaf: leaf + 0.1, model.init(jax.random.key(0)))
    x = tokens(3, 6)
    table, kernel, recurrent, bias = (
        np.asarray(params[name], np.float64) for name in ("embedding", "input_kernel", "recurrent_kernel", "bias")
    )
    state, outputs = np.zeros((3, 5)), []
    for column in np.asarray(x).T:
        (zx, rx, nx), (zh, rh, nh) = (np.split(y, 3, 1) for y in (table[column] @ kernel + bias, state @ recurrent))
        update, reset = sigmoid(zx + zh), sigmoid(rx + rh)
        state = (1 - update) * np.tanh(nx + reset * nh) + update * state
        outputs.append(state @ np.asarray(params["Dense_0"]["kernel"]) + np.asarray(params["Dense_0"]["bias"]))
    np.testing.assert_allclose(model.apply(params, x), np.stack(outputs, 1), rtol=1e-4, atol=1e-5)


def test_gates_start_orthogonal():
    recurrent = char_gru(units=6).init(jax.random.key(0))["recurrent_kernel"]
    gates = jnp.split(recurrent, 3, axis=1)
    for gate in gates:
        np.testing.assert_allclose(gate.T @ gate, jnp.eye(6), atol=1e-5)
    assert not jnp.array_equal(gates[0], gates[1])


def test_no_character_sees_a_later_one():
    model = char_gru()
    params, x = model.init(jax.random.key(0)), tokens(2, 8)
    changed = model.apply(params, x.at[:, 5].set(64 - x[:, 5]))
    same = jnp.all(changed == model.apply(params, x), axis=(0, 2))
    np.testing.assert_array_equal(same[:5], True)
    np.testing.assert_array_equal(same[5:], False)


@pytest.mark.parametrize(("bad", "dtype"), [(65, jnp.uint8), (255, jnp.uint8), (-1, jnp.int32)])
def test_token_outside_the_vocabulary_spoils_its_window(bad, dtype):
    model = char_gru()
    x = tokens(3, 8).astype(dtype).at[1, 4].set(jnp.array(bad, dtype))
    logits = model.apply(model.init(jax.random.key(0)), x)
    np.testing.assert_array_equal(jnp.isnan(logits[:, 7]).any(1), [False, True, False])
    assert not jnp.isnan(logits[1, :4]).any()


def test_vmaps_over_params():
    model = char_gru()
    stacked = jax.jit(jax.vmap(model.init))(jax.random.split(jax.random.key(0), 2))
    mapped = jax.vmap(model.apply, (0, None))(stacked, tokens(3, 6))
    alone = jax.lax.map(lambda params: model.apply(params, tokens(3, 6)), stacked)
    np.testing.assert_allclose(mapped, alone, rtol=1e-4, atol=1e-5)


def test_learns_what_comes_next():
    model = char_gru(vocabulary=7)
    text = tokens(4, 11, 7)
    batch = {"input": text[:, :-1], "target": text[:, 1:]}
    loss = lambda params: jnp.mean(next_character(model)(params, batch, None)[0])  # noqa: E731
    optimizer = optax.sgd(0.3, momentum=0.9)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    params = jax.jit(model.init)(jax.random.key(0))
    (trained, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=80))((params, optimizer.init(params)))
    assert loss(trained) < 0.3 * loss(params)


@pytest.mark.parametrize("argument", ["vocabulary", "embedding", "units"])
def test_bad_arguments_are_refused(argument):
    with pytest.raises(ValueError, match=f"{argument} must be an integer of at least 1, got 0"):
        char_gru(**{argument: 0})
