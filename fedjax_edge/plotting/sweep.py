"""A picture of a sweep: one metric over two hyperparameters."""

from collections import defaultdict

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from fedjax_edge.simulation import SweepResult


def plot_sweep(
    result: SweepResult, rows: str, columns: str, metric: str = "test_accuracy", ax: Axes | None = None
) -> Axes:
    """Draws a heat map: a metric's last value, averaged over seeds and over all other hyperparameters.

    Args:
      result: what `fe.sweep` returned.
      rows: the hyperparameter of the vertical axis.
      columns: that of the horizontal one.
      metric: a column of the histories.
      ax: axes to draw into; without, a new figure's.

    Returns:
      The axes.

    Raises:
      ValueError: for a hyperparameter that was not swept, or a metric that was not measured.
    """
    cells = defaultdict(list)
    for one in result.summaries(metric):
        for name in (rows, columns):
            if name not in one.hyperparameters:
                raise ValueError(f"hyperparameter must be one of {list(one.hyperparameters)}, got {name!r}")
        cells[one.hyperparameters[rows], one.hyperparameters[columns]].append(one.mean)
    ys, xs = (list(dict.fromkeys(key[side] for key in cells)) for side in (0, 1))
    values = np.array([[np.mean(cells.get((y, x), [np.nan])) for x in xs] for y in ys])

    ax = plt.subplots(layout="constrained")[1] if ax is None else ax
    image = ax.imshow(values, origin="lower", aspect="auto")
    middle = np.mean(values[~np.isnan(values)]) if not np.isnan(values).all() else 0.0
    for (i, j), value in np.ndenumerate(values):
        ax.text(j, i, f"{value:.3g}", ha="center", va="center", color="black" if value > middle else "white")
    ax.set(xlabel=columns, ylabel=rows)
    ax.set_xticks(range(len(xs)), [str(x) for x in xs])  # or None would have no label
    ax.set_yticks(range(len(ys)), [str(y) for y in ys])
    ax.figure.colorbar(image, ax=ax, label=metric)
    return ax
