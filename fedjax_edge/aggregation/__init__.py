"""What the server makes of many updates."""

from fedjax_edge.aggregation.coordinate_median import coordinate_median
from fedjax_edge.aggregation.majority_vote import majority_vote
from fedjax_edge.aggregation.mean import uniform_mean, weighted_mean

__all__ = ["coordinate_median", "majority_vote", "uniform_mean", "weighted_mean"]
