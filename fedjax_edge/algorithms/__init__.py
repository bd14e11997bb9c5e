"""One file a paper."""

from fedjax_edge.algorithms.fedavg import fedavg
from fedjax_edge.algorithms.fedavg_dp_sgd import fedavg_dp_sgd
from fedjax_edge.algorithms.scaffold import scaffold

__all__ = ["fedavg", "fedavg_dp_sgd", "scaffold"]
