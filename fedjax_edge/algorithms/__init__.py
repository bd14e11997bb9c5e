"""One file a paper."""

from fedjax_edge.algorithms.fedavg import fedavg
from fedjax_edge.algorithms.scaffold import scaffold

__all__ = ["fedavg", "scaffold"]
