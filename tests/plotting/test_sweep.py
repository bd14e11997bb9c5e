import numpy as np
import pytest

import fedjax_edge as fe
from fedjax_edge.plotting import plot_sweep


def trial(value, seed=0, **hyperparameters):
    history = fe.History({"round": np.array([1]), "test_accuracy": np.array([value])})
    return fe.simulation.Trial(hyperparameters, seed, history)


RESULT = fe.simulation.SweepResult(
    (
        trial(0.1, lr=0.1, bits=4, clip=1),
        trial(0.3, lr=0.1, bits=4, clip=2),
        trial(0.5, lr=0.1, bits=8, clip=1),
        trial(0.7, seed=1, lr=0.1, bits=8, clip=1),
        trial(0.9, lr=0.2, bits=4, clip=1),
    ),
    interrupted=False,
)


def test_cells_are_means_over_seeds_and_the_other_hyperparameters():
    ax = plot_sweep(RESULT, "lr", "bits")
    np.testing.assert_allclose(ax.images[0].get_array().filled(np.nan), [[0.2, 0.6], [0.9, np.nan]])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["4", "8"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0.1", "0.2"]
    assert {text.get_text() for text in ax.texts} == {"0.2", "0.6", "0.9", "nan"}


def test_none_has_a_label_and_nothing_measured_is_no_warning():
    trials = tuple(trial(np.nan, bits=bits, lr=rate) for bits in (8, None) for rate in (0.1, 0.2))
    ax = plot_sweep(fe.simulation.SweepResult(trials, interrupted=False), "bits", "lr")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["8", "None"]
    assert {text.get_text() for text in ax.texts} == {"nan"}


def test_what_was_not_swept_is_refused():
    with pytest.raises(ValueError, match=r"hyperparameter must be one of .*, got 'momentum'"):
        plot_sweep(RESULT, "lr", "momentum")
    with pytest.raises(ValueError, match=r"metric must be one of .*, got 'test_loss'"):
        plot_sweep(RESULT, "lr", "bits", "test_loss")
