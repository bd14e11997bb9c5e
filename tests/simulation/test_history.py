import builtins
import csv

import numpy as np
import pytest

from fedjax_edge.simulation import History

HISTORY = History(
    {"round": np.array([1, 2, 3]), "test_loss": np.array([np.nan, 0.25, np.nan]), "epsilon": np.full(3, np.inf)}
)


def test_it_is_a_mapping_of_columns():
    assert list(HISTORY) == ["round", "test_loss", "epsilon"]
    assert HISTORY.rounds == 3
    assert HISTORY.last("test_loss") == 0.25
    assert np.isnan(History({"x": np.full(2, np.nan)}).last("x"))
    assert repr(HISTORY) == "History of 3 rounds: round, test_loss, epsilon"


def test_it_grows():
    longer = History.joined([HISTORY, HISTORY])
    np.testing.assert_array_equal(longer["round"], [1, 2, 3, 1, 2, 3])
    assert HISTORY.rounds == 3


def test_histories_of_other_columns_are_not_joined():
    one, other = History({"round": np.array([1])}), History({"round": np.array([2]), "test_loss": np.array([0.5])})
    with pytest.raises(ValueError, match=r"must have the same columns, got .*1 rounds: round, .*round, test_loss"):
        History.joined([one, other])


def test_a_csv_file_reads_back(tmp_path):
    HISTORY.to_csv(tmp_path / "history.csv")
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert [row["round"] for row in rows] == ["1", "2", "3"]
    assert [row["test_loss"] for row in rows] == ["", "0.25", ""]
    assert float(rows[0]["epsilon"]) == np.inf
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "history.csv"
    path.write_text("precious")
    monkeypatch.setattr("csv.writer", lambda file: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        HISTORY.to_csv(path)
    assert path.read_text() == "precious"


def test_to_dict_and_pandas():
    assert HISTORY.to_dict()["round"] == [1, 2, 3]
    frame = HISTORY.to_pandas()
    assert list(frame.columns) == list(HISTORY)
    assert frame["test_loss"][1] == 0.25


def test_without_pandas_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_pandas(name, *arguments, **keywords):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(ImportError, match=r"fedjax-edge\[pandas\]"):
        HISTORY.to_pandas()


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="equally long"):
        History({"a": np.zeros(2), "b": np.zeros(3)})
