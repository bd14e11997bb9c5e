"""Codecs: what an update costs on the wire, and what it loses there."""

from fedjax_edge.compression.count_sketch import count_sketch
from fedjax_edge.compression.delta_broadcast import delta_broadcast
from fedjax_edge.compression.eden import drive, eden
from fedjax_edge.compression.entropy import coded_size, elias_bits, entropy_bits, entropy_coded
from fedjax_edge.compression.error_feedback import error_feedback
from fedjax_edge.compression.fetch_sgd import fetch_sgd, sent_as_sketch
from fedjax_edge.compression.fixed_point import fixed_point
from fedjax_edge.compression.half_precision import half_precision
from fedjax_edge.compression.natural import natural_compression
from fedjax_edge.compression.per_leaf import per_leaf
from fedjax_edge.compression.power_sgd import low_rank, power_sgd
from fedjax_edge.compression.pruning import apply_mask, magnitude_mask, masked, sparse_optimizer, stored_bits
from fedjax_edge.compression.qsgd import qsgd
from fedjax_edge.compression.random_k import random_k
from fedjax_edge.compression.rotated import rotated
from fedjax_edge.compression.sign import scaled_sign, sign
from fedjax_edge.compression.stochastic_uniform import stochastic_uniform
from fedjax_edge.compression.symmetric import symmetric
from fedjax_edge.compression.terngrad import terngrad
from fedjax_edge.compression.top_k import top_k
from fedjax_edge.core.transforms import compose

__all__ = [
    "apply_mask",
    "coded_size",
    "compose",
    "count_sketch",
    "delta_broadcast",
    "drive",
    "eden",
    "elias_bits",
    "entropy_bits",
    "entropy_coded",
    "error_feedback",
    "fetch_sgd",
    "fixed_point",
    "half_precision",
    "low_rank",
    "magnitude_mask",
    "masked",
    "natural_compression",
    "per_leaf",
    "power_sgd",
    "qsgd",
    "random_k",
    "rotated",
    "scaled_sign",
    "sent_as_sketch",
    "sign",
    "sparse_optimizer",
    "stochastic_uniform",
    "stored_bits",
    "symmetric",
    "terngrad",
    "top_k",
]
