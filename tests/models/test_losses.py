import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.models.losses import classification, next_character, scale_pixels
from fedjax_edge.models.model import Model

IDENTITY = Model(lambda key: jnp.zeros(()), lambda params, x, key=None: params + x)


def logits_and_labels(shape=(5, 4), dtype=jnp.uint8):
    logits = 3 * jax.random.normal(jax.random.key(0), shape)
    return logits, jax.random.randint(jax.random.key(1), shape[:-1], 0, shape[-1]).astype(dtype)


def apply_loss(logits, labels, loss_fn=None):
    loss_fn = loss_fn or classification(IDENTITY)
    return loss_fn(jnp.zeros(()), {"image": logits, "label": labels}, None)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int32, jnp.uint32])
def test_is_the_cross_entropy_and_accuracy_of_each_example(dtype):
    logits, labels = logits_and_labels(dtype=dtype)
    losses, metrics = apply_loss(logits, labels)
    rows, columns = np.arange(5), np.asarray(labels, np.int64)
    exact = np.asarray(logits, np.float64)
    expected = np.log(np.exp(exact).sum(1)) - exact[rows, columns]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_array_equal(metrics["accuracy"], (exact.argmax(1) == columns).astype(np.float32))
    assert losses.dtype == metrics["accuracy"].dtype == jnp.float32


def test_logits_that_are_not_numbers_are_never_right():
    logits, labels = logits_and_labels()
    losses, metrics = apply_loss(logits.at[1].set(jnp.nan), labels.at[1].set(0))
    np.testing.assert_array_equal(jnp.isnan(losses), jnp.arange(5) == 1)
    np.testing.assert_array_equal(jnp.isnan(metrics["accuracy"]), jnp.arange(5) == 1)


def test_window_is_averaged():
    logits, labels = logits_and_labels((3, 7, 4))
    losses, metrics = next_character(IDENTITY)(jnp.zeros(()), {"input": logits, "target": labels}, None)
    flat_losses, flat_metrics = apply_loss(logits.reshape(21, 4), labels.reshape(21))
    np.testing.assert_allclose(losses, flat_losses.reshape(3, 7).mean(1), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], flat_metrics["accuracy"].reshape(3, 7).mean(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("label", "dtype"), [(-1, jnp.int32), (4, jnp.int32), (255, jnp.uint8), (2**32 - 1, jnp.uint32)]
)
def test_label_outside_the_classes_gives_nan_to_its_example_only(label, dtype):
    logits, labels = logits_and_labels(dtype=dtype)
    spoiled = labels.at[2].set(jnp.array(label, dtype))
    losses, metrics = apply_loss(logits, spoiled)
    np.testing.assert_array_equal(jnp.isnan(losses), jnp.arange(5) == 2)
    assert metrics["accuracy"][2] == 0
    gradient = jax.grad(lambda x: jnp.mean(apply_loss(x, spoiled)[0]))(logits)
    np.testing.assert_array_equal(jnp.isnan(gradient).all(1), jnp.arange(5) == 2)
    np.testing.assert_array_equal(jnp.isnan(gradient).any(1), jnp.arange(5) == 2)


def test_one_bad_target_spoils_its_window_only():
    logits, labels = logits_and_labels((3, 7, 4))
    batch = {"input": logits, "target": labels.at[1, 3].set(4)}
    losses, _ = next_character(IDENTITY)(jnp.zeros(()), batch, None)
    np.testing.assert_array_equal(jnp.isnan(losses), [False, True, False])


def test_low_precision_logits_are_evaluated_in_float32():
    logits, labels = logits_and_labels()
    low = logits.astype(jnp.bfloat16)
    model = Model(lambda key: (), lambda params, x, key=None: x)
    losses, _ = classification(model)((), {"image": low, "label": labels}, None)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, apply_loss(low.astype(jnp.float32), labels)[0], rtol=1e-6)


def test_pixels_are_scaled_by_default_and_tokens_are_not():
    seen = []
    model = Model(lambda key: (), lambda params, x, key=None: seen.append(x) or jnp.zeros((2, 3)))
    batch = {"image": jnp.array([0, 255], jnp.uint8), "label": jnp.array([0, 1], jnp.uint8)}
    classification(model)((), batch, None)
    next_character(model, inputs="image", targets="label")((), batch, None)
    np.testing.assert_array_equal(seen[0], jnp.array([0.0, 1.0]))
    assert seen[0].dtype == jnp.float32 and seen[1].dtype == jnp.uint8


def test_floats_are_not_scaled():
    np.testing.assert_array_equal(scale_pixels(jnp.array([0.5, 200.0])), jnp.array([0.5, 200.0]))


def test_columns_preprocessing_and_key_reach_the_model():
    seen = []
    model = Model(lambda key: (), lambda params, x, key=None: seen.append((x, key)) or jnp.zeros((2, 3)))
    loss_fn = classification(model, inputs="x", labels="y", preprocess=lambda x: x + 1)
    key = jax.random.key(3)
    loss_fn((), {"x": jnp.zeros(2), "y": jnp.zeros(2, jnp.int32)}, key)
    np.testing.assert_array_equal(seen[0][0], jnp.ones(2))
    assert seen[0][1] is key


def test_float_labels_are_refused():
    logits, labels = logits_and_labels(dtype=jnp.float32)
    with pytest.raises(TypeError, match="labels must be integers, got dtype float32"):
        apply_loss(logits, labels)


def test_labels_of_another_shape_are_refused():
    logits, labels = logits_and_labels()
    with pytest.raises(ValueError, match=r"labels must have shape \(5,\).*got \(5, 1\)"):
        apply_loss(logits, labels[:, None])
