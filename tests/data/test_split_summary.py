import numpy as np
import pytest

from fedjax_edge.data.split_summary import summarize

LABELS = np.array([0, 0, 0, 2, 2, 2, 2, 0], np.uint8)
INDICES = [np.array([0, 1, 2, 7]), np.array([3]), np.array([4, 5, 6])]


def test_sizes_classes_and_counts():
    summary = summarize(INDICES, LABELS)
    assert (summary.num_clients, summary.min_size, summary.median_size, summary.max_size) == (3, 1, 3.0, 4)
    np.testing.assert_array_equal(summary.counts, [[4, 0, 0], [0, 0, 1], [0, 0, 3]])
    np.testing.assert_array_equal(summary.classes_per_client, [1, 1, 1])


def test_label_distance_is_the_mean_total_variation_to_what_all_clients_hold():
    assert summarize(INDICES, LABELS).label_distance == pytest.approx(0.5)
    assert summarize([np.array([0, 3]), np.array([1, 2, 4, 5])], LABELS).label_distance == pytest.approx(0.0)
    # Held: three of class 0 and one of class 2; the clients' mixes are (1, 0) and (1/2, 1/2).
    assert summarize([np.array([0, 1]), np.array([2, 3])], LABELS).label_distance == pytest.approx(0.25)


def test_a_client_without_examples_counts_in_sizes_and_not_in_the_distance():
    summary = summarize([np.array([0, 1]), np.array([2, 3]), np.array([], int)], LABELS)
    assert summary.min_size == 0
    assert summary.label_distance == pytest.approx(0.25)


def test_str_is_a_table_of_aligned_columns():
    lines = str(summarize(INDICES, LABELS)).splitlines()
    assert [line.split("  ")[0] for line in lines][:3] == ["clients", "examples", "classes"]
    assert lines[3].endswith("  1, 3, 4")
    assert lines[5].endswith("  0.500")
    starts = {len(line) - len(line[39:].lstrip()) for line in lines}
    assert starts == {39}
    assert all(line[38] == " " for line in lines)


@pytest.mark.parametrize("indices", [[], [np.array([], int)]])
def test_nothing_to_summarize_is_an_error(indices):
    with pytest.raises(ValueError, match="indices must hold at least one example"):
        summarize(indices, LABELS)
