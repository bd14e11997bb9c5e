"""How unlike the clients of a partition are: sizes, classes, and distance from the population's mix of labels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class SplitSummary(NamedTuple):
    """What a partition looks like; `str` makes a table of it."""

    num_clients: int
    min_size: int
    median_size: float
    max_size: int
    classes_per_client: np.ndarray  # int [clients]; classes of which a client holds at least one example
    label_distance: float  # mean total variation between a client's label mix and the population's, from 0 to 1
    counts: np.ndarray  # int [clients, classes]; examples of each class

    def __str__(self) -> str:
        few, middle, many = np.percentile(self.classes_per_client, [0, 50, 100])
        rows = [
            ("clients", f"{self.num_clients}"),
            ("examples", f"{self.counts.sum()}"),
            ("classes", f"{self.counts.shape[1]}"),
            ("size: min, median, max", f"{self.min_size}, {self.median_size:g}, {self.max_size}"),
            ("classes per client: min, median, max", f"{few:g}, {middle:g}, {many:g}"),
            ("label distance (mean total variation)", f"{self.label_distance:.3f}"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def summarize(indices: Sequence[np.ndarray], labels: np.ndarray) -> SplitSummary:
    """Summarizes a partition of labelled examples.

    The label distance is half the sum over classes of the absolute difference between a client's shares and the
    population's, averaged over the clients that hold examples: 0 if all mixes are alike. The population is made of
    the examples that some client holds.

    Args:
      indices: one array of example indices per client, as a partitioner returns them.
      labels: integers of at least 0 [num_examples], the class of each example.

    Returns:
      A `SplitSummary`.

    Raises:
      ValueError: if there are no clients or no examples.

    >>> print(summarize([np.array([0, 1]), np.array([2, 3, 4])], labels=np.array([0, 0, 0, 1, 1])))
    clients                                2
    examples                               5
    classes                                2
    size: min, median, max                 2, 2.5, 3
    classes per client: min, median, max   1, 1.5, 2
    label distance (mean total variation)  0.333
    """
    labels = np.asarray(labels)
    if sum(len(rows) for rows in indices) == 0:
        raise ValueError(f"indices must hold at least one example, got {len(indices)} clients without any")
    num_classes = int(labels.max()) + 1
    counts = np.stack([np.bincount(labels[rows], minlength=num_classes) for rows in indices])
    sizes = counts.sum(axis=1)
    return SplitSummary(
        num_clients=len(indices),
        min_size=int(sizes.min()),
        median_size=float(np.median(sizes)),
        max_size=int(sizes.max()),
        classes_per_client=(counts > 0).sum(axis=1),
        label_distance=_label_distance(counts),
        counts=counts,
    )


def _label_distance(counts: np.ndarray) -> float:
    held = counts[counts.sum(axis=1) > 0]
    mixes = held / held.sum(axis=1, keepdims=True)
    population = held.sum(axis=0) / held.sum()
    return float(np.abs(mixes - population).sum(axis=1).mean() / 2)
