"""Pictures of runs and of data."""

from fedjax_edge.plotting.curves import plot_history
from fedjax_edge.plotting.split import plot_split

__all__ = ["plot_history", "plot_split"]
