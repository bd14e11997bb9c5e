import numpy as np
import pytest
from matplotlib import pyplot

import fedjax_edge as fe
from fedjax_edge.plotting import plot_history

FULL = {
    "round": np.array([1, 2, 3]),
    "train_loss": np.array([3.0, 2.0, 1.0]),
    "test_loss": np.array([np.nan, np.nan, 1.5]),
    "epsilon": np.array([np.inf, np.inf, np.inf]),
    "bits_up": np.array([8e6, 8e6, 16e6]),
}


@pytest.fixture(autouse=True)
def pictures_are_closed():
    yield
    pyplot.close("all")


def lines(history):
    """Returns the numbers and the marker of each line by its label."""
    figure = plot_history(fe.History(history))
    return {
        line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist(), line.get_marker())
        for ax in figure.axes
        for line in ax.lines
    }


def test_what_was_measured_is_drawn_and_a_single_point_is_seen():
    assert lines(FULL) == {
        "on devices, while training, 1": ([1, 2, 3], [3.0, 2.0, 1.0], "None"),
        "test, 1.5": ([3], [1.5], "o"),
        "sent up, 4 MB": ([1, 2, 3], [1.0, 2.0, 4.0], "None"),
    }
    assert lines({name: column[:1] for name, column in FULL.items()})["sent up, 1 MB"] == ([1], [1.0], "o")


def test_columns_that_are_missing_or_withheld_are_left_out():
    withheld = {**FULL, "bits_up": np.full(3, np.nan), "train_loss": np.full(3, np.nan)}
    assert list(lines(withheld)) == ["test, 1.5"]
    assert lines({"round": FULL["round"]}) == {}
