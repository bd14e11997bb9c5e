"""`History`: what a run reported, one entry a round, as NumPy arrays."""

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fedjax_edge.simulation.table import to_frame, write_csv


class History(Mapping[str, np.ndarray]):
    """A table of equally long columns, [rounds]; a cell that was not measured is NaN.

    >>> history = History({"round": np.array([1, 2]), "test_loss": np.array([np.nan, 0.5])})
    >>> len(history["round"]), history.last("test_loss")
    (2, 0.5)
    """

    def __init__(self, columns: Mapping[str, np.ndarray]):
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of a History must be equally long, got {lengths}")
        self._columns = {name: np.asarray(column) for name, column in columns.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return f"History of {self.rounds} rounds: {', '.join(self)}"

    @property
    def rounds(self) -> int:
        """How many rounds were run."""
        return len(next(iter(self._columns.values()), ()))

    @classmethod
    def joined(cls, histories: Sequence["History"]) -> "History":
        """Returns histories one after another.

        Raises:
          ValueError: unless they have the same columns.
        """
        for history in histories[1:]:
            if set(history) != set(histories[0]):
                raise ValueError(f"histories to be joined must have the same columns, got {histories}")
        return cls({name: np.concatenate([history[name] for history in histories]) for name in histories[0]})

    def last(self, name: str) -> float:
        """Returns the last measured value of a column, or NaN if there is none."""
        measured = self[name][~np.isnan(self[name])]
        return measured[-1].item() if len(measured) else float("nan")

    def to_dict(self) -> dict[str, list]:
        """Returns the columns as lists of Python numbers."""
        return {name: column.tolist() for name, column in self.items()}

    def to_csv(self, path: str | os.PathLike) -> None:
        """Writes one row a round; a file that is there is replaced whole or not at all. NaN cells are left empty."""
        write_csv(self, path)

    def to_pandas(self) -> "pandas.DataFrame":  # noqa: F821
        """Returns a data frame of the columns.

        Raises:
          ImportError: if pandas is not installed.
        """
        return to_frame(self)
