import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedjax_edge as fe
from fedjax_edge.data import dataset
from fedjax_edge.data.dataset import from_arrays, from_client_arrays, from_partition

SIZES = [3, 1, 4]


def columns_of(num_examples):
    """Columns whose first numbers say which row they are."""
    rows = np.arange(num_examples)
    return {
        "image": np.tile(rows[:, None, None], (1, 2, 2)).astype(np.uint8),
        "meta": {"label": rows.astype(np.int32), "weight": (rows / 4).astype(np.float16), "ok": rows % 2 == 0},
    }


def clients_of(sizes):
    columns = columns_of(sum(sizes))
    owned = [slice(stop - size, stop) for size, stop in zip(sizes, np.cumsum(sizes), strict=True)]
    return [jax.tree.map(lambda column, rows=rows: column[rows], columns) for rows in owned]


def rows_of(data, client):
    return data.client_columns(client)["meta"]["label"].tolist()


def assert_keeps_dtypes_and_rows(data):
    expected = columns_of(256)
    assert jax.tree.map(lambda column: (column.dtype, column.shape[1:]), data.columns) == jax.tree.map(
        lambda column: (column.dtype, column.shape[1:]), expected
    )
    own = data.columns["meta"]["label"]
    jax.tree.map(lambda column, full: np.testing.assert_array_equal(column, full[own]), data.columns, expected)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_from_arrays_sorts_by_owner_and_keeps_the_order_within(owners):
    data = from_arrays(columns_of(len(owners)), np.array(owners) * 10 - 7)
    assert_keeps_dtypes_and_rows(data)
    distinct = sorted(set(owners))
    assert data.num_clients == len(distinct) and data.num_examples == len(owners)
    for client, owner in enumerate(distinct):
        assert rows_of(data, client) == np.flatnonzero(np.array(owners) == owner).tolist()


def test_owners_may_be_names():
    data = from_arrays({"x": np.arange(4)}, ["eve", "bob", "eve", "al"])
    assert [data.client_columns(i)["x"].tolist() for i in range(3)] == [[3], [1], [0, 2]]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_from_client_arrays_lays_clients_end_to_end(sizes):
    data = from_client_arrays(clients_of(sizes))
    assert_keeps_dtypes_and_rows(data)
    assert np.concatenate([rows_of(data, client) for client in range(len(sizes))]).tolist() == list(range(sum(sizes)))
    assert [len(rows_of(data, client)) for client in range(len(sizes))] == sizes


@given(st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=5), min_size=1, max_size=6))
def test_from_partition_gives_each_client_its_rows_in_their_order(indices):
    data = from_partition(columns_of(20), [np.array(rows) for rows in indices])
    assert_keeps_dtypes_and_rows(data)
    assert [rows_of(data, client) for client in range(data.num_clients)] == indices


def test_offsets_count_as_in_a_csr_matrix():
    for data in (
        from_client_arrays(clients_of(SIZES)),
        from_arrays(columns_of(8), np.repeat([5, 6, 9], SIZES)),
        from_partition(columns_of(8), np.split(np.arange(8), [3, 4])),
    ):
        assert data.offsets.tolist() == [0, 3, 4, 8] and data.offsets.dtype == np.int32


def test_thousands_of_very_unequal_clients_are_stored_without_padding():
    sizes = np.random.default_rng(0).zipf(1.5, 5000).clip(max=30_000)
    sizes[0] = 30_000
    images = np.zeros((sizes.sum(), 4), np.uint8)
    columns = {"x": images, "y": np.zeros(len(images), np.int16)}
    data = from_partition(columns, np.split(np.arange(len(images)), np.cumsum(sizes)[:-1]))
    assert sum(column.nbytes for column in jax.tree.leaves(data.columns)) == sizes.sum() * (4 + 2)
    assert sizes.max() > 1000 * np.median(sizes) and data.num_clients == 5000
    np.testing.assert_array_equal(data.size(np.arange(5000)), sizes)


def test_a_view_says_where_a_clients_rows_are_also_under_jit_and_vmap():
    data = from_client_arrays(clients_of(SIZES))
    views = jax.jit(jax.vmap(lambda data, client: data.examples(client)._replace(columns=()), in_axes=(None, 0)))
    all_views = views(data, jnp.arange(3))
    assert all_views.start.tolist() == [0, 3, 4] and all_views.size.tolist() == SIZES
    assert all_views.client.tolist() == [0, 1, 2]
    for client in (2, np.int64(2), jnp.int32(2)):
        view = data.examples(client)
        assert (int(view.start), int(view.size), int(view.client)) == (4, 4, 2)
        assert {leaf.dtype for leaf in (view.start, view.size, view.client)} == {jnp.dtype("int32")}
        assert view.columns is data.columns


def test_sizes_of_any_shape_of_clients():
    data = from_client_arrays(clients_of(SIZES))
    assert data.size(0).shape == () and data.size(0).dtype == jnp.int32
    assert data.size(np.array([[2, 1], [0, 0]])).tolist() == [[4, 1], [3, 3]]
    assert jax.jit(lambda data, clients: data.size(clients))(data, jnp.array([2, 0])).tolist() == [4, 3]


def test_a_data_set_is_a_pytree_so_that_it_enters_a_jitted_function_as_an_argument():
    data = from_client_arrays(clients_of(SIZES))
    moved = jax.jit(lambda data: jax.tree.map(lambda leaf: leaf, data))(data)
    assert moved.num_clients == 3 and moved.num_examples == 8
    assert rows_of(moved, 2) == [4, 5, 6, 7]


PAIR = {"x": np.zeros((2, 3)), "y": np.zeros(2)}

REFUSED = {
    "no clients": (lambda: from_client_arrays([]), "clients is empty; a data set needs at least one client"),
    "no client, by partition": (
        lambda: from_partition(PAIR, []),
        "every client needs at least one example, got sizes []",
    ),
    "an empty client": (
        lambda: from_client_arrays([PAIR, {"x": np.zeros((0, 3)), "y": np.zeros(0)}]),
        "client 1: no examples; leave such clients out",
    ),
    "an empty client, by partition": (
        lambda: from_partition(PAIR, [np.array([0]), np.array([], int)]),
        "every client needs at least one example, got sizes [1, 0]",
    ),
    "no examples": (lambda: from_arrays({"x": np.zeros((0, 3))}, []), "columns: no examples"),
    "columns of unequal length": (
        lambda: from_arrays({"x": np.zeros(2), "y": np.zeros(3)}, [0, 1]),
        "columns: all columns must be arrays [examples, ...] of one length, got {\"['x']\": 2, \"['y']\": 3}",
    ),
    "columns of unequal length of one client": (
        lambda: from_client_arrays([PAIR, PAIR | {"y": np.zeros(1)}]),
        "client 1: all columns must be arrays [examples, ...] of one length, got {\"['x']\": 2, \"['y']\": 1}",
    ),
    "columns of unequal length, by partition": (
        lambda: from_partition(PAIR | {"y": np.zeros(1)}, [[0]]),
        "of one length",
    ),
    "a scalar column": (
        lambda: from_arrays({"x": np.zeros(2), "y": 3.0}, [0, 1]),
        "got {\"['x']\": 2, \"['y']\": None}",
    ),
    "no columns": (lambda: from_arrays({}, [0, 1]), "got {}"),
    "too few owners": (lambda: from_arrays(PAIR, [0]), "client_ids names the owners of 1 examples; there are 2"),
    "owners in a matrix": (
        lambda: from_arrays(PAIR, np.zeros((2, 1))),
        "must have one axis, got shape (2, 1)",
    ),
    "no owner": (lambda: from_arrays(PAIR, np.array([1.0, np.nan])), "client_ids must name the client of"),
    "unlike dtypes": (lambda: from_client_arrays([PAIR, PAIR | {"y": np.zeros(2, int)}]), "client 1 has columns"),
    "unlike example shapes": (lambda: from_client_arrays([PAIR, PAIR | {"x": np.zeros((2, 4))}]), "but client 0 has"),
    "unlike columns": (lambda: from_client_arrays([PAIR, {"x": PAIR["x"]}]), "client 1 has columns"),
    "a mask": (
        lambda: from_partition(PAIR, [np.array([True, False])]),
        "indices[0] must be a vector of integers",
    ),
    "fractions": (
        lambda: from_partition(PAIR, [[0], [0.5]]),
        "of integers, got float64[1]",
    ),
    "an index past the end": (lambda: from_partition(PAIR, [[0], [2]]), "indices run from 0 to 2; valid are 0 to 1"),
    "a negative index": (lambda: from_partition(PAIR, [[0], [-1]]), "indices run from -1 to 0; valid are 0 to 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_refused_in_plain_words(case):
    build, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def test_owners_may_be_anything_that_is_hashed_and_sorted():
    columns = {"x": np.arange(4)}
    for owners in ([("b", 1), ("a", 2), ("b", 1), ("a", 3)], [2**63 + 1, -1, 2**63 + 1, 2**63]):
        data = from_arrays(columns, owners)
        assert [data.client_columns(i)["x"].tolist() for i in range(data.num_clients)] == [[1], [3], [0, 2]]


def test_more_examples_than_an_int32_counts_are_refused():
    assert dataset._build({}, np.array([2**30, 2**30 - 1])).offsets[-1] == 2**31 - 1
    with pytest.raises(ValueError, match=r"fewer than 2\^31 examples, got 2147483648"):
        dataset._build({}, np.array([2**30, 2**30]))


@pytest.mark.parametrize(
    "make",
    [
        lambda columns: fe.data.from_arrays(columns, ["a", "a", "b"]),
        lambda columns: fe.data.from_partition(columns, [np.arange(3)]),
        lambda columns: fe.evaluation(len, columns),
    ],
)
def test_integers_that_32_bits_do_not_hold_are_refused(make):
    for label in (2**31, -(2**31) - 1):
        columns = {"x": np.arange(3), "label": np.array([0, 1, label])}
        with pytest.raises(
            ValueError, match=r"columns\['label'\] must hold integers from -2147483648 to 2147483647, got"
        ):
            make(columns)
    unsigned = {"label": np.array([0, 1, 2**32], np.uint64)}
    with pytest.raises(ValueError, match=r"columns\['label'\] must hold integers from 0 to 4294967295, got"):
        make(unsigned)
    fe.evaluation(len, {"label": np.array([2**31 - 1, -(2**31)]), "other": np.array([2**32 - 1, 0], np.uint64)})


def test_there_are_no_columns_of_a_client_that_there_is_not():
    data = from_arrays({"x": np.arange(3)}, ["a", "b", "a"])
    for client in (-1, 2):
        with pytest.raises(ValueError, match=f"client must be an integer from 0 to 1, got {client}"):
            data.client_columns(client)


def test_memory_mapped_columns_in_order_stay_on_disk(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(6, 2))
    columns = {"x": np.load(tmp_path / "x.npy", mmap_mode="r"), "y": np.arange(6)}
    data = from_partition(columns, [np.arange(2), np.arange(2, 6)])
    assert isinstance(fe.data.on_host(data).columns["x"], np.memmap)
    assert data.columns["y"] is not columns["y"]
    reversed_data = from_partition(columns, [np.array([1, 0]), np.arange(2, 6)])
    assert not isinstance(reversed_data.columns["x"], np.memmap)
    assert reversed_data.client_columns(0)["y"].tolist() == [1, 0]
