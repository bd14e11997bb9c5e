"""How the kit compares two pytrees: leaf by leaf, and in words that say which leaf differs, where and by how much."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.core.protocols import PyTree


def named_leaves(tree: PyTree) -> dict[str, np.ndarray]:
    """Returns every leaf as a NumPy array under the name of its place, such as `['w'][0]`; a bare leaf's is `itself`.

    Keys become their data; floats narrower than float32 keep their dtype.
    """
    return {name_of(path): _array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def name_of(path: tuple) -> str:
    """Returns the name of a leaf's place in its tree."""
    return jax.tree_util.keystr(path) or "itself"


def assert_same_kind(what: str, actual: PyTree, expected: PyTree) -> None:
    """Raises AssertionError unless two trees have one structure, and their leaves one shape and dtype each.

    Works for arrays and `jax.ShapeDtypeStruct`s, without looking at any number.
    """
    found, wanted = jax.tree.structure(actual), jax.tree.structure(expected)
    assert found == wanted, f"{what}: the structure is {found}, expected {wanted}"
    for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        name = name_of(path)
        assert jnp.shape(a) == jnp.shape(e), f"{what}: leaf {name} has shape {jnp.shape(a)}, expected {jnp.shape(e)}"
        types = _dtype(a), _dtype(e)
        assert types[0] == types[1], f"{what}: leaf {name} has dtype {types[0]}, expected {types[1]}"


def assert_finite(what: str, tree: PyTree) -> None:
    """Raises AssertionError if a number of any leaf is a NaN or an infinity."""
    for name, leaf in named_leaves(tree).items():
        assert np.isfinite(leaf).all(), f"{what} is not finite: leaf {name} is {leaf}"


def assert_close(
    what: str, actual: PyTree, expected: PyTree, rtol: float | None = None, beside: tuple[PyTree, ...] = ()
) -> None:
    """Raises AssertionError unless floats agree up to rounding, and integers, truth values and keys exactly.

    Args:
      what: the claim, which opens the error's message.
      actual, expected: trees of one structure and of leaves of one shape.
      rtol: the difference allowed, relative to the leaf's largest number; by default 64 units in the last place of
        float32 (7.6e-6), and 4 of narrower floats.
      beside: trees of the same structure, leaves of any shapes, whose numbers and precision count as the leaf's own:
        what went into a result that may have cancelled. A NaN equals a NaN, an infinity itself.
    """
    found, wanted = named_leaves(actual), named_leaves(expected)
    assert list(found) == list(wanted), f"{what}: the leaves are {list(found)}, expected {list(wanted)}"
    others = [list(named_leaves(tree).values()) for tree in beside]
    for position, (name, a) in enumerate(found.items()):
        e = wanted[name]
        assert a.shape == e.shape, f"{what}: leaf {name} has shape {a.shape}, expected {e.shape}"
        if not a.size:
            continue
        leaves = [a, e, *(other[position] for other in others if len(other) == len(found))]
        allowed = _allowed(leaves, rtol)
        a64, e64 = np.asarray(a, np.float64), np.asarray(e, np.float64)
        with np.errstate(invalid="ignore"):
            difference = np.where((a64 == e64) | (np.isnan(a64) & np.isnan(e64)), 0.0, np.abs(a64 - e64))
        difference = np.where(np.isnan(difference), np.inf, difference)
        worst = np.unravel_index(difference.argmax(), a.shape)
        assert difference[worst] <= allowed, (
            f"{what}: leaf {name} is {a64[worst]:.6g} at {tuple(map(int, worst))}, expected {e64[worst]:.6g}; "
            f"they differ by {difference[worst]:.3g}, and {allowed:.3g} is allowed"
        )


def _allowed(leaves: list[np.ndarray], rtol: float | None) -> float:
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        return 0.0
    finite = [np.abs(leaf[np.isfinite(leaf)]).astype(np.float64) for leaf in leaves]
    scale = max((leaf.max() for leaf in finite if leaf.size), default=0.0)
    return scale * (max(rounding(leaf.dtype) for leaf in leaves) if rtol is None else rtol)


def rounding(dtype: jnp.dtype) -> float:
    """Returns how much of a number of this dtype is put down to rounding: 64 units in the last place, 4 if narrow."""
    info = jnp.finfo(dtype)
    return float(info.eps) * (64 if info.bits >= 32 else 4)


def _array(leaf: object) -> np.ndarray:
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _dtype(leaf: object) -> jnp.dtype:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
