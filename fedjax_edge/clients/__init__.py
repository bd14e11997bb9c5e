"""What a device does with the broadcast and its own examples."""

from fedjax_edge.clients.local_sgd import local_sgd
from fedjax_edge.clients.training import Trained, local_training
from fedjax_edge.clients.weighting import with_weights

__all__ = ["Trained", "local_sgd", "local_training", "with_weights"]
