"""A picture of which client holds how much of which class."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from fedjax_edge.core import checks
from fedjax_edge.data.split_summary import SplitSummary

MOST_BARS = 40  # more clients than these are drawn as a heat map


def plot_split(summary_or_counts: SplitSummary | np.ndarray, ax: Axes | None = None, max_clients: int = 1000) -> Axes:
    """Draws clients by classes: stacked bars for up to 40 clients, a heat map for more.

    A bar is as long as the client has examples. The heat map has one column per client, coloured by the shares of its
    classes, with the clients' sizes above; clients are ordered by their largest class and its share, so that what they
    have in common shows.

    Args:
      summary_or_counts: what `summarize` returned, or integers [clients, classes].
      ax: axes to draw into; without, a new figure's.
      max_clients: if there are more, only so many are drawn, spread evenly over the clients.

    Returns:
      The axes.

    Raises:
      ValueError: if the counts are not of shape [clients, classes].
    """
    counts = summary_or_counts.counts if isinstance(summary_or_counts, SplitSummary) else np.asarray(summary_or_counts)
    if counts.ndim != 2 or counts.size == 0:
        raise ValueError(f"counts must be of shape [clients, classes], got {counts.shape}")
    checks.integer("max_clients", max_clients)
    num_clients = len(counts)
    shown = np.unique(np.linspace(0, num_clients - 1, min(max_clients, num_clients)).astype(int))
    ax = plt.subplots(layout="constrained")[1] if ax is None else ax
    which = "clients" if len(shown) == num_clients else f"{len(shown)} of {num_clients} clients"
    if len(shown) <= MOST_BARS:
        _draw_bars(ax, counts[shown], shown, which)
    else:
        _draw_heat_map(ax, counts[shown], which)
    return ax


def _draw_bars(ax: Axes, counts: np.ndarray, clients: np.ndarray, which: str) -> None:
    rows = np.arange(len(counts))
    ends = counts.cumsum(axis=1)
    num_classes = counts.shape[1]
    colors = _colors(num_classes)
    for label in range(num_classes):
        start = ends[:, label] - counts[:, label]
        ax.barh(
            rows, counts[:, label], left=start, color=colors[label], label=str(label), edgecolor="white", linewidth=0.3
        )
    ax.set(xlabel="examples", ylabel=which, ylim=(len(counts) - 0.5, -0.5), yticks=rows, yticklabels=clients)
    ax.legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, ncols=1 + num_classes // 20)


def _draw_heat_map(ax: Axes, counts: np.ndarray, which: str) -> None:
    sizes = counts.sum(axis=1)
    shares = counts / np.maximum(sizes, 1)[:, None]
    order = np.lexsort((-shares.max(axis=1), shares.argmax(axis=1)))
    image = ax.imshow(
        shares[order].T, aspect="auto", interpolation="nearest", cmap="Blues", vmin=0, vmax=1, origin="lower"
    )
    ax.set(xlabel=f"{which}, by largest class", ylabel="class")
    if counts.shape[1] <= 20:
        ax.set_yticks(range(counts.shape[1]))
    ax.figure.colorbar(image, ax=ax, label="share of the client's examples")
    above = ax.inset_axes((0, 1.02, 1, 0.15), sharex=ax)
    above.bar(np.arange(len(sizes)), sizes[order], width=1.0, color="gray")
    above.tick_params(labelbottom=False)
    above.set_ylabel("examples")


def _colors(num_classes: int) -> np.ndarray:
    palette = plt.get_cmap("tab10" if num_classes <= 10 else "tab20" if num_classes <= 20 else "turbo")
    return palette(np.arange(num_classes)) if num_classes <= 20 else palette(np.linspace(0, 1, num_classes))
