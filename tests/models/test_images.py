import jax.numpy as jnp
import pytest

from fedjax_edge.models.images import check_image_shape, with_channels


def test_a_channel_axis_is_added_where_there_is_none():
    assert with_channels(jnp.ones((2, 5, 6))).shape == (2, 5, 6, 1)
    assert with_channels(jnp.ones((2, 5, 6, 3))).shape == (2, 5, 6, 3)


@pytest.mark.parametrize("shape", [(11, 11), (11, 20, 1)])
def test_good_shapes_pass(shape):
    check_image_shape(shape, at_least=11)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((28,), "must be .height, width."),
        ((11, 10), r"\[1\] must be an integer of at least 11"),
        ((11, 11, 0), r"\[2\]"),
    ],
)
def test_bad_shapes_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        check_image_shape(shape, at_least=11)
