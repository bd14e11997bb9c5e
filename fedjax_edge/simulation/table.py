"""Columns on their way out: a CSV file that is whole or absent, and a pandas data frame."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_csv(columns: Mapping[str, Sequence[Any] | np.ndarray], path: str | os.PathLike) -> None:
    """Writes equally long columns; a file that is there is replaced whole or not at all. NaN cells are left empty."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True):
            writer.writerow(["" if cell != cell else cell for cell in row])
    partial.replace(path)


def to_frame(columns: Mapping[str, Sequence[Any] | np.ndarray]) -> "pandas.DataFrame":  # noqa: F821
    """Returns a data frame of equally long columns.

    Raises:
      ImportError: if pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_pandas needs pandas: pip install 'fedjax-edge[pandas]'") from error
    return pandas.DataFrame(dict(columns))
