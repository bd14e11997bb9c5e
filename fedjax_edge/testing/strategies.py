"""Hypothesis strategies: what components meet, the awkward cases first.

Trees of random *form* make a component compile for each; for many examples draw values for one form (`trees_like`).
"""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_edge.core import checks
from fedjax_edge.core.protocols import Cohort, PyTree

_SHAPES = [(), (0,), (1,), (3,), (2, 3)]
AWKWARD = {
    "matrix": np.zeros((2, 3), np.float32),
    "scalar": np.zeros((), np.float32),
    "one": np.zeros(1, np.float32),
    "empty": np.zeros((0, 2), np.float32),
    "narrow": np.zeros(4, jnp.bfloat16),
    "nested": [np.zeros(5, np.float32), {}],
}
"""A tree of the forms that break components: scalar, size-1, empty and bfloat16 leaves, and a subtree without any."""


def numbers(magnitude: float = 100.0) -> st.SearchStrategy[float]:
    """Floats between plus and minus `magnitude` that float32 represents, zero among them.

    None below 2^-100 but zero: a product with one might be subnormal, which XLA flushes to zero.
    """
    checks.positive("magnitude", magnitude)
    bound = float(np.float32(magnitude))
    return st.floats(-bound, bound, width=32).map(lambda number: number if abs(number) >= 2.0**-100 else 0.0)


@st.composite
def trees_like(draw: st.DrawFn, tree: PyTree, magnitude: float = 100.0) -> PyTree:
    """Trees of the structure, shapes and dtypes of `tree`; each leaf is random, constant or all zeros.

    Args:
      draw: given by hypothesis; call `trees_like(tree)`.
      tree: leaves are arrays of floats, such as `AWKWARD` or a model's parameters.
      magnitude: of the numbers, at most.
    """
    return jax.tree.map(lambda leaf: draw(_leaves(np.shape(leaf), leaf.dtype, magnitude)), tree)


@st.composite
def _leaves(draw: st.DrawFn, shape: tuple[int, ...], dtype: jnp.dtype, magnitude: float) -> jax.Array:
    kind = draw(st.sampled_from(["random", "constant", "zero"]))
    if kind == "random":
        values = draw(hnp.arrays(np.float32, shape, elements=numbers(magnitude)))
    else:
        values = np.full(shape, 0.0 if kind == "zero" else draw(numbers(magnitude)), np.float32)
    return jnp.asarray(values.astype(dtype))


@st.composite
def float_trees(
    draw: st.DrawFn,
    dtypes: tuple[jnp.dtype, ...] = (jnp.float32, jnp.bfloat16),
    max_leaves: int = 4,
    magnitude: float = 100.0,
) -> PyTree:
    """Pytrees of float leaves: scalar, empty, of one number, of a few; random, constant or zero; flat or nested.

    Args:
      draw: given by hypothesis; call `float_trees()`.
      dtypes: of the leaves.
      max_leaves: at least one, at most this many.
      magnitude: of the numbers, at most.
    """
    forms = st.tuples(st.sampled_from(_SHAPES), st.sampled_from(dtypes))
    leaves = [draw(_leaves(*form, magnitude)) for form in draw(st.lists(forms, min_size=1, max_size=max_leaves))]
    first, *rest = leaves
    arrangements = [first if not rest else leaves, {"a": first, "b": rest}, {"a": {"deep": tuple(leaves)}, "none": ()}]
    return draw(st.sampled_from(arrangements))


@st.composite
def client_updates(draw: st.DrawFn, clients: int = 5, tree: PyTree | None = None, magnitude: float = 100.0) -> PyTree:
    """Updates of several clients, leaves [clients, ...]; some of the clients may send the same.

    Args:
      draw: given by hypothesis; call `client_updates()`.
      clients: how many.
      tree: of whose form each update is, by default `AWKWARD`.
      magnitude: of the numbers, at most.
    """
    checks.integer("clients", clients)
    one = AWKWARD if tree is None else tree
    stack = jax.tree.map(lambda leaf: np.zeros((clients, *np.shape(leaf)), leaf.dtype), one)
    return draw(trees_like(stack, magnitude))


def weights(clients: int = 5, max_weight: float = 1000.0) -> st.SearchStrategy[jax.Array]:
    """Weights of clients, float32 [clients], of at least zero: numbers of examples, fractions and zeros.

    At least one is above zero.
    """
    checks.integer("clients", clients)
    whole = st.integers(0, int(max_weight)).map(float)
    fractions = st.floats(2.0**-10, float(np.float32(max_weight)), width=32)
    rows = st.lists(st.one_of(whole, fractions), min_size=clients, max_size=clients).filter(any)
    return rows.map(lambda row: jnp.asarray(np.array(row, np.float32)))


@st.composite
def cohorts(draw: st.DrawFn, num_clients: int = 8, width: int = 5) -> Cohort:
    """Cohorts of distinct clients with padding anywhere, from nobody to everybody.

    Args:
      draw: given by hypothesis; call `cohorts()`.
      num_clients: of the population; ids lie below.
      width: the length of the cohort, padding included. The ids of padding are arbitrary, doubles included.
    """
    checks.integer("num_clients", num_clients)
    checks.integer("width", width)
    everybody = draw(st.permutations(range(num_clients)))
    present = draw(hnp.arrays(bool, width))
    if present.sum() > num_clients:
        present[np.flatnonzero(present)[num_clients:]] = False
    ids = draw(hnp.arrays(np.int32, width, elements=st.integers(0, num_clients - 1)))
    ids[present] = everybody[: present.sum()]
    return Cohort(jnp.asarray(ids), jnp.asarray(present))
