"""Pictures of runs and of data."""

from fedjax_edge.plotting.curves import plot_history
from fedjax_edge.plotting.split import plot_split
from fedjax_edge.plotting.sweep import plot_sweep

__all__ = ["plot_history", "plot_split", "plot_sweep"]
