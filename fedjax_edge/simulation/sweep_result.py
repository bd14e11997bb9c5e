"""What a sweep found: one history for each configuration and seed, and the questions one asks of them."""

import math
import numbers
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedjax_edge.simulation.history import History
from fedjax_edge.simulation.identity import name_of
from fedjax_edge.simulation.table import to_frame, write_csv


class Trial(NamedTuple):
    """One configuration with one seed, and what became of it."""

    hyperparameters: dict[str, Any]
    seed: int
    history: History


class Summary(NamedTuple):
    """One number a seed, of one configuration."""

    hyperparameters: dict[str, Any]
    mean: float
    std: float  # with n - 1 in the denominator; NaN for one seed
    values: tuple[float, ...]  # [seeds]


class SweepResult(NamedTuple):
    """The trials that were finished, in the order of the grid."""

    trials: tuple[Trial, ...]
    interrupted: bool

    def table(self) -> dict[str, np.ndarray]:
        """Returns tidy columns: one row for each configuration, seed and evaluation.

        What a trial does not have, of its hyperparameters or metrics, is NaN among numbers, and None among others.
        """
        evaluated = {number for trial in self.trials for number in _evaluated(trial.history)}
        rows = [
            {**trial.hyperparameters, "seed": trial.seed, **{name: trial.history[name][i] for name in trial.history}}
            for trial in self.trials
            for i in np.flatnonzero(np.isin(trial.history["round"], list(evaluated)))
        ]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: _to_column(name, rows) for name in names}

    def to_csv(self, path: str | os.PathLike) -> None:
        """Writes `table()`; a file that is there is replaced whole or not at all."""
        write_csv(self.table(), path)

    def to_pandas(self) -> "pandas.DataFrame":  # noqa: F821
        """Returns `table()` as a data frame.

        Raises:
          ImportError: if pandas is not installed.
        """
        return to_frame(self.table())

    def summaries(self, metric: str = "test_accuracy") -> list[Summary]:
        """Returns, for each configuration, a metric after the last round over the seeds.

        It is NaN for a trial that diverged, or whose history does not have the metric.

        Raises:
          ValueError: for a metric that no history has.
        """
        return self._over_seeds(metric, lambda history: history[metric][-1])

    def rounds_to_target(
        self, target: float, metric: str = "test_accuracy", largest_is_best: bool = True
    ) -> list[Summary]:
        """Returns, for each configuration, the first evaluated round at which a metric is as good as `target`.

        A trial that never is counts as infinite, and one whose history does not have the metric as NaN.

        Raises:
          ValueError: for a metric that no history has.
        """

        def first(history: History) -> float:
            reached = history[metric] >= target if largest_is_best else history[metric] <= target
            return history["round"][reached][0] if reached.any() else np.inf

        return self._over_seeds(metric, first)

    def best(self, metric: str = "test_accuracy", largest_is_best: bool = True) -> Summary:
        """Returns the configuration with the best mean of a metric after the last round.

        One whose mean is NaN or infinite, since a trial diverged or does not have the metric, is the last.

        Raises:
          ValueError: for a metric that no history has, or if nothing was finished.
        """
        summaries = self.summaries(metric)
        if not summaries:
            raise ValueError("no trial was finished, so none is best")
        sign = 1 if largest_is_best else -1
        return max(summaries, key=lambda summary: sign * summary.mean if np.isfinite(summary.mean) else -np.inf)

    def _over_seeds(self, metric: str, number_of: Callable[[History], float]) -> list[Summary]:
        names = dict.fromkeys(name for trial in self.trials for name in trial.history)
        if self.trials and metric not in names:
            raise ValueError(f"metric must be one of {list(names)}, got {metric!r}")

        def number(history: History) -> float:
            return float(number_of(history)) if metric in history else math.nan

        configurations: dict[tuple, list[Trial]] = {}
        for trial in self.trials:
            configurations.setdefault(tuple(trial.hyperparameters.items()), []).append(trial)
        return [
            _summary(trials[0].hyperparameters, [number(trial.history) for trial in trials])
            for trials in configurations.values()
        ]


def _summary(hyperparameters: dict[str, Any], values: list[float]) -> Summary:
    finite = np.isfinite(values).all()
    std = np.std(values, ddof=1).item() if finite and len(values) > 1 else float("nan")
    return Summary(hyperparameters, float(np.mean(values)), std, tuple(values))


def _evaluated(history: History) -> np.ndarray:
    """Returns the numbers of the rounds with a test result, and of the last; of all where nothing was evaluated."""
    tests = [history[name] for name in history if name.startswith("test_")]
    measured = ~np.isnan(tests).all(0) if tests else np.ones(history.rounds, bool)
    measured[-1] = True  # also where all that was measured is NaN
    return history["round"][measured]


def _to_column(name: str, rows: list[dict[str, Any]]) -> np.ndarray:
    present = [row[name] for row in rows if name in row]
    are_numbers = all(isinstance(cell, numbers.Real) and not isinstance(cell, bool) for cell in present)
    cells = [_plain(row.get(name, math.nan if are_numbers else None)) for row in rows]
    as_they_are = any(isinstance(cell, tuple) for cell in cells) or len({isinstance(cell, str) for cell in cells}) > 1
    return np.fromiter(cells, object, len(cells)) if as_they_are else np.array(cells)


def _plain(value: Any) -> Any:
    """Returns what a cell of a table holds: a function, or a component made of some, is its name."""
    return name_of(value) if callable(value) or hasattr(value, "_fields") else value
