import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_edge.compression import error_feedback, fixed_point, stochastic_uniform, top_k
from fedjax_edge.core.trees import gather, size_in_bits

CODECS = {
    "top_k": top_k(0.2),
    "stochastic_uniform": stochastic_uniform(2),
    "fixed_point": fixed_point(1),
}
TRANSFORMS = {name: error_feedback(codec) for name, codec in CODECS.items()}
APPLY = {name: jax.jit(transform.apply) for name, transform in TRANSFORMS.items()}
ROUNDS = 6


def all_rounds(codec):
    """Returns what a client sends and remembers in each round, [ROUNDS, 7], through a jitted scan."""
    transform = error_feedback(codec)

    def one_round(memory, update_and_key):
        sent, memory, _ = transform.apply(as_tree(update_and_key[0]), memory, update_and_key[1])
        return memory, jax.tree.map(jnp.ravel, (sent, memory))

    def run(updates, seed):
        keys = jax.random.split(jax.random.key(seed), ROUNDS)
        _, trees = jax.lax.scan(one_round, transform.init(as_tree(updates[0])), (updates, keys))
        return [jnp.concatenate([tree["a"], tree["b"]], axis=1) for tree in trees]

    return jax.jit(run)


ALL_ROUNDS = {name: all_rounds(codec) for name, codec in CODECS.items()}


def as_tree(vector):
    return {"a": vector[..., :3], "b": vector[..., 3:].reshape(*vector.shape[:-1], 2, 2)}


def as_vector(tree):
    return np.concatenate([np.ravel(tree["a"]), np.ravel(tree["b"])])


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=30)
@given(updates=hnp.arrays(np.float32, (ROUNDS, 7), elements=st.floats(-3, 3, width=32)), seed=st.integers(0, 99))
def test_what_was_sent_and_what_is_remembered_sum_to_all_updates(name, updates, seed):
    sent, memories = ALL_ROUNDS[name](updates, seed)
    np.testing.assert_allclose(np.cumsum(sent, 0) + memories, np.cumsum(updates, 0), atol=1e-4)


def test_what_top_k_dropped_is_sent_in_the_rounds_that_follow():
    transform = error_feedback(top_k(0.25))
    apply = jax.jit(transform.apply)
    update = jnp.array([1.0, -4.0, 2.0, 3.0])
    memory, sent = transform.init(update), []
    for number in range(4):
        received, memory, _ = apply(update if number == 0 else jnp.zeros(4), memory, None)
        sent.append(received.tolist())
    assert sent == [[0, -4, 0, 0], [0, 0, 0, 3], [0, 0, 2, 0], [1, 0, 0, 0]]
    assert not memory.any()


@pytest.mark.parametrize("name", CODECS)
def test_the_bits_are_those_of_the_payload(name):
    update = as_tree(jnp.linspace(-1, 1, 7))
    key = jax.random.key(0)
    bits = APPLY[name](update, TRANSFORMS[name].init(update), key)[2]
    assert bits == size_in_bits(jax.eval_shape(CODECS[name].encode, update, key))


def test_memory_starts_at_zero_and_keeps_structure_and_at_least_float32():
    update = {"a": jnp.ones(3, jnp.bfloat16), "b": (jnp.float32(2.0), jnp.ones((2, 0)))}
    for name in CODECS:
        memory = TRANSFORMS[name].init(update)
        assert jax.tree.map(jnp.shape, memory) == jax.tree.map(jnp.shape, update)
        assert not any(leaf.any() for leaf in jax.tree.leaves(memory))
        sent, after, _ = APPLY[name](update, memory, jax.random.key(0))
        assert jax.tree.map(lambda leaf: leaf.dtype, sent) == jax.tree.map(lambda leaf: leaf.dtype, update)
        assert {leaf.dtype for leaf in jax.tree.leaves((memory, after))} == {np.dtype(np.float32)}


def test_small_numbers_add_up_beside_large_ones_in_narrow_floats():
    transform, update = error_feedback(top_k(0.5)), jnp.array([1000, 0.5], jnp.bfloat16)
    memory, _ = jax.lax.scan(
        lambda memory, _: (transform.apply(update, memory, None)[1], None), transform.init(update), None, length=1000
    )
    assert memory.tolist() == [0, 500]  # bfloat16 has no number between 128 and 129


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_sent_to_be_rejected(name, bad):
    update = as_tree(jnp.linspace(-1, 1, 7).at[4].set(bad))
    sent, _, _ = APPLY[name](update, TRANSFORMS[name].init(update), jax.random.key(0))
    assert not np.isfinite(as_vector(sent)).all()


def test_clients_remember_for_themselves_under_vmap():
    updates = as_tree(jax.random.normal(jax.random.key(0), (3, 7)))
    memories = as_tree(jax.random.normal(jax.random.key(1), (3, 7)))
    keys = jax.random.split(jax.random.key(2), 3)
    apply = APPLY["stochastic_uniform"]
    sent, after, _ = jax.vmap(apply)(updates, memories, keys)
    for client in range(3):
        update, memory, own_sent, own_after = gather((updates, memories, sent, after), client)
        alone, remembered, _ = apply(update, memory, keys[client])
        np.testing.assert_allclose(as_vector(own_sent), as_vector(alone), rtol=1e-6)
        np.testing.assert_allclose(as_vector(own_after), as_vector(remembered), atol=1e-6)
