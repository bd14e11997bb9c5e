import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_edge.data import partition
from fedjax_edge.data.partition import dealing
from fedjax_edge.data.partition.label_skew import _fill_up

KEY = jax.random.key(7)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 200))

PARTITIONERS = {
    "iid": lambda key, labels, n: partition.iid(key, len(labels), n),
    "dirichlet_labels": lambda key, labels, n: partition.dirichlet_labels(key, labels, n, alpha=0.1),
    "dirichlet_labels, nearly one class": lambda key, labels, n: partition.dirichlet_labels(key, labels, n, alpha=1e-6),
    "dirichlet_allocation": lambda key, labels, n: partition.dirichlet_allocation(key, labels, n, alpha=0.05),
    "shards": lambda key, labels, n: partition.shards(key, labels, n, shards_per_client=1),
    "power_law_sizes": lambda key, labels, n: partition.power_law_sizes(key, len(labels), n, exponent=3.0),
    "log_normal_sizes": lambda key, labels, n: partition.log_normal_sizes(key, len(labels), n, sigma=3.0),
}


def class_counts(clients, labels):
    return np.stack([np.bincount(labels[rows], minlength=labels.max() + 1) for rows in clients])


def sizes_of(clients):
    return np.array([len(rows) for rows in clients])


def assert_same(one, other):
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", PARTITIONERS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_example_is_in_exactly_one_client_and_no_client_is_empty(name, data):
    labels = np.array(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=60)), np.uint8)
    num_clients = data.draw(st.integers(1, len(labels)))
    clients = PARTITIONERS[name](jax.random.key(data.draw(st.integers(0, 99))), labels, num_clients)
    assert len(clients) == num_clients
    assert {rows.dtype for rows in clients} == {np.dtype(np.int64)}
    assert sizes_of(clients).min() >= 1
    np.testing.assert_array_equal(np.sort(np.concatenate(clients)), np.arange(len(labels)))


@pytest.mark.parametrize("name", PARTITIONERS)
def test_a_key_determines_the_partition_typed_or_raw(name):
    split = PARTITIONERS[name](KEY, LABELS, 20)
    assert_same(split, PARTITIONERS[name](KEY, LABELS, 20))
    assert_same(split, PARTITIONERS[name](jax.random.key_data(KEY), LABELS, 20))
    for words in ([0, 8], [1, 7]):  # the key's words are 0 and 7; each of them counts
        other = PARTITIONERS[name](jax.random.wrap_key_data(np.array(words, np.uint32)), LABELS, 20)
        assert not all(np.array_equal(left, right) for left, right in zip(split, other, strict=True))


@pytest.mark.parametrize("name", PARTITIONERS)
def test_examples_of_a_class_are_given_out_at_random(name):
    rows = np.sort(max(PARTITIONERS[name](KEY, np.zeros(200, int), 2), key=len))
    assert not np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))


def test_an_array_of_keys_is_refused():
    with pytest.raises(ValueError, match=r"key must be a single key, got an array of keys with shape \(3,\)"):
        partition.iid(jax.random.split(KEY, 3), 10, 2)


@pytest.mark.parametrize("name", PARTITIONERS)
@pytest.mark.parametrize("num_clients", [0, 11, 2.0])
def test_impossible_numbers_of_clients_are_refused(name, num_clients):
    with pytest.raises(ValueError, match=f"num_clients must be .*, got {num_clients}"):
        PARTITIONERS[name](KEY, np.arange(10), num_clients)


@pytest.mark.parametrize("labels", [np.zeros((3, 2), int), np.zeros(3), np.zeros(0, int), np.array([True, False])])
@pytest.mark.parametrize("name", ["dirichlet_labels", "dirichlet_allocation", "shards"])
def test_labels_must_be_a_vector_of_integers(name, labels):
    with pytest.raises(ValueError, match=r"labels must be integers of shape \[num_examples\], got dtype"):
        PARTITIONERS[name](KEY, labels, 1)


def test_negative_labels_are_refused():
    with pytest.raises(ValueError, match="labels must be class numbers of at least 0, got -1"):
        partition.shards(KEY, np.array([0, -1, 2]), 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: partition.dirichlet_labels(KEY, LABELS, 5, alpha=0.0), "alpha must be .* above 0, got 0.0"),
        (lambda: partition.dirichlet_allocation(KEY, LABELS, 5, alpha=-1.0), "alpha must be .* above 0, got -1.0"),
        (lambda: partition.power_law_sizes(KEY, 10, 5, exponent=-0.5), "exponent must be .* at least 0, got -0.5"),
        (lambda: partition.log_normal_sizes(KEY, 10, 5, sigma=-0.5), "sigma must be .* at least 0, got -0.5"),
        (lambda: partition.shards(KEY, LABELS, 5, shards_per_client=0), "shards_per_client must be an integer"),
        (lambda: partition.shards(KEY, LABELS, 1001, shards_per_client=2), "num_clients must be at most 1000 to give"),
        (lambda: partition.power_law_sizes(KEY, 10, 5, 1.0, min_size=3), "num_clients must be at most 3 to give"),
        (lambda: partition.log_normal_sizes(KEY, 10, 5, 1.0, min_size=0), "min_size must be an integer of at least 1"),
        (lambda: partition.dirichlet_allocation(KEY, LABELS, 5, 1.0, min_size=401), "num_clients must be at most 4 to"),
    ],
)
def test_invalid_hyperparameters_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_iid_sizes_differ_by_at_most_one_and_order_is_random():
    clients = partition.iid(KEY, 1000, 7)
    assert sorted(set(sizes_of(clients))) == [142, 143]
    # The mean of 142 indices drawn from 0 to 999 has standard deviation 289 / sqrt(142) = 24.
    assert all(abs(rows.mean() - 499.5) < 5 * 24 for rows in clients)


def test_dirichlet_labels_gives_equal_sizes_without_a_class_per_label_number():
    clients = partition.dirichlet_labels(KEY, LABELS * 1_000_000_000, 300, alpha=0.3)
    assert sorted(set(sizes_of(clients))) == [6, 7]


@pytest.mark.parametrize(("alpha", "agrees"), [(0.3, True), (0.2, False), (0.45, False)])
def test_dirichlet_labels_draws_mixes_of_that_concentration(alpha, agrees):
    # Two examples of a client share their class with probability E[sum q^2] = (alpha + 1) / (10 alpha + 1). Classes
    # run out before the last clients' turn, which raises it by 3 %; the standard error is 1 %.
    labels = np.tile(np.arange(10), 4000)
    counts = class_counts(partition.dirichlet_labels(KEY, labels, 4000, alpha=0.3), labels)
    shared = (counts * (counts - 1)).sum(axis=1) / (10 * 9)
    expected = (alpha + 1) / (10 * alpha + 1)
    assert (abs(shared.mean() - expected) < 0.08 * expected) == agrees


def test_dirichlet_labels_leaves_the_remains_to_a_random_client():
    # Clients of 285 or 286, classes of 200: who comes first holds two classes, who comes last what nobody took.
    splits = [partition.dirichlet_labels(jax.random.key(seed), LABELS, 7, alpha=1e-6) for seed in range(20)]
    classes = np.stack([(class_counts(split, LABELS) > 0).sum(axis=1) for split in splits])
    assert len(set(classes[:, 0])) > 1
    assert len(set(classes.argmax(axis=1))) > 3


def test_dirichlet_labels_with_a_large_alpha_gives_everyone_the_same_mix():
    counts = class_counts(partition.dirichlet_labels(KEY, LABELS, 4, alpha=1e8), LABELS)
    assert abs(counts - 50).max() < 5 * np.sqrt(50)


@pytest.mark.parametrize(("alpha", "agrees"), [(0.3, True), (0.2, False), (0.45, False)])
def test_dirichlet_allocation_divides_each_class_with_that_concentration(alpha, agrees):
    # A class's shares p ~ Dir(alpha) over 20 clients have E[sum p^2] = (alpha + 1) / (20 alpha + 1).
    labels = np.repeat(np.arange(400), 1000)
    counts = class_counts(partition.dirichlet_allocation(KEY, labels, 20, alpha=0.3), labels)
    found = ((counts / 1000) ** 2).sum(axis=0)
    expected = (alpha + 1) / (20 * alpha + 1)
    assert (abs(found.mean() - expected) < 4 * found.std() / np.sqrt(400)) == agrees


def test_dirichlet_allocation_fills_up_to_the_minimum_at_the_expense_of_the_large():
    plain = sizes_of(partition.dirichlet_allocation(KEY, LABELS, 100, alpha=0.02))
    filled = sizes_of(partition.dirichlet_allocation(KEY, LABELS, 100, alpha=0.02, min_size=10))
    assert plain.min() == 1
    assert filled.min() == 10
    assert np.all(filled[plain > 10] <= plain[plain > 10])
    assert set(sizes_of(partition.dirichlet_allocation(KEY, LABELS, 100, alpha=0.02, min_size=20))) == {20}


def test_filling_up_moves_random_examples_and_keeps_the_rest():
    clients = [np.arange(0), np.arange(100), np.arange(100, 104)]
    filled = _fill_up(np.random.default_rng(0), clients, min_size=4)
    assert sizes_of(filled).tolist() == [4, 96, 4]
    assert set(filled[0]) <= set(clients[1])
    assert set(filled[0]) != set(range(96, 100))
    assert set(filled[2]) == set(clients[2])


def test_filling_up_mixes_what_several_clients_spare():
    filled = _fill_up(np.random.default_rng(0), [np.arange(0)] * 2 + [np.arange(50), np.arange(50, 100)], 20)
    assert sizes_of(filled).tolist() == [20, 20, 30, 30]
    assert all((rows < 50).any() and (rows >= 50).any() for rows in filled[:2])


def test_shards_are_runs_of_the_sorted_labels_dealt_at_random():
    labels = np.random.default_rng(1).permutation(200)  # every example a class of its own, so a shard shows as a run
    clients = partition.shards(KEY, labels, num_clients=5, shards_per_client=4)
    hands = [sorted(set(labels[rows] // 10)) for rows in clients]
    assert sorted(shard for hand in hands for shard in hand) == list(range(20))
    assert all(len(hand) == 4 for hand in hands)
    assert hands != [list(range(i, i + 4)) for i in range(0, 20, 4)]


def test_two_shards_hold_at_most_two_classes_each():
    counts = class_counts(partition.shards(KEY, LABELS, 100), LABELS)
    assert (counts > 0).sum(axis=1).max() == 2
    assert set(counts.sum(axis=1)) == {20}


def test_shards_take_the_examples_of_a_class_in_random_order():
    clients = partition.shards(KEY, np.zeros(100, int), num_clients=2, shards_per_client=1)
    assert set(clients[0]) not in ({*range(50)}, {*range(50, 100)})


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_classes_per_client_holds_exactly_so_many_classes_and_covers_what_it_can(data):
    class_sizes = np.array(data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=6)))
    labels = np.repeat(np.arange(len(class_sizes)), class_sizes)
    k = data.draw(st.integers(1, len(class_sizes)))
    num_clients = data.draw(st.integers(1, 12))
    if num_clients * k > np.minimum(class_sizes, num_clients).sum():
        with pytest.raises(ValueError, match=r"num_clients \* num_classes_per_client must be at most"):
            partition.classes_per_client(KEY, labels, num_clients, k)
        return
    clients = partition.classes_per_client(jax.random.key(data.draw(st.integers(0, 99))), labels, num_clients, k)
    counts = class_counts(clients, labels)
    assert len(np.unique(np.concatenate(clients))) == sizes_of(clients).sum()
    assert set((counts > 0).sum(axis=1)) == {k}
    held = counts.sum(axis=0)
    assert all(held[label] in (0, class_sizes[label]) for label in range(len(class_sizes)))
    assert (held > 0).sum() == min(num_clients * k, len(class_sizes))
    for column in counts.T:
        shares = column[column > 0]
        assert shares.size == 0 or shares.max() - shares.min() <= 1


def test_classes_per_client_balances_holders_and_pairs_classes_at_random():
    holds = class_counts(partition.classes_per_client(KEY, LABELS, 100, 2), LABELS) > 0
    assert set(holds.sum(axis=0)) == {20}
    pairs = {tuple(np.flatnonzero(row)) for row in holds}
    assert len(pairs) > 30  # of 45; 100 random pairs leave out 5 on average


def test_classes_per_client_gives_odd_examples_and_odd_holders_at_random():
    keys = [jax.random.key(seed) for seed in range(20)]
    sizes = {tuple(sizes_of(partition.classes_per_client(key, np.zeros(5, int), 3, 1))) for key in keys}
    assert sizes == {(2, 2, 1), (2, 1, 2), (1, 2, 2)}
    held = {partition.classes_per_client(key, np.arange(3), 1, 1)[0].item() for key in keys}
    assert held == {0, 1, 2}


def test_classes_per_client_refuses_more_classes_than_there_are():
    with pytest.raises(ValueError, match="num_classes_per_client must be an integer from 1 to 2, got 3"):
        partition.classes_per_client(KEY, np.array([5, 5, 9]), 1, 3)


def test_power_law_sizes_follow_rank_and_ranks_are_random():
    clients = partition.power_law_sizes(KEY, 100_000, 100, exponent=0.7)
    shares = np.arange(1, 101) ** -0.7
    np.testing.assert_allclose(np.sort(sizes_of(clients))[::-1], 1e5 * shares / shares.sum(), atol=1)
    assert len({sizes_of(partition.power_law_sizes(jax.random.key(i), 100, 9, 2.0)).argmax() for i in range(20)}) > 3


def test_equal_sizes_are_the_limit_of_both_laws():
    assert set(sizes_of(partition.power_law_sizes(KEY, 100, 10, exponent=0.0))) == {10}
    assert set(sizes_of(partition.log_normal_sizes(KEY, 100, 10, sigma=0.0))) == {10}


@pytest.mark.parametrize(("sigma", "agrees"), [(1.0, True), (2 / 3, False), (3 / 2, False)])
def test_log_normal_sizes_have_that_sigma(sigma, agrees):
    log_sizes = np.log(sizes_of(partition.log_normal_sizes(KEY, 1_000_000, 2000, sigma=1.0)))
    assert (abs(log_sizes.std() - sigma) < 4 * sigma / np.sqrt(2 * 2000)) == agrees


@pytest.mark.parametrize("extreme", [1e3, 1e300])
def test_extreme_skew_leaves_everyone_the_minimum(extreme):
    for clients in (
        partition.power_law_sizes(KEY, 100, 5, exponent=extreme, min_size=3),
        partition.log_normal_sizes(KEY, 100, 5, sigma=extreme, min_size=3),
    ):
        assert sorted(sizes_of(clients)) == [3, 3, 3, 3, 88]


@pytest.mark.parametrize("alpha", [1e-300, 1e300])
def test_extreme_alpha_is_no_trouble(alpha):
    for function in (partition.dirichlet_labels, partition.dirichlet_allocation):
        clients = function(KEY, LABELS, 7, alpha)
        np.testing.assert_array_equal(np.sort(np.concatenate(clients)), np.arange(len(LABELS)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(weights=st.lists(st.integers(0, 20), min_size=1, max_size=30).filter(any), total=st.integers(0, 1000))
def test_apportion_is_within_one_of_proportional_and_exact_in_total(weights, total):
    weights = np.array(weights)
    units = dealing.apportion(weights, total)
    assert units.sum() == total
    assert abs(units - total * weights / weights.sum()).max() < 1
    assert not units[weights == 0].any()


def test_deal_cuts_consecutive_pieces():
    pieces = dealing.deal(np.arange(5), np.array([2, 0, 3]))
    assert [piece.tolist() for piece in pieces] == [[0, 1], [], [2, 3, 4]]


@pytest.mark.parametrize(
    "ids",
    [["b", "a", "b", "c"], np.array([5, -2, 5, 9]), [(1, "x"), (0, "y"), (1, "x"), (2, "a")], np.array(list("babc"))],
)
def test_natural_groups_by_sorted_id(ids):
    assert [rows.tolist() for rows in partition.natural(ids)] == [[1], [0, 2], [3]]


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "at least one example"), ([1.0, float("nan")], "without NaN"), (np.zeros((2, 2)), r"got shape \(2, 2\)")],
)
def test_natural_refuses_what_names_no_clients(ids, message):
    with pytest.raises(ValueError, match=message):
        partition.natural(ids)
