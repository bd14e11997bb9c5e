import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.core import losses

BATCH = {"x": jnp.arange(4.0)}


def test_losses_and_metrics_pass_through(key):
    values, metrics = losses.example_losses(lambda p, b, k: (p * b["x"], {"half": b["x"] / 2}), 2.0, BATCH, key)
    np.testing.assert_array_equal(values, [0, 2, 4, 6])
    np.testing.assert_array_equal(metrics["loss"], values)
    np.testing.assert_array_equal(metrics["half"], [0, 0.5, 1, 1.5])


def test_a_scalar_loss_is_told_what_to_do(key):
    with pytest.raises(TypeError, match=r"loss of shape \(\).*shape \[batch\] = \(4,\): drop the `.mean\(\)`"):
        losses.example_losses(lambda p, b, k: b["x"].mean(), (), BATCH, key)


def test_other_shapes_are_refused(key):
    with pytest.raises(TypeError, match=r"loss of shape \(4, 1\); it must return one number per example"):
        losses.example_losses(lambda p, b, k: b["x"][:, None], (), BATCH, key)
    with pytest.raises(TypeError, match=r"returned accuracy of shape \(\)"):
        losses.example_losses(lambda p, b, k: (b["x"], {"accuracy": jnp.float32(1)}), (), BATCH, key)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda losses: (losses, losses),
        lambda losses: (losses, None),
        lambda losses: (losses,),
        lambda losses: (losses, {}, {}),
        lambda losses: [losses, {}],
        lambda losses: {"loss": losses},
        lambda losses: (losses, {"a": {"b": losses}}),
        lambda losses: None,
    ],
)
def test_what_is_no_losses_and_metrics_is_refused(key, wrong):
    with pytest.raises(TypeError, match=r"must return losses \[batch\], or \(losses, \{name: \[batch\]\}\), got .+"):
        losses.example_losses(lambda p, b, k: wrong(b["x"]), (), BATCH, key)


def test_the_name_loss_is_taken(key):
    with pytest.raises(TypeError, match='a metric named "loss"'):
        losses.example_losses(lambda p, b, k: (b["x"], {"loss": b["x"]}), (), BATCH, key)


def test_masked_examples_count_for_nothing():
    values, mask = jnp.array([1.0, jnp.nan, 3.0]), jnp.array([True, False, True])
    mean = losses.masked_sums({"loss": values}, mask)["loss"]
    assert mean == (4, 2)
    assert losses.masked_sums({"loss": values}, jnp.zeros(3, bool))["loss"] == (0, 0)


def test_rows_are_taken_from_every_column_in_its_dtype():
    columns = {"image": np.arange(6, dtype=np.uint8).reshape(3, 2), "y": np.arange(3.0, dtype=np.float32)}
    rows = losses.take_rows(columns, jnp.array([2, 0]))
    np.testing.assert_array_equal(rows["image"], [[4, 5], [0, 1]])
    assert rows["image"].dtype == jnp.uint8
