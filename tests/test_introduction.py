"""The introduction's example against NumPy: two workers, a 2-3-1 network, and what was done to its parameters.

Nothing below `by_hand` comes from the package or from JAX: the gradient is worked out with the chain rule.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_edge as fe

pytestmark = pytest.mark.usefixtures("optimized")

POINTS = np.array([[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], [0.7, 0.8]]])  # [workers, examples, 2]
TARGETS = np.array([[0.0, 1.0], [0.0, 1.0]])
EPOCHS = 10
WRITTEN_OUT = {  # with every hidden unit off for some points or on for all
    "hidden": {"kernel": [[0.5, -0.7, 0.6], [0.2, -0.3, 0.4]], "bias": [0.1, 0.63, -0.44]},
    "output": {"kernel": [[0.7], [-0.5], [0.4]], "bias": [0.05]},
}


def start(seed):
    if seed is None:
        return jax.tree.map(np.array, WRITTEN_OUT, is_leaf=lambda node: isinstance(node, list))
    rng = np.random.default_rng(seed)
    shapes = {"hidden": {"kernel": (2, 3), "bias": (3,)}, "output": {"kernel": (3, 1), "bias": (1,)}}
    return jax.tree.map(lambda shape: rng.uniform(-1, 1, shape), shapes, is_leaf=lambda node: isinstance(node, tuple))


def gradient_by_hand(params, x, y):
    """The gradient of the mean squared error over one worker's examples, float64."""
    before = x @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    hidden = np.where(before > 0, before, 0.0)
    output = 1 / (1 + np.exp(-(hidden @ params["output"]["kernel"][:, 0] + params["output"]["bias"][0])))
    to_output = 2 * (output - y) / len(y) * output * (1 - output)
    to_hidden = np.outer(to_output, params["output"]["kernel"][:, 0]) * (before > 0)
    return {
        "hidden": {"kernel": x.T @ to_hidden, "bias": to_hidden.sum(0)},
        "output": {"kernel": (hidden.T @ to_output)[:, None], "bias": to_output.sum(keepdims=True)},
    }


def step_by_hand(params, gradient, learning_rate):
    return {
        layer: {name: params[layer][name] - learning_rate * gradient[layer][name] for name in params[layer]}
        for layer in params
    }


def cyclic_by_hand(params, epochs, learning_rate):
    for _ in range(epochs):
        for x, y in zip(POINTS, TARGETS, strict=True):
            params = step_by_hand(params, gradient_by_hand(params, x, y), learning_rate)
    return params


def fedavg_by_hand(params, epochs, learning_rate):
    for _ in range(epochs):
        first, second = (
            step_by_hand(params, gradient_by_hand(params, x, y), learning_rate)
            for x, y in zip(POINTS, TARGETS, strict=True)
        )
        params = {
            layer: {name: (first[layer][name] + second[layer][name]) / 2 for name in params[layer]} for layer in params
        }
    return params


def loss_fn(params, batch, key):
    hidden = jax.nn.relu(batch["x"] @ params["hidden"]["kernel"] + params["hidden"]["bias"][None, :])
    output = jax.nn.sigmoid(hidden @ params["output"]["kernel"] + params["output"]["bias"][None, :])
    return optax.losses.squared_error(output[:, 0], batch["y"])


def workers():
    return fe.data.from_client_arrays(
        [{"x": x.astype(np.float32), "y": y.astype(np.float32)} for x, y in zip(POINTS, TARGETS, strict=True)]
    )


@functools.cache  # one compilation for all starting points and numbers of rounds
def algorithm(learning_rate, aggregator=None):
    return fe.algorithms.fedavg(loss_fn, optax.sgd(learning_rate), batch_size=None, steps=1, aggregator=aggregator)


def as_float32(params):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def train(params, sampler, rounds, learning_rate):
    result = fe.run(
        algorithm(learning_rate),
        as_float32(params),
        workers(),
        sampler=sampler,
        rounds=rounds,
        key=jax.random.key(0),
        progress=False,
    )
    return result.params


def assert_close(actual, expected, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), actual, expected)


def largest_difference(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(np.asarray(x) - y).max()), a, b)))


@pytest.mark.parametrize("epochs", [1, EPOCHS])
@pytest.mark.parametrize("learning_rate", [0.01, 1.0])
@pytest.mark.parametrize("seed", [None, 0, 1])
class TestTraining:
    def test_model_that_travels_from_worker_to_worker(self, seed, learning_rate, epochs):
        expected = cyclic_by_hand(start(seed), epochs, learning_rate)
        assert_close(train(start(seed), fe.data.cyclic(2), 2 * epochs, learning_rate), expected)

    def test_fedavg(self, seed, learning_rate, epochs):
        expected = fedavg_by_hand(start(seed), epochs, learning_rate)
        assert_close(train(start(seed), fe.data.everyone(2), epochs, learning_rate), expected)


def test_tolerance_tells_training_from_none_and_cyclic_from_fedavg():
    cyclic, fedavg = (by_hand(start(None), EPOCHS, 0.01) for by_hand in (cyclic_by_hand, fedavg_by_hand))
    assert min(largest_difference(cyclic, start(None)), largest_difference(fedavg, start(None))) > 1e-3
    assert largest_difference(cyclic, fedavg) > 1e-3


def test_gradient_by_hand_equals_difference_quotients():
    x, y = POINTS[1], TARGETS[1]

    def loss(params):
        hidden = np.maximum(x @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
        output = 1 / (1 + np.exp(-(hidden @ params["output"]["kernel"] + params["output"]["bias"])))
        return np.mean((output[:, 0] - y) ** 2)

    for layer, leaves in gradient_by_hand(start(None), x, y).items():
        for name, gradient in leaves.items():
            for index in np.ndindex(gradient.shape):
                above, below = start(None), start(None)
                above[layer][name][index] += 1e-6
                below[layer][name][index] -= 1e-6
                assert (loss(above) - loss(below)) / 2e-6 == pytest.approx(gradient[index], abs=1e-8)


def test_quantization_to_8_bits_is_that_of_the_introduction():
    trained = train(start(None), fe.data.cyclic(2), 2 * EPOCHS, 0.01)
    codec = fe.compression.fixed_point(8)
    decoded = codec.decode(codec.encode(trained, jax.random.key(0)))
    expected = jax.tree.map(lambda p: np.round(np.asarray(p) * np.float32(2**8 - 1)) / np.float32(2**8 - 1), trained)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-7), decoded, expected)  # one rounding of float32
    assert 0 < largest_difference(decoded, trained) <= 0.5 / 255 + 1e-7


def test_noise_of_the_introduction_is_that_of_a_private_mean_without_its_clip(key):
    """Noise 0.01 on every parameter: `noise_multiplier * clip_norm / denominator`, here 0.4 * 0.05 / 2."""
    aggregator = fe.privacy.gaussian_mean(clip_norm=0.05, noise_multiplier=0.4, denominator=2)
    private = algorithm(0.01, aggregator=aggregator)
    population, plan = workers(), fe.make_plan()

    def one_round(key):
        cohort = fe.data.everyone(2).sample(key, jnp.int32(0))
        state = private.init(as_float32(start(None)), key, population)
        state, _ = private.round(state, cohort, population, plan)
        return private.params(state)

    noisy = jax.jit(jax.vmap(one_round))(jax.random.split(key, 4000))
    noise = jax.tree.map(lambda rows, clean: np.asarray(rows) - clean, noisy, fedavg_by_hand(start(None), 1, 0.01))
    columns = np.concatenate([leaf.reshape(4000, -1) for leaf in jax.tree.leaves(noise)], axis=1)
    standard_error = 0.01 / np.sqrt(4000)
    np.testing.assert_allclose(columns.mean(0), 0, atol=5 * standard_error)
    np.testing.assert_allclose(columns.std(0), 0.01, atol=5 * standard_error / np.sqrt(2))
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)
