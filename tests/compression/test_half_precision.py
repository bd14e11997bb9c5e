import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_edge.compression import half_precision

LARGEST = {"bfloat16": 3.3895314e38, "float16": 65504, "float8_e4m3fn": 448, "float8_e5m2": 57344}


@pytest.mark.parametrize("dtype", LARGEST)
def test_numbers_too_large_saturate_and_what_is_not_finite_stays_so(dtype):
    codec = half_precision(dtype)
    update = jnp.array([3.4e38, -3.4e38, LARGEST[dtype], np.nan, np.inf, -np.inf, 0.0])
    payload = codec.encode(update, None)
    assert payload.content.values.dtype == dtype
    decoded = np.asarray(codec.decode(payload))
    np.testing.assert_allclose(decoded[:3], np.array([1, -1, 1]) * LARGEST[dtype], rtol=1e-6)
    assert not np.isfinite(decoded[3:6]).any() and decoded[6] == 0


def test_numbers_go_to_the_nearest_ties_to_the_even_one():
    decoded = {
        dtype: half_precision(dtype).decode(half_precision(dtype).encode(jnp.array(numbers), None)).tolist()
        for dtype, numbers in {
            "bfloat16": [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-7],
            "float16": [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-10],
            "float8_e4m3fn": [1 + 2**-4, 1 + 3 * 2**-4, 1 + 2**-3],
            "float8_e5m2": [1 + 2**-3, 1 + 3 * 2**-3, 1 + 2**-2],
        }.items()
    }
    assert decoded == {
        "bfloat16": [1, 1 + 2**-6, 1 + 2**-7],
        "float16": [1, 1 + 2**-9, 1 + 2**-10],
        "float8_e4m3fn": [1, 1.25, 1.125],
        "float8_e5m2": [1, 1.5, 1.25],
    }


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8, "bf16", None])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match=r"dtype must be one of bfloat16, float16, .* got"):
        half_precision(dtype)
