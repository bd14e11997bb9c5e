import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from fedjax_edge.data.split_summary import summarize
from fedjax_edge.plotting.split import MOST_BARS, plot_split


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def random_counts(num_clients, num_classes):
    return np.random.default_rng(0).integers(0, 9, (num_clients, num_classes))


def test_few_clients_are_stacked_bars_of_their_counts():
    counts = np.array([[3, 1], [0, 2]])
    ax = plot_split(counts)
    drawn = [(bar.get_x(), bar.get_width()) for bars in ax.containers for bar in bars]
    assert drawn == [(0, 3), (0, 0), (3, 1), (0, 2)]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "1"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", "1"]
    assert ax.get_ylabel() == "clients"


def test_many_clients_are_a_heat_map_of_shares_ordered_by_largest_class():
    counts = np.zeros((MOST_BARS + 1, 2), int)
    counts[:, 0] = 10
    counts[0] = [1, 3]
    counts[1] = [5, 5]
    ax = plot_split(counts)
    shares = np.asarray(ax.images[0].get_array())
    assert shares.shape == (2, MOST_BARS + 1)
    np.testing.assert_allclose(shares[:, -2:], [[0.5, 0.25], [0.5, 0.75]])
    np.testing.assert_allclose(shares[:, :-2], [[1.0] * (MOST_BARS - 1), [0.0] * (MOST_BARS - 1)])
    sizes = [bar.get_height() for bar in ax.child_axes[0].patches]
    assert sizes[-1] == 4
    assert set(sizes[:-1]) == {10}


def test_a_client_without_examples_is_drawn_blank():
    counts = random_counts(MOST_BARS + 1, 3) + 1
    counts[4] = 0
    shares = np.asarray(plot_split(counts).images[0].get_array())
    assert (shares.sum(axis=0) == 0).sum() == 1


def test_a_summary_draws_as_its_counts():
    labels = np.array([0, 1, 1, 1])
    ax = plot_split(summarize([np.array([0, 1]), np.array([2, 3])], labels))
    assert [bar.get_width() for bars in ax.containers for bar in bars] == [1, 0, 1, 2]


def test_more_than_max_clients_are_thinned_out_evenly_and_said_to_be():
    ax = plot_split(random_counts(101, 3), max_clients=5)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", "25", "50", "75", "100"]
    assert ax.get_ylabel() == "5 of 101 clients"
    assert plot_split(random_counts(101, 3), max_clients=50).get_xlabel() == "50 of 101 clients, by largest class"


@pytest.mark.parametrize(("num_clients", "num_classes"), [(10, 10), (10, 62), (300, 10), (300, 62)])
def test_draws_into_the_given_axes_without_a_new_figure(num_clients, num_classes):
    figure, ax = plt.subplots()
    assert plot_split(random_counts(num_clients, num_classes), ax=ax) is ax
    assert plt.get_fignums() == [figure.number]
    figure.canvas.draw()


def test_the_colors_of_up_to_twenty_classes_differ():
    ax = plot_split(np.ones((1, 20)))
    assert len({bar.get_facecolor() for bar in ax.patches}) == 20


@pytest.mark.parametrize("counts", [np.zeros(3), np.zeros((0, 3)), np.zeros((2, 2, 2))])
def test_counts_must_have_two_axes(counts):
    with pytest.raises(ValueError, match=r"counts must be of shape \[clients, classes\], got"):
        plot_split(counts)
