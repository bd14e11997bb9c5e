"""A picture of a run: what it learned, and what that cost."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def plot_history(history: Mapping[str, np.ndarray]) -> Figure:
    """Draws accuracy, loss and what was spent over the rounds; columns that are missing or were withheld are left out.

    Args:
      history: a `History`, or its columns.

    Returns:
      The figure; `figure.savefig(path)` writes it.
    """
    figure, (accuracy, loss, spent) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    _draw(accuracy, history, {"train_accuracy": "on devices, while training", "test_accuracy": "test"})
    _draw(loss, history, {"train_loss": "on devices, while training", "test_loss": "test"})
    _draw(spent, history, {"epsilon": "epsilon"})
    accuracy.set(title="Accuracy", xlabel="round")
    loss.set(title="Loss", xlabel="round")
    spent.set(title="Spent", xlabel="round", ylabel="epsilon")
    _draw_megabytes(spent.twinx(), history)
    return figure


def _draw(ax: Axes, history: Mapping[str, np.ndarray], columns: dict[str, str]) -> None:
    shown = {name: label for name, label in columns.items() if name in history and np.isfinite(history[name]).any()}
    for name, label in shown.items():
        measured = np.isfinite(history[name])
        is_test = not name.startswith("train_")
        ax.plot(
            history["round"][measured],
            history[name][measured],
            label=f"{label}, {history[name][measured][-1]:.3g}",
            color="tab:blue" if is_test else "0.7",
            marker="o" if measured.sum() == 1 else None,  # of which there is no line
        )
    ax.grid(alpha=0.3)
    if shown:
        ax.legend(frameon=False)


def _draw_megabytes(ax: Axes, history: Mapping[str, np.ndarray]) -> None:
    ax.set(ylabel="MB")
    if "bits_up" not in history or not np.isfinite(history["bits_up"]).all():
        return
    megabytes = np.cumsum(history["bits_up"], dtype=np.float64) / 8e6
    marker = "o" if len(megabytes) == 1 else None
    ax.plot(history["round"], megabytes, color="tab:orange", marker=marker, label=f"sent up, {megabytes[-1]:.3g} MB")
    ax.legend(frameon=False, loc="lower right")
