"""`FederatedDataset`: the examples of thousands of clients of very unequal size, without padding."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_edge.core import checks
from fedjax_edge.core.protocols import Examples, PyTree
from fedjax_edge.data.partition.plain import natural


@partial(jax.tree_util.register_dataclass, data_fields=["columns", "offsets"], meta_fields=[])
@dataclass(frozen=True, kw_only=True)
class FederatedDataset:
    """All examples once, client after client, with offsets as in a CSR matrix.

    Client `i` holds rows `offsets[i] : offsets[i + 1]` of every column. Columns keep the dtype they came in; what a
    model needs (`uint8` pixels as floats, say) is computed per batch, on the device. Made by `from_arrays`,
    `from_client_arrays` or `from_partition`.
    """

    columns: PyTree  # leaves [examples, ...]
    offsets: jax.Array | np.ndarray  # int32 [clients + 1]

    @property
    def num_clients(self) -> int:
        """How many clients there are."""
        return self.offsets.shape[0] - 1

    @property
    def num_examples(self) -> int:
        """How many examples all clients hold together."""
        return jax.tree.leaves(self.columns)[0].shape[0]

    def size(self, client: jax.Array | int) -> jax.Array:
        """Returns the number of examples of clients, int32, in the shape of `client`."""
        offsets = jnp.asarray(self.offsets)
        return offsets[jnp.asarray(client) + 1] - offsets[client]

    def examples(self, client: jax.Array | int) -> Examples:
        """Returns the view of one client, int32 []."""
        client = jnp.asarray(client, jnp.int32)
        return Examples(self.columns, jnp.asarray(self.offsets)[client], self.size(client), client)

    @property
    def num_states(self) -> int:
        """How many clients' states are kept: everyone's."""
        return self.num_clients

    def state_row(self, client: jax.Array) -> jax.Array:
        """Returns where clients' states are: at their ids."""
        return client

    def client_columns(self, client: int) -> PyTree:
        """Returns one client's own rows on the host, leaves [size, ...]; for looking, not for training.

        Raises:
          ValueError: for a client that there is not.
        """
        checks.integer("client", client, at_least=0, at_most=self.num_clients - 1)
        rows = slice(int(self.offsets[client]), int(self.offsets[client + 1]))
        return jax.tree.map(lambda column: np.asarray(column)[rows], self.columns)


def from_arrays(columns: PyTree, client_ids: Sequence[Hashable] | np.ndarray) -> FederatedDataset:
    """Returns a data set of one's own arrays, with the owner of each example.

    Args:
      columns: leaves [examples, ...], of any dtypes.
      client_ids: [examples], any ids that can be hashed and sorted. Client `i` of the data set is the `i`-th of the
        distinct ids in sorted order; the order of a client's examples is kept.

    Raises:
      ValueError: if the columns, or `client_ids`, differ in length, there is not one example, or one without an owner
        (NaN).

    >>> data = from_arrays({"x": np.arange(5.0)}, ["b", "a", "b", "b", "a"])
    >>> data.num_clients, data.client_columns(0)["x"].tolist(), data.client_columns(1)["x"].tolist()
    (2, [1.0, 4.0], [0.0, 2.0, 3.0])
    """
    num_examples = checks.columns("columns", columns)
    if len(client_ids) != num_examples:
        raise ValueError(f"client_ids names the owners of {len(client_ids)} examples; there are {num_examples}")
    return from_partition(columns, natural(client_ids))


def from_client_arrays(clients: Sequence[PyTree]) -> FederatedDataset:
    """Returns a data set of one pytree of columns for each client, leaves [examples of the client, ...].

    Raises:
      ValueError: if clients differ in structure, dtypes or example shapes, one of them has columns of unequal length
        or no examples, or there are no clients.
    """
    if not clients:
        raise ValueError("clients is empty; a data set needs at least one client")
    sizes = [checks.columns(f"client {i}", columns) for i, columns in enumerate(clients)]
    expected = _signature(clients[0])
    for i, columns in enumerate(clients):
        if _signature(columns) != expected:
            raise ValueError(f"client {i} has columns {_signature(columns)}, but client 0 has {expected}")
    return _build(jax.tree.map(lambda *parts: np.concatenate(parts), *clients), np.array(sizes))


def from_partition(columns: PyTree, indices: Sequence[np.ndarray]) -> FederatedDataset:
    """Returns the data set in which client `i` holds rows `indices[i]` of `columns`, as partitioners return them.

    Memory-mapped columns whose rows are in that order already are not copied, so that they stay on disk.

    Raises:
      ValueError: if the columns differ in length, a client has no examples, or indices are no vector of integers or
        out of range.
    """
    num_examples = checks.columns("columns", columns)
    for i, rows in enumerate(map(np.asarray, indices)):
        if rows.size and (rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer)):
            raise ValueError(f"indices[{i}] must be a vector of integers, got {rows.dtype}{list(rows.shape)}")
    sizes = np.array([len(rows) for rows in indices])
    if not len(sizes) or sizes.min() == 0:
        raise ValueError(f"every client needs at least one example, got sizes {sizes.tolist()}")
    order = np.concatenate([np.asarray(rows) for rows in indices])
    if order.min() < 0 or order.max() >= num_examples:
        raise ValueError(f"indices run from {order.min()} to {order.max()}; valid are 0 to {num_examples - 1}")
    is_in_order = len(order) == num_examples and (order == np.arange(num_examples)).all()

    def dealt(column: np.ndarray) -> np.ndarray:
        return column if is_in_order and isinstance(column, np.memmap) else np.asarray(column)[order]

    return _build(jax.tree.map(dealt, columns), sizes)


def _build(columns: PyTree, sizes: np.ndarray) -> FederatedDataset:
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    if offsets[-1] >= 2**31:
        raise ValueError(f"a data set holds fewer than 2^31 examples, got {offsets[-1]}")
    return FederatedDataset(columns=columns, offsets=offsets.astype(np.int32))


def _signature(columns: PyTree) -> dict[str, tuple]:
    leaves = jax.tree_util.tree_leaves_with_path(columns)
    return {jax.tree_util.keystr(path): (np.asarray(leaf).dtype, np.shape(leaf)[1:]) for path, leaf in leaves}
