"""Convolution with fewer multiplications: minimal filtering after Winograd, as products of matrices.

A signal of 6 entries and a kernel of r, read as coefficients, are evaluated at 6 points; the product of the two at each
point determines their 7 - r correlations. With tiles of 6 x 6 an output of a 5 x 5 kernel so costs 36 / 4 products for
each pair of channels in place of 25, one of a 3 x 3 kernel 36 / 16 in place of 9. For each of the 36 points, all tiles,
examples and channels are one product of matrices, and they take less memory than patches.

To evaluate is linear. Written as products with constant matrices, which place the tiles and leave out the padding, it
has no overlapping slices to copy, and JAX derives both gradients as products of the same kind.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Padding = Sequence[tuple[int, int]]  # zeros before and after each of the two axes

# With infinity, the points for tiles of 6 that round the least of those we tried: to some 1e-6 of the largest output,
# and 3e-6 of the kernel's largest gradient. Tiles of 8 are faster for some shapes, but round to 5e-6 and 1e-5. See
# Alam, Anderson, Barabasz and Gregg 2022, Winograd Convolution for Deep Neural Networks: Efficient Point Selection.
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
_TILE = len(_POINTS) + 1


def saves(lhs_shape: tuple[int, ...], rhs_shape: tuple[int, ...], padding: Padding) -> bool:
    """Whether `convolve` takes these shapes, and fewer multiplications than patches times a matrix.

    Measured on 65 shapes, then it is nearly always the faster one. As the transformations count, it takes some 15
    channels and more than a few positions; and as their matrices are dense, sides of at most 50 to 100.
    """
    *window, _, features = rhs_shape
    batch, *sizes, channels = lhs_shape
    outputs = [_outputs(*axis) for axis in zip(sizes, window, padding, strict=True)]
    if len(window) != 2 or max(window) > _TILE or min(outputs) < 1 or min(map(min, padding)) < 0:
        return False
    with_patches = batch * math.prod(outputs) * math.prod(window) * channels * features
    return _multiplications(lhs_shape, rhs_shape, padding) < with_patches


def _multiplications(lhs_shape, rhs_shape, padding):
    batch, height, width, channels = lhs_shape
    *window, _, features = rhs_shape
    tiles, steps = zip(*map(_tiling, (height, width), window, padding), strict=True)
    rows, columns = (_TILE * count for count in tiles)
    images = channels * rows * width * (height + columns)
    products = channels * rows * columns * features
    outputs = rows * columns * math.prod(steps) * features
    return batch * (images + products + outputs) + _TILE**2 * math.prod(rhs_shape)


def convolve(lhs: jax.Array, rhs: jax.Array, padding: Padding) -> jax.Array:
    """The convolution of stride 1 of images `[batch, height, width, channels]`.

    Args:
        lhs: float32 or float64.
        rhs: `[rows, columns, channels, features]`, at most 6 rows and columns, of the dtype of `lhs`.
        padding: `(low, high)` of both axes, not negative.

    Returns:
        `[batch, *output, features]`.

    References:
        Winograd 1980, Arithmetic Complexity of Computations, chapter V.
        Lavin and Gray 2016, Fast Algorithms for Convolutional Neural Networks, section 4.
    """
    batch, *sizes, channels = lhs.shape
    *window, _, features = rhs.shape
    tiles, steps = zip(*map(_tiling, sizes, window, padding), strict=True)
    to_points = [_constant(matrix, lhs) for matrix in map(_evaluate_tiles, sizes, window, padding)]
    kernel = _constant(np.kron(*map(_evaluations, window)), rhs) @ rhs.reshape(-1, channels * features)
    products = _at_points(lhs, *to_points) @ kernel.reshape(_TILE**2, channels, features)
    out = _constant(np.kron(*map(_evaluations, steps)).T, lhs) @ products.reshape(_TILE**2, -1)
    # Now [row and column in a tile, column and row of tiles, batch, features].
    out = jnp.transpose(out.reshape(*steps, *tiles[::-1], batch, features), (4, 3, 0, 2, 1, 5))
    out = out.reshape(batch, tiles[0] * steps[0], tiles[1] * steps[1], features)
    height, width = map(_outputs, sizes, window, padding)
    return out[:, :height, :width]


def _at_points(images, to_rows, to_columns):
    """`[points of rows and columns, columns and rows of tiles, batch, channels]`, reshaped to 3 axes for the product.

    The axis to transform comes first, so that the products are of long rows and nothing has to be copied but the small
    intermediate result.
    """
    _, height, width, channels = images.shape
    rows = to_rows @ jnp.transpose(images, (1, 2, 0, 3)).reshape(height, -1)
    rows = jnp.swapaxes(rows.reshape(_TILE, -1, width, images.size // (height * width)), 1, 2)
    columns = jnp.broadcast_to(to_columns, (_TILE, *to_columns.shape)) @ rows.reshape(_TILE, width, -1)
    return columns.reshape(_TILE**2, -1, channels)


def _outputs(size, window, padding):
    return size + sum(padding) - window + 1


def _tiling(size, window, padding):
    """The number of tiles of an axis, and the outputs of each."""
    step = _TILE + 1 - window
    return -(-_outputs(size, window, padding) // step), step


def _evaluations(coefficients):
    """`[6, coefficients]`: a polynomial's values at the points, and its leading coefficient for infinity."""
    return np.vstack([np.vander(_POINTS, coefficients, increasing=True), np.eye(coefficients)[-1]])


def _evaluate_tiles(size, window, padding):
    """`[6 * tiles, size]`: from an axis, without its padding, to what stands for each tile at each point."""
    tiles, step = _tiling(size, window, padding)
    matrix = np.zeros((_TILE, tiles, step * tiles + window - 1))
    for tile in range(tiles):
        # The transpose of interpolation, as correlation is that of multiplication.
        matrix[:, tile, step * tile : step * tile + _TILE] = np.linalg.inv(_evaluations(_TILE)).T
    low = padding[0]
    return matrix[:, :, low : low + size].reshape(_TILE * tiles, size)


def _constant(matrix, like):
    return jnp.asarray(matrix, like.dtype)
