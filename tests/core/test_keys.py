import itertools

import jax
import jax.numpy as jnp

from fedjax_edge.core import ClientStream, RunStream, TrainingStream, client_key, derive


def test_every_stream_of_the_table_is_its_own():
    root = jax.random.key(0)
    keys = [derive(root, stream) for stream in (RunStream.INIT, RunStream.SPLIT)]
    keys += [derive(root, stream, r) for stream in (RunStream.COHORT, RunStream.SERVER) for r in range(5)]
    for r, client, stream in itertools.product(range(5), range(5), ClientStream):
        of_client = derive(client_key(root, r, client), stream)
        keys.append(of_client)
        if stream is ClientStream.TRAINING:
            keys += [derive(of_client, purpose, i) for purpose in TrainingStream for i in range(3)]
    data = {tuple(jax.random.key_data(key).tolist()) for key in keys}
    assert len(data) == len(keys)


def test_a_path_folds_in_one_element_after_another():
    root, path = jax.random.key(0), (3, jnp.int32(5), 2**32 - 1, RunStream.SERVER)
    expected = root
    for length in range(len(path) + 1):
        assert derive(root, *path[:length]) == expected
        expected = jax.random.fold_in(expected, path[length]) if length < len(path) else None


def test_a_client_key_depends_on_nothing_else():
    root = jax.random.key(1)
    in_a_batch = jax.vmap(lambda client: client_key(root, jnp.int32(3), client))(jnp.array([8, 5, 2]))
    assert in_a_batch[1] == client_key(root, 3, 5)
