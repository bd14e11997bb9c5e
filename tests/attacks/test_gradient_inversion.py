"""Data comes back from plain gradients and through the introduction's noise, and not through a clip and its noise."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_edge as fe
from fedjax_edge.attacks import (
    cosine_distance,
    dense_input,
    gradient_inversion,
    labels_from_gradient,
    psnr,
    squared_distance,
)

LEARNING_RATE = 0.1
SECRETS = (1, 5)  # rows of the training sample: a 0 and a 2


@pytest.fixture
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax's adam promotes
        yield


uses_adam = pytest.mark.usefixtures("standard_promotion")

model = fe.models.logistic_regression()
loss_fn = fe.models.classification(model)
params = model.init(jax.random.key(1))
train = fe.data.mnist_sample().train


def secret(row):
    image = jnp.asarray(train["image"][row : row + 1], jnp.float32) / 255
    return {"image": image, "label": jnp.asarray(train["label"][row : row + 1], jnp.int32)}


@jax.jit
def update_of(batch):
    """What a client sends after one local step on its only example."""
    gradient = jax.grad(lambda params: loss_fn(params, batch, None)[0].mean())(params)
    return optax.tree.scale(-LEARNING_RATE, gradient)


def noisy(update, std, key):
    return optax.tree.add_scale(update, std, optax.tree.random_like(key, update))


def privately(update, key):
    """The private mean of a cohort of one: the attacker's best case, clip and noise of the main job."""
    aggregator = fe.privacy.gaussian_mean(clip_norm=0.2, noise_multiplier=2.75, denominator=1)
    return aggregator.finish(aggregator.contribution(update, jnp.float32(1), ()), (), key)[0]


RELEASES = {
    "plain": lambda update, key: update,
    "the introduction's noise": lambda update, key: noisy(update, 0.01, key),
    "clip and noise": privately,
}

attack = jax.jit(gradient_inversion(loss_fn, optax.adam(0.1), steps=400, total_variation=1e-3, bounds=(0.0, 1.0)))


def recovered(row, release):
    """The attacker sees the update alone: the label comes from it as well."""
    key = jax.random.key(row)
    observed = jax.tree.map(jnp.negative, RELEASES[release](update_of(secret(row)), key))
    label = labels_from_gradient(observed["Dense_0"]["bias"])
    return observed, attack(params, observed, {"image": jnp.full((1, 28, 28), 0.5), "label": label}).batch


@uses_adam
@pytest.mark.parametrize("row", SECRETS)
@pytest.mark.parametrize(("release", "at_least"), [("plain", 30), ("the introduction's noise", 18)])
def test_an_image_comes_back_from_an_update(row, release, at_least):
    observed, batch = recovered(row, release)
    assert batch["label"] == secret(row)["label"]
    assert psnr(batch["image"], secret(row)["image"])[0] > at_least
    by_quotient = dense_input(observed["Dense_0"]["kernel"], observed["Dense_0"]["bias"])
    assert psnr(by_quotient.reshape(1, 28, 28), secret(row)["image"])[0] > at_least


@uses_adam
@pytest.mark.parametrize("row", SECRETS)
def test_an_image_does_not_come_back_from_a_private_mean(row):
    observed, batch = recovered(row, "clip and noise")
    batch["label"] = secret(row)["label"]  # even when told the label, ...
    batch = attack(params, observed, batch | {"image": jnp.full((1, 28, 28), 0.5)}).batch
    blank = psnr(jnp.zeros((1, 28, 28)), secret(row)["image"])[0]
    assert psnr(batch["image"], secret(row)["image"])[0] < blank + 1  # ... it does no better than a blank image
    by_quotient = dense_input(observed["Dense_0"]["kernel"], observed["Dense_0"]["bias"])
    assert psnr(by_quotient.reshape(1, 28, 28), secret(row)["image"])[0] < blank


@uses_adam
def test_an_image_comes_back_through_the_convolutions_of_the_main_job():
    cnn = fe.models.small_cnn()
    cnn_params, cnn_loss, batch = cnn.init(jax.random.key(1)), fe.models.classification(cnn), secret(1)
    invert = gradient_inversion(cnn_loss, optax.adam(0.1), steps=300, total_variation=0.1, bounds=(0.0, 1.0))

    @jax.jit
    def found(guess):
        gradient = jax.grad(lambda params: cnn_loss(params, batch, None)[0].mean())(cnn_params)
        label = labels_from_gradient(gradient["Dense_0"]["bias"])
        return invert(cnn_params, gradient, {"image": guess, "label": label})

    found = found(0.5 + 0.01 * jax.random.normal(jax.random.key(5), (1, 28, 28)))
    assert found.batch["label"] == batch["label"]
    assert found.mismatch[-1] < 0.12 < 0.4 < found.mismatch[0]
    blank = psnr(jnp.zeros((1, 28, 28)), batch["image"])[0]
    assert psnr(found.batch["image"], batch["image"])[0] > blank + 4  # 13 measured; the search has local minima


def line(params, batch, key):
    """Squared error of x1 w1 + x2 w2 + b against 0."""
    return (batch["x"] @ params["w"] + params["b"]) ** 2


@uses_adam
def test_deep_leakage_recovers_inputs_and_soft_labels_by_the_squared_distance():
    def soft_loss(params, batch, key):
        return optax.softmax_cross_entropy(batch["x"] @ params["w"] + params["b"], jax.nn.softmax(batch["y"]))

    params = {"w": jnp.array([[0.5, -0.3], [0.2, 0.9]]), "b": jnp.zeros((1, 2))}
    batch = {"x": jnp.array([[0.8, -0.4]]), "y": jnp.array([[1.5, -1.0]])}
    observed = jax.grad(lambda params: soft_loss(params, batch, None).mean())(params)
    invert = gradient_inversion(soft_loss, optax.adam(0.05), steps=800, distance=squared_distance)
    found = jax.jit(invert)(params, observed, {"x": jnp.zeros((1, 2)), "y": jnp.zeros((1, 2))})
    np.testing.assert_allclose(found.batch["x"], batch["x"], atol=0.01)
    np.testing.assert_allclose(jax.nn.softmax(found.batch["y"]), jax.nn.softmax(batch["y"]), atol=0.01)
    assert found.mismatch.shape == (801,) and found.mismatch[-1] < 1e-6


def test_distances_by_hand():
    first, second = {"a": jnp.array([3.0, 0.0]), "b": jnp.float32(4)}, {"a": jnp.array([0.0, 0.0]), "b": jnp.float32(2)}
    np.testing.assert_allclose(cosine_distance(first, second), 1 - 8 / (5 * 2), rtol=1e-6)
    np.testing.assert_allclose(cosine_distance(optax.tree.scale(-1e-9, first), second), 1.8, rtol=1e-6)
    np.testing.assert_allclose(squared_distance(first, second), 9 + 4)
    zero = optax.tree.zeros_like(first)
    assert cosine_distance(zero, second) == cosine_distance(second, zero) == 1
    chex.assert_tree_all_finite(jax.grad(cosine_distance)(zero, second))


@pytest.mark.parametrize("scale", [1e-36, 1e-25, 1e-16, 1e19, 1e37])
def test_the_cosine_distance_does_not_depend_on_lengths(scale):
    first, second = (
        {"a": jnp.array([3.0, 0.0]), "b": jnp.float32(-4)},
        {"a": jnp.array([0.0, 1.0]), "b": jnp.float32(5)},
    )
    scaled = optax.tree.scale(scale, first)
    for pair, expected in (((scaled, first), 0), ((first, scaled), 0), ((scaled, second), 1 + 4 / 26**0.5)):
        np.testing.assert_allclose(jax.jit(cosine_distance)(*pair), expected, atol=1e-6)
    plain, found = jax.grad(cosine_distance)(first, second), jax.grad(cosine_distance)(scaled, second)
    if 1e-25 <= scale <= 1e19:  # a derivative is as small as its gradient is large
        chex.assert_trees_all_close(optax.tree.scale(scale, found), plain, atol=1e-6)


def test_the_cosine_distance_from_what_is_not_finite_is_not_finite():
    for bad in (jnp.nan, jnp.inf):
        assert not np.isfinite(cosine_distance(jnp.array([bad, 1.0]), jnp.array([1.0, 1.0])))


def test_the_search_keeps_labels_stays_in_range_and_leaves_its_guess_where_nothing_is_seen():
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.float32(0.5)}
    guess = {"x": jnp.array([[0.25, 0.75]]), "label": jnp.array([7], jnp.uint8)}
    zeros = optax.tree.zeros_like(params)
    still = gradient_inversion(line, optax.sgd(0.1), steps=3, bounds=(0.0, 1.0))(params, zeros, guess)
    np.testing.assert_array_equal(still.batch["x"], guess["x"])
    np.testing.assert_array_equal(still.mismatch, 1)
    assert still.batch["label"] == 7 and still.batch["label"].dtype == jnp.uint8
    far = gradient_inversion(line, optax.sgd(1e3), steps=3, bounds=(0.0, 1.0))
    assert set(far(params, params, guess).batch["x"].ravel().tolist()) <= {0.0, 1.0}
    lost = far(params, zeros | {"b": jnp.float32(jnp.nan)}, guess)
    assert np.isnan(lost.batch["x"]).all() and np.isnan(lost.mismatch).all()


def test_total_variation_alone_flattens_an_image():
    """By hand: (|1 - 0| + |0 - 0|) / 2 between rows and (0 + 1) / 2 between columns; a column of features has none."""
    from fedjax_edge.attacks.gradient_inversion import _total_variation

    assert _total_variation(jnp.array([[[1.0, 0.0], [0.0, 0.0]]])) == 0.5 + 0.5
    assert _total_variation(jnp.array([[1.0, 0.0]])) == 0
    flat = gradient_inversion(
        lambda params, batch, key: batch["x"].sum((1, 2)) * params, optax.sgd(0.01), steps=200, total_variation=1.0
    )(jnp.float32(0), jnp.float32(0), {"x": jnp.array([[[1.0, 0.0], [0.0, 0.0]]])})
    assert jnp.ptp(flat.batch["x"]) < 0.1


def test_narrow_floats_and_traced_weights_work():
    params = {"w": jnp.array([1.0, -2.0], jnp.bfloat16), "b": jnp.bfloat16(0.5)}
    guess = {"x": jnp.ones((1, 2), jnp.bfloat16)}

    @jax.jit
    def found(weight):
        return gradient_inversion(line, optax.sgd(0.1), steps=2, total_variation=weight)(params, params, guess)

    assert found(0.1).batch["x"].dtype == jnp.bfloat16
    assert found(0.1).mismatch.dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"total_variation": -1.0}, "total_variation must be"),
        ({"bounds": (1.0, 0.0)}, "bounds must be"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        gradient_inversion(line, optax.sgd(0.1), **{"steps": 1, **change})


def test_labels_by_hand_of_bias_and_kernel():
    """Softmax (0.2, 0.3, 0.5), label 1: the bias's gradient is (0.2, -0.7, 0.5), the kernel's that times the inputs."""
    bias = jnp.array([0.2, -0.7, 0.5])
    assert labels_from_gradient(bias).tolist() == [1]
    assert labels_from_gradient(jnp.outer(jnp.array([0.0, 3.0, 1.0]), bias)).tolist() == [1]
    assert labels_from_gradient(jnp.array([-0.1, 0.6, -0.5]), count=2).tolist() == [2, 0]
    with pytest.raises(ValueError, match="count must be"):
        labels_from_gradient(bias, count=4)


def test_the_input_of_a_dense_layer_by_hand():
    """x = (1, 2, 0), gradients of two units' sums 3 and -1; then two examples, (1, 0) with 3 and (0, 1) with 1."""
    x, units = np.array([1.0, 2.0, 0.0]), np.array([3.0, -1.0])
    np.testing.assert_allclose(dense_input(jnp.outer(x, units), jnp.array(units)), x, rtol=1e-6)
    np.testing.assert_allclose(dense_input(jnp.outer(x, units[:1]), jnp.array(units[:1])), x, rtol=1e-6)  # Phong's
    np.testing.assert_allclose(dense_input(-0.1 * jnp.outer(x, units), -0.1 * jnp.array(units)), x, rtol=1e-5)
    np.testing.assert_allclose(dense_input(jnp.array([[3.0], [1.0]]), jnp.array([4.0])), [0.75, 0.25])
    np.testing.assert_array_equal(dense_input(jnp.zeros((3, 2)), jnp.zeros(2)), np.zeros(3))


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e18, 5e37])
def test_the_input_of_a_dense_layer_from_gradients_of_any_size(scale):
    found = jax.jit(dense_input)(jnp.array([[3.0, -1.0], [6.0, -2.0]]) * scale, jnp.array([3.0, -1.0]) * scale)
    np.testing.assert_allclose(found, [1, 2], rtol=1e-5)
    whole = dense_input(jnp.array([[3.0, -1.0]]) * 1e38, jnp.array([3.0, -1.0]) * 1e38)
    np.testing.assert_allclose(whole, [1], rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_input_of_a_dense_layer_from_what_is_not_finite_is_not_finite(bad):
    assert not np.isfinite(dense_input(jnp.ones((2, 2)), jnp.array([bad, 0.0]))).any()
    assert not np.isfinite(dense_input(jnp.full((2, 2), bad), jnp.array([1.0, 0.0]))).any()
    assert not np.isfinite(dense_input(jnp.full((2, 2), bad), jnp.zeros(2))).any()


def test_the_input_of_the_first_of_several_layers_is_exact():
    first, bias, second = jax.random.normal(jax.random.key(0), (8, 6)), jnp.full(6, 0.1), jnp.arange(-3.0, 3.0)
    x = jnp.arange(8.0) / 8

    def loss(first, bias):
        return jnp.tanh(jax.nn.relu(x @ first + bias) @ second)

    np.testing.assert_allclose(dense_input(*jax.grad(loss, (0, 1))(first, bias)), x, atol=1e-5)


def test_psnr_of_bytes_does_not_wrap_and_shapes_must_agree():
    original = np.full((2, 3), 100, np.uint8)
    np.testing.assert_allclose(psnr(original + np.uint8(16), original, peak=255), 20 * np.log10(255 / 16), rtol=1e-6)
    with pytest.raises(ValueError, match=r"recovered must have original's shape \(1, 4\), got \(1, 4, 1\)"):
        psnr(jnp.zeros((1, 4, 1)), jnp.zeros((1, 4)))


def test_psnr_by_hand():
    original = jnp.zeros((3, 2))
    found = jnp.array([[0.1, 0.1], [0.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(psnr(found, original), [20, 10 * np.log10(2), np.inf], rtol=1e-5)
    np.testing.assert_allclose(psnr(255 * found, original, peak=255), psnr(found, original), rtol=1e-5)
