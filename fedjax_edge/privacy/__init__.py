"""Private aggregation: clipping, the noisy mean, and what epsilon they may claim."""

from fedjax_edge.privacy.accounting import calibrate_noise_multiplier, gaussian_accountant
from fedjax_edge.privacy.clipping import clip, clip_by_norm
from fedjax_edge.privacy.gaussian_mean import gaussian_mean

__all__ = ["calibrate_noise_multiplier", "clip", "clip_by_norm", "gaussian_accountant", "gaussian_mean"]
