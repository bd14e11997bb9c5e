"""A population that stays on the host, or on disk: only the present cohort's examples travel to the devices."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.core.protocols import Cohort, Examples, PyTree
from fedjax_edge.data.dataset import FederatedDataset

_NOBODY = np.iinfo(np.int32).max


@partial(jax.tree_util.register_dataclass, data_fields=["columns", "ids", "offsets"], meta_fields=["num_clients"])
@dataclass(frozen=True, kw_only=True)
class CohortView:
    """The clients of one cohort as a population: the same ids and examples, and no one else's."""

    columns: PyTree  # leaves [capacity, ...]
    ids: jax.Array | np.ndarray  # int32 [width], ascending; 2^31 - 1 where there is nobody
    offsets: jax.Array | np.ndarray  # int32 [width + 1]
    num_clients: int  # of the whole population

    @property
    def num_states(self) -> int:
        """How many clients' states fit."""
        return self.ids.shape[0]

    def state_row(self, client: jax.Array) -> jax.Array:
        """Returns where a client's state is, int32, in the shape of `client`."""
        row = jnp.searchsorted(jnp.asarray(self.ids), client).astype(jnp.int32)
        return jnp.minimum(row, self.num_states - 1)

    def size(self, client: jax.Array) -> jax.Array:
        """Returns the number of examples of clients of the cohort, int32, in the shape of `client`."""
        offsets, row = jnp.asarray(self.offsets), self.state_row(client)
        return offsets[row + 1] - offsets[row]

    def examples(self, client: jax.Array) -> Examples:
        """Returns the view of one client of the cohort, int32 []."""
        client = jnp.asarray(client, jnp.int32)
        return Examples(self.columns, jnp.asarray(self.offsets)[self.state_row(client)], self.size(client), client)


@dataclass(frozen=True, kw_only=True)
class HostedDataset:
    """A `FederatedDataset` whose columns stay where they are; made by `on_host`."""

    columns: PyTree  # NumPy arrays or memory maps [examples, ...]
    offsets: np.ndarray  # int [clients + 1]
    state_dir: Path | None  # where clients' states are kept; None for memory

    @property
    def num_clients(self) -> int:
        """How many clients there are."""
        return self.offsets.shape[0] - 1

    def largest_cohort(self, width: int) -> int:
        """Returns the most examples that `width` clients hold together."""
        sizes = np.diff(self.offsets)
        return int(np.partition(sizes, -width)[-width:].sum()) if width < len(sizes) else int(sizes.sum())

    def view_of_nobody(self) -> CohortView:
        """Returns a view with room for one client and none in it, for what needs only shapes."""
        return self.view(Cohort(np.zeros(1, np.int32), np.zeros(1, bool)))

    def view(self, cohort: Cohort, capacity: int = 1, at_most: int = _NOBODY) -> CohortView:
        """Returns a cohort's examples, copied, padded to `capacity` rows; those of a client drawn twice are there once.

        The capacity is doubled until they fit, up to `at_most` (what no cohort exceeds): few shapes, few compilations.
        """
        present = np.unique(np.asarray(cohort.ids)[np.asarray(cohort.present)])
        present = present[(present >= 0) & (present < self.num_clients)]  # a round rejects the others
        ids = np.full(len(cohort.ids), _NOBODY, np.int32)
        ids[: len(present)] = present
        starts, sizes = self.offsets[present], self.offsets[present + 1] - self.offsets[present]
        offsets = np.zeros(len(ids) + 1, np.int32)
        offsets[1 : len(present) + 1] = np.cumsum(sizes)
        offsets[len(present) + 1 :] = (total := int(sizes.sum()))
        while capacity < total:
            capacity *= 2
        capacity = min(capacity, at_most)
        rows = np.repeat(starts - offsets[: len(present)], sizes) + np.arange(total)

        def gather(column: np.ndarray) -> np.ndarray:
            buffer = np.zeros((capacity, *column.shape[1:]), column.dtype)
            buffer[:total] = column[rows]
            return buffer

        return CohortView(
            columns=jax.tree.map(gather, self.columns), ids=ids, offsets=offsets, num_clients=self.num_clients
        )


def on_host(dataset: FederatedDataset, state_dir: str | Path | None = None) -> HostedDataset:
    """Returns a data set too large for the accelerator as one that `fe.run` streams, cohort after cohort.

    While one cohort trains, a thread gathers the next one's examples from the columns, which may be memory-mapped
    (`np.load(path, mmap_mode="r")`). The states that clients keep between rounds stay on the host as well. The results
    are those of `dataset` itself, to the bit.

    Args:
      dataset: with NumPy columns.
      state_dir: a folder for the clients' states, as memory-mapped files; in memory by default. A checkpoint holds
        those of the clients that took part.

    Raises:
      TypeError: for a column of keys, which live on devices.

    >>> import fedjax_edge as fe
    >>> data = on_host(fe.data.from_client_arrays([{"x": np.arange(3.0)}, {"x": np.arange(9.0, 11.0)}]))
    >>> data.view(Cohort(np.array([1]), np.array([True]))).columns["x"].tolist()
    [9.0, 10.0]
    """
    check_no_keys("columns", dataset.columns)
    return HostedDataset(
        columns=jax.tree.map(np.asanyarray, dataset.columns),
        offsets=np.asarray(dataset.offsets).astype(np.int64),
        state_dir=None if state_dir is None else Path(state_dir),
    )


def check_no_keys(name: str, tree: PyTree) -> None:
    """Raises TypeError, naming the leaf, for keys: NumPy has none."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} holds keys, which cannot stay on the host; keep their "
                "jax.random.key_data, and wrap that again where it is used"
            )
