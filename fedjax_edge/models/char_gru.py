"""A recurrent model of characters: what comes next, at every position of a window."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fedjax_edge.core import checks
from fedjax_edge.models.model import Model, from_linen


class _CharGru(nn.Module):
    vocabulary: int
    embedding: int
    units: int

    @nn.compact
    def __call__(self, tokens):
        embedding = self.param("embedding", nn.initializers.normal(1.0), (self.vocabulary, self.embedding))
        kernel = self.param("input_kernel", nn.initializers.lecun_normal(), (self.embedding, 3 * self.units))
        recurrent = self.param("recurrent_kernel", _orthogonal_gates, (self.units, 3 * self.units))
        bias = self.param("bias", nn.initializers.zeros, (3 * self.units,))
        # Projecting the vocabulary once is cheaper than every token of every window.
        table = embedding @ kernel + bias[None]
        gates = table.at[tokens.T].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        states = _gru(gates, recurrent)
        return nn.Dense(self.vocabulary)(states).swapaxes(0, 1)


def _orthogonal_gates(key, shape, dtype=jnp.float32):
    units = shape[0]
    return jnp.concatenate(
        [nn.initializers.orthogonal()(k, (units, units), dtype) for k in jax.random.split(key, 3)], 1
    )


def _gru(gates, recurrent):
    """States `[window, batch, units]` from the input's share of the gates, `[window, batch, 3 * units]`."""
    units = recurrent.shape[0]

    def step(state, gate):
        update_reset = gate[:, : 2 * units]
        product = state @ recurrent
        update, reset = jnp.split(nn.sigmoid(update_reset + product[:, : 2 * units]), 2, axis=-1)
        candidate = jnp.tanh(gate[:, 2 * units :] + reset * product[:, 2 * units :])
        state = candidate + update * (state - candidate)
        return state, state

    start = jnp.zeros((gates.shape[1], units), gates.dtype)
    return lax.scan(step, start, gates)[1]


def char_gru(vocabulary: int = 65, embedding: int = 8, units: int = 64) -> Model:
    """An embedding, a gated recurrent unit and a dense layer on each state: 18,761 parameters.

    The reset gate multiplies the product of state and matrix, not the state (as in cuDNN, but with one bias), so that
    the three gates take one product a step. A token outside the vocabulary makes its window's logits NaN from there on.

    Args:
        vocabulary: number of tokens.
        embedding: width of a token's embedding.
        units: width of the state.

    Returns:
        A `Model` from tokens `[batch, window]`, of any integer dtype, to logits `[batch, window, vocabulary]`.

    Raises:
        ValueError: if an argument is not a positive integer.

    References:
        Cho et al. 2014, Learning Phrase Representations using RNN Encoder-Decoder, equations 5 to 8.

    >>> model = char_gru()
    >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 20), jnp.uint8)).shape
    (2, 20, 65)
    """
    checks.integer("vocabulary", vocabulary)
    checks.integer("embedding", embedding)
    checks.integer("units", units)
    return from_linen(_CharGru(vocabulary, embedding, units), jax.ShapeDtypeStruct((1, 1), jnp.int32))
