"""What curious parties do with what they see."""

from fedjax_edge.attacks.gradient_inversion import (
    cosine_distance,
    dense_input,
    gradient_inversion,
    labels_from_gradient,
    psnr,
    squared_distance,
)

__all__ = [
    "cosine_distance",
    "dense_input",
    "gradient_inversion",
    "labels_from_gradient",
    "psnr",
    "squared_distance",
]
