"""Private aggregation: clipping, noisy means, what epsilon they may claim, and audits of the claim."""

from fedjax_edge.privacy.accounting import calibrate_noise_multiplier, gaussian_accountant
from fedjax_edge.privacy.adaptive_clip_mean import adaptive_clip_mean
from fedjax_edge.privacy.audit import audit_aggregator, audit_algorithm
from fedjax_edge.privacy.audit_bounds import audit_estimate, audit_guesses, audit_scores
from fedjax_edge.privacy.clipping import clip, clip_by_norm, per_layer, total_norm
from fedjax_edge.privacy.correlated_mean import correlated_mean
from fedjax_edge.privacy.correlated_noise import (
    Strategy,
    banded_toeplitz_noise,
    blt_noise,
    streaming_noise,
    tree_noise,
)
from fedjax_edge.privacy.distributed import discrete_gaussian, skellam
from fedjax_edge.privacy.dp_sgd import ExampleMechanism, dp_sgd
from fedjax_edge.privacy.gaussian_mean import gaussian_mean
from fedjax_edge.privacy.ledger import Ledger, read_ledger
from fedjax_edge.privacy.local import local_gaussian, local_laplace
from fedjax_edge.privacy.mechanism import Mechanism

__all__ = [
    "ExampleMechanism",
    "Ledger",
    "Mechanism",
    "Strategy",
    "adaptive_clip_mean",
    "audit_aggregator",
    "audit_algorithm",
    "audit_estimate",
    "audit_guesses",
    "audit_scores",
    "banded_toeplitz_noise",
    "blt_noise",
    "calibrate_noise_multiplier",
    "clip",
    "clip_by_norm",
    "correlated_mean",
    "discrete_gaussian",
    "dp_sgd",
    "gaussian_accountant",
    "gaussian_mean",
    "local_gaussian",
    "local_laplace",
    "per_layer",
    "read_ledger",
    "skellam",
    "streaming_noise",
    "total_norm",
    "tree_noise",
]
