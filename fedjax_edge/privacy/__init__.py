"""Private aggregation: clipping, the noisy mean, what epsilon they may claim, and audits of the claim."""

from fedjax_edge.privacy.accounting import calibrate_noise_multiplier, gaussian_accountant
from fedjax_edge.privacy.audit import audit_aggregator, audit_algorithm
from fedjax_edge.privacy.audit_bounds import audit_estimate, audit_guesses, audit_scores
from fedjax_edge.privacy.clipping import clip, clip_by_norm
from fedjax_edge.privacy.gaussian_mean import gaussian_mean

__all__ = [
    "audit_aggregator",
    "audit_algorithm",
    "audit_estimate",
    "audit_guesses",
    "audit_scores",
    "calibrate_noise_multiplier",
    "clip",
    "clip_by_norm",
    "gaussian_accountant",
    "gaussian_mean",
]
