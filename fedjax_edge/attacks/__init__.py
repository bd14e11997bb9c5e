"""What curious parties do with what they see."""

from fedjax_edge.attacks.gradient_inversion import (
    cosine_distance,
    dense_input,
    gradient_inversion,
    labels_from_gradient,
    psnr,
    squared_distance,
)
from fedjax_edge.attacks.membership_inference import calibrated_score, loss_score, membership_inference

__all__ = [
    "calibrated_score",
    "cosine_distance",
    "dense_input",
    "gradient_inversion",
    "labels_from_gradient",
    "loss_score",
    "membership_inference",
    "psnr",
    "squared_distance",
]
