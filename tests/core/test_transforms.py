import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.core import Codec, UpdateTransform, as_transform, chain
from fedjax_edge.core.transforms import compose

DOUBLE = UpdateTransform(lambda update: (), lambda update, state, key: (2 * update, state, None))
COUNT = UpdateTransform(
    lambda update: jnp.int32(0), lambda update, state, key: (update + state.astype(update.dtype), state + 1, None)
)
HALF = Codec(lambda update, key: update.astype(jnp.bfloat16), lambda payload: payload.astype(jnp.float32))
DRAW = UpdateTransform(lambda update: (), lambda update, state, key: (update + jax.random.normal(key), state, 7))


def test_an_empty_chain_leaves_updates_alone(key):
    update, state, bits = chain().apply(jnp.ones(3), chain().init(jnp.ones(3)), key)
    np.testing.assert_array_equal(update, np.ones(3))
    assert state == ()
    assert bits is None


def test_parts_apply_from_left_to_right_and_keep_their_own_states(key):
    transform = chain(COUNT, DOUBLE, COUNT)
    state = transform.init(jnp.zeros(()))
    update, state, _ = transform.apply(jnp.float32(1), state, key)
    update, state, _ = transform.apply(update, state, key)
    assert update == (2 + 1) * 2 + 1
    chex.assert_trees_all_equal(state, (jnp.int32(2), (), jnp.int32(2)))


def test_the_last_part_that_encodes_says_what_is_sent(key):
    update = jnp.ones(10)
    for transform, bits in [(chain(HALF), 160), (chain(HALF, DRAW), 7), (chain(DRAW, HALF, DOUBLE), 160)]:
        assert transform.apply(update, transform.init(update), key)[2] == bits


def test_a_codec_loses_what_its_payload_cannot_hold(key):
    received, _, _ = as_transform(HALF).apply(jnp.float32(1 + 2**-12), (), key)
    assert received == 1


def test_parts_draw_from_keys_of_their_own(key):
    twice = chain(DRAW, DRAW).apply(jnp.float32(0), ((), ()), key)[0]
    once = chain(DRAW).apply(jnp.float32(0), ((),), key)[0]
    assert abs(twice - 2 * once) > 1e-3


def test_anything_else_is_refused():
    with pytest.raises(TypeError, match="made of UpdateTransforms and Codecs, got 8"):
        chain(8)


PAIR = Codec(lambda update, key: (update, jnp.int8(3)), lambda payload: payload[0] + payload[1].astype(jnp.float32))


def halved(update, key):
    return [leaf.astype(jnp.bfloat16) for leaf in update]


HALVES = Codec(halved, lambda payload: [leaf.astype(jnp.float32) for leaf in payload])


def test_the_floats_of_a_payload_go_through_the_next_codec_and_its_integers_as_they_are(key):
    codec = compose(PAIR, HALVES)
    payload = codec.encode(jnp.array([1 + 2**-12, 5.0]), key)
    assert [leaf.dtype for leaf in jax.tree.leaves(payload)] == [jnp.bfloat16, jnp.int8]
    assert codec.decode(payload).tolist() == [4, 8]


def test_consecutive_codecs_of_a_chain_are_composed(key):
    update = jnp.ones(10)
    for transform, bits in [(chain(PAIR, HALVES), 168), (chain(PAIR, DOUBLE, HALF), 160), (chain(PAIR), 328)]:
        assert transform.apply(update, transform.init(update), key)[2] == bits
    received, states, _ = chain(PAIR, HALVES, COUNT).apply(update, chain(PAIR, HALVES, COUNT).init(update), key)
    assert received.tolist() == [4.0] * 10 and len(states) == 2


def test_composed_codecs_draw_from_keys_of_their_own_and_may_be_many(key):
    draw = Codec(lambda update, key: [jax.random.normal(key), update[0]], lambda payload: payload)
    second, first = jax.tree.leaves(compose(draw, draw, HALVES).encode([jnp.float32(0)], key))
    assert abs(first - second).astype(jnp.float32) > 0.01
    assert compose(draw).encode is draw.encode


def test_only_codecs_are_composed():
    with pytest.raises(TypeError, match="compose takes Codecs, got 8"):
        compose(HALF, 8)
    with pytest.raises(TypeError, match="compose takes Codecs"):
        compose(DOUBLE)
    with pytest.raises(ValueError, match="at least one codec"):
        compose()
